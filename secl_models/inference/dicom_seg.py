# SPDX-License-Identifier: Apache-2.0
"""A segmentation as a DICOM object of its own, which names the images that it is made of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import secl_ops
from secl_models.data.dicom import UNREADABLE, quiet, read_object
from secl_models.data.stack import Stack, read_stack
from secl_models.data.volumes import Volume
from secl_models.inference.palette import rgb
from secl_models.options.errors import InputError

LABEL = 64  # characters that a label has at most
SERIES_NUMBERS = 1000  # added to that of the source, so that a viewer lists the segmentation after it


@quiet()
def dicom_seg(label: npt.NDArray[np.integer[Any]], volume: Volume, classes: Mapping[int, str]) -> bytes:
    """A DICOM segmentation, a binary segment for each structure, present or not.

    Patient and study are those of the series, since it belongs into that record; the codes say no more than
    "anatomical structure" and "tissue", the segment's label has the structure's name.

    Args:
        label: Class index 0..K, `[column, row, slice]`.
        volume: The DICOM series.
        classes: Label value to name; class index i becomes segment i.

    Returns:
        The file.

    Raises:
        InputError: The series lies in several multi-frame objects, or its headers lack what the standard asks for.
    """
    import highdicom

    what = str(volume.case.series)
    stack = read_stack(volume.case.image, what)
    frames, sources = _ordered(stack, what)
    kind = np.uint8 if len(classes) < 256 else np.uint16
    planes = label.transpose(2, 1, 0)[frames].astype(kind, order="C")
    number = int(sources[0].get("SeriesNumber") or 0)
    try:
        made = highdicom.seg.Segmentation(
            sources, planes, highdicom.seg.SegmentationTypeValues.BINARY, _segments(classes),
            series_instance_uid=highdicom.UID(), series_number=SERIES_NUMBERS + number,
            sop_instance_uid=highdicom.UID(), instance_number=1, manufacturer="secl", manufacturer_model_name="secl",
            software_versions=secl_ops.__version__, device_serial_number="none",
            content_label="SECL", content_description="Segmentation by secl", series_description="secl segmentation",
        )  # fmt: skip
        made.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of structures in any script, beside the patient's
        stream = io.BytesIO()
        made.save_as(stream)
    except UNREADABLE as error:
        cure = "end --out in .nii.gz or .seg.nrrd, which ask for less"
        rule, got = "headers hold what a DICOM segmentation takes over", f"a {type(error).__name__} of highdicom"
        raise InputError(what, rule=rule, got=got, cure=cure) from error
    return stream.getvalue()


def _ordered(stack: Stack, what: str) -> tuple[list[int], Sequence[Any]]:
    """The place of each source frame in the stack, and the sources in the order that highdicom counts frames in."""
    files = list(dict.fromkeys(frame.file for frame in stack.frames))
    several = len(files) < len(stack.frames)
    if several and len(files) > 1:
        got, cure = f"{len(files)} multi-frame objects", "end --out in .nii.gz or .seg.nrrd"
        raise InputError(what, rule="a DICOM segmentation refers to one multi-frame object", got=got, cure=cure)
    order = sorted(range(len(stack.frames)), key=lambda place: stack.frames[place].index)
    return order, [read_object(file, what) for file in files]


def _segments(classes: Mapping[int, str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="secl", family=codes.DCM.ArtificialIntelligence, version=secl_ops.__version__
    )
    return [
        highdicom.seg.SegmentDescription(
            number, _label(classes[value]), codes.SCT.AnatomicalStructure, codes.SCT.Tissue,
            highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*rgb(number)),
        )
        for number, value in enumerate(sorted(classes), start=1)
    ]  # fmt: skip


def _label(name: str) -> str:
    """A name as an element of type LO can hold it."""
    return " ".join(name.replace("\\", "/").split())[:LABEL]
