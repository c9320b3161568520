# SPDX-License-Identifier: Apache-2.0
"""DICOM objects: read without pydicom's warnings, cut into frames, their pixels decoded; `stack.py` piles them up.

No message quotes a text of the header: it may be the patient's name.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.grid import FloatArray
from secl_models.options.errors import InputError

PACKAGES = ("pydicom", "highdicom")
UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, MemoryError,
    RuntimeError, NotImplementedError, AssertionError, StopIteration,  # the last where compressed frames run out
)  # fmt: skip
_SILENT = 100  # above every level of a log
# What the images at one place of a series differ in: a number, or a word of the standard; no date, no free text.
_TRAITS = (
    "EchoTime", "EffectiveEchoTime", "EchoNumbers", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "DiffusionBValue", "AcquisitionNumber", "ImageType",
    "FrameType",
)  # fmt: skip
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_DECOMPRESS = "decompress the files, as by `gdcmconv --raw IN OUT`"


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice of a series.

    Attributes:
        file: Holds it.
        index: Of the frame in its file, from 0.
        number: Its instance number, or that of the frame in a multi-frame object, for messages; 0 where none is stored.
        position: Centre of the first pixel, mm, [3] towards left, back and head.
        axes: Unit vectors along which columns and rows are counted, [2, 3].
        sides: Of a pixel along these axes, mm.
        size: Columns and rows.
        traits: What tells it from another frame at its place.
        scaling: Dataset with the slope and intercept, or the lookup table, of its pixels.
    """

    file: Path
    index: int
    number: int
    position: FloatArray
    axes: FloatArray
    sides: tuple[float, float]
    size: tuple[int, int]
    traits: dict[str, str]
    scaling: Any


def require_dicom(what: object) -> None:
    """Refuse DICOM where the packages that read it are missing.

    Args:
        what: The file or folder that is DICOM.

    Raises:
        InputError: Names the extra.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        rule = f"DICOM is read by {' and '.join(PACKAGES)}"
        cure = "pip install 'secl[dicom]', or give NIfTI files"
        raise InputError(what, rule=rule, got=f"no {' and no '.join(missing)}", cure=cure)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and logs of pydicom and highdicom, which quote headers; what matters is a fault of ours."""
    logs = [logging.getLogger(name) for name in PACKAGES]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(_SILENT)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def read_object(path: Path, what: object, *, pixels: bool = False, only: Sequence[str] | None = None) -> Any:
    """One object of a file.

    Args:
        path: The file.
        what: Its name in messages.
        pixels: Read these as well.
        only: Attributes to read; None: all.

    Raises:
        InputError: It cannot be read.
    """
    import pydicom

    try:
        return pydicom.dcmread(
            path, stop_before_pixels=not pixels, force=True, specific_tags=list(only) if only else None
        )
    except UNREADABLE as error:
        raise _unreadable(what, "the file can be read to its end", error) from error


@quiet()
def read_frames(files: Sequence[Path], what: str) -> list[Frame]:
    """The slices of a series from its headers alone, in the order of the files.

    Args:
        files: Of one series; multi-frame objects are taken apart by their functional groups.
        what: Name of the series in messages.

    Raises:
        InputError: The images are coloured, or do not say where they lie.
    """
    frames: list[Frame] = []
    for file in files:
        about = read_object(file, what)
        try:
            frames += _frames(about, file, what)
        except UNREADABLE as error:
            if isinstance(error, InputError):
                raise
            raise _unreadable(what, "headers as the standard has them", error) from error
    return frames


@quiet()
def read_pixels(frames: Sequence[Frame], what: str) -> npt.NDArray[np.float32]:
    """Intensities after slope and intercept, bright where there is much signal, whatever the photometric scale.

    Args:
        frames: In the order of the result.
        what: Name of the series in messages.

    Returns:
        float32 `[column, row, frame]`.

    Raises:
        InputError: No decoder for the compression, or pixels that are not there.
    """
    columns, rows = frames[0].size
    voxels = np.empty((len(frames), rows, columns), np.float32)
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.file, []).append(place)
    for file, own in places.items():
        stored = _decoded(file, f"{what}, image {frames[own[0]].number}")
        for place in own:
            voxels[place] = _scaled(stored[frames[place].index], frames[place], what)
    return voxels.transpose(2, 1, 0)


def _frames(about: Any, file: Path, what: str) -> list[Frame]:
    colours = int(about.get("SamplesPerPixel") or 1)
    scale = str(about.get("PhotometricInterpretation") or "MONOCHROME2")
    if colours != 1 or not scale.startswith("MONOCHROME"):
        cure = "convert the colours to grey, or choose another series with --series"
        raise InputError(what, rule="images are grey (MONOCHROME1 or 2)", got=f"colours ({scale})", cure=cure)
    if "MOSAIC" in (about.get("ImageType") or ()):
        cure = "convert it to NIfTI, as by `dcm2niix -z y FOLDER`, which cuts it up"
        raise InputError(what, rule="an image holds one slice", got="a mosaic of many", cure=cure)
    count = int(about.get("NumberOfFrames") or 1)
    own = about.get("PerFrameFunctionalGroupsSequence")
    if not own:
        if count > 1:
            rule = "the frames of one object say where each lies, in functional groups"
            cure = "convert it to NIfTI with the tool of its maker"
            raise InputError(what, rule=rule, got=f"{count} frames without them", cure=cure)
        return [_frame([about], about, file, 0, int(about.get("InstanceNumber") or 0), what)]
    if len(own) != count:
        rule, got = "an object has a functional group for each frame", f"{len(own)} for {count} frames"
        raise InputError(what, rule=rule, got=got, cure="export the series again, or choose another with --series")
    shared = [item for group in about.get("SharedFunctionalGroupsSequence") or [] for item in _items(group)]
    return [_frame([*_items(group), *shared, about], about, file, n, n + 1, what) for n, group in enumerate(own)]


def _items(group: Any) -> list[Any]:
    """The first dataset of each sequence of a functional group."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def _frame(layers: Sequence[Any], about: Any, file: Path, index: int, number: int, what: str) -> Frame:
    """A frame whose attributes are those of the first layer that has them."""

    def find(name: str) -> Any:
        values = (layer.get(name) for layer in layers)
        return next((value for value in values if value not in (None, "", [])), None)

    place = {name: find(name) for name in _GEOMETRY}
    if absent := [name for name, value in place.items() if value is None]:
        cure = "choose another series with --series, or convert it to NIfTI with an affine that you know"
        raise InputError(what, rule="images say where they lie", got=f"no {', '.join(absent)}", cure=cure)
    position, axes, (between_rows, between_columns) = (np.array(place[name], np.float64) for name in _GEOMETRY)
    found = {name: find(name) for name in _TRAITS}
    scaling = next((layer for layer in layers if "RescaleSlope" in layer or "ModalityLUTSequence" in layer), about)
    return Frame(
        file, index, number, position.reshape(3), axes.reshape(2, 3), (float(between_columns), float(between_rows)),
        (int(about.Columns), int(about.Rows)), {name: str(value) for name, value in found.items() if value is not None},
        scaling,
    )  # fmt: skip


def _decoded(file: Path, what: str) -> npt.NDArray[Any]:
    """Stored values [frame, row, column] of a file, those of MONOCHROME1 turned round."""
    about = read_object(file, what, pixels=True)
    _require_decoder(about, what)
    try:
        stored: npt.NDArray[Any] = about.pixel_array
        stored = stored[None] if stored.ndim == 2 else stored
        if about.PhotometricInterpretation == "MONOCHROME1":  # the smallest value is white
            top = -1 if int(about.get("PixelRepresentation") or 0) else 2 ** int(about.BitsStored) - 1
            stored = top - stored.astype(np.int64)
        return stored
    except UNREADABLE as error:
        raise _unreadable(what, "its pixels can be decoded", error) from error


def _require_decoder(about: Any, what: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = about.file_meta.get("TransferSyntaxUID") if hasattr(about, "file_meta") else None
    if syntax is None or not syntax.is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
        wanted = [] if decoder.is_available else decoder.missing_dependencies
    except NotImplementedError:
        wanted = ["no package"]
    if wanted:
        needed = "; ".join(text.partition("requires ")[2] or text for text in wanted)
        cure = f"pip install what one of these names: {needed}; or {_DECOMPRESS}"
        raise InputError(what, rule="a decoder for its compression is installed", got=syntax.name, cure=cure)


def _scaled(stored: npt.NDArray[Any], frame: Frame, what: str) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_modality_lut

    if stored.shape != frame.size[::-1]:
        got = f"{' x '.join(map(str, stored.shape))} pixels where the header has {frame.size[1]} x {frame.size[0]}"
        raise InputError(what, rule="pixels are as many as the header says", got=got, cure="export the series again")
    try:
        scaled: npt.NDArray[Any] = apply_modality_lut(stored, frame.scaling)
    except UNREADABLE as error:
        raise _unreadable(what, "slope and intercept are numbers", error) from error
    return scaled


def _unreadable(what: object, rule: str, error: Exception) -> InputError:
    got = error.strerror if isinstance(error, OSError) and error.strerror else f"a {type(error).__name__} of its reader"
    return InputError(what, rule=rule, got=got, cure="export or copy it again")
