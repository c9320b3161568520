# SPDX-License-Identifier: Apache-2.0
"""DICOM series written from arrays, under a patient whose name is found wherever it leaks to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = {
    "PatientName": "Quizzlewump^Zephyrine", "PatientID": "PID-7731904", "OtherPatientIDs": "OPID-5528313",
    "PatientBirthDate": "19031217", "StudyDate": "19871104", "SeriesDate": "19871105", "AcquisitionDate": "19871106",
    "ContentDate": "19871107", "StudyTime": "030917", "PatientSex": "F", "ReferringPhysicianName": "Drumbletoft^Oswin",
    "AccessionNumber": "ACC-66120", "InstitutionName": "Marshwiggle Hospital", "StudyID": "STU-4471",
}  # fmt: skip
SECRETS = (
    "quizzlewump", "zephyrine", "7731904", "5528313", "19031217", "1987110", "030917", "drumbletoft", "66120",
    "marshwiggle", "4471",
)  # fmt: skip
AXIAL = ((1, 0, 0), (0, 1, 0))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
CORONAL = ((1, 0, 0), (0, 0, -1))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, 0.8))


def header(index: int = 0, uid: str = "1.2.3.4", study: str = "1.2.3", **attributes: Any) -> Dataset:
    """What every object of the patient has."""
    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    about.SOPClassUID, about.SOPInstanceUID = MRImageStorage, f"{uid}.{index + 1}"
    about.SeriesInstanceUID, about.StudyInstanceUID, about.FrameOfReferenceUID = uid, study, f"{study}.9"
    about.Modality, about.SeriesNumber, about.SeriesDescription = "MR", 4, "t2 axial"
    about.InstanceNumber, about.AcquisitionNumber, about.Manufacturer = index + 1, 1, "phantom"
    about.PositionReferenceIndicator, about.BodyPartExamined = "", "HEART"
    for name, value in {**PATIENT, **attributes}.items():
        setattr(about, name, value)
    return about


def pixels(about: Dataset, stored: npt.NDArray[Any], **attributes: Any) -> Dataset:
    """Put stored values [..., row, column] into an object."""
    about.Rows, about.Columns = stored.shape[-2:]
    about.SamplesPerPixel, about.PhotometricInterpretation = 1, "MONOCHROME2"
    about.BitsAllocated = about.BitsStored = stored.dtype.itemsize * 8
    about.HighBit, about.PixelRepresentation = about.BitsStored - 1, int(stored.dtype.kind == "i")
    about.PixelData = stored.tobytes()
    for name, value in attributes.items():
        setattr(about, name, value)
    return about


def write(path: Path, about: Dataset) -> Path:
    """A file, whatever the standard says of its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID
    pydicom.dcmwrite(path, about, enforce_file_format=True)
    return path


def numbers(values: Any) -> list[str]:
    """Decimal strings as scanners write them."""
    return [f"{float(value):.8g}" for value in np.ravel(values)]


def write_series(
    folder: Path,
    voxels: npt.NDArray[Any],
    *,
    axes: Sequence[Sequence[float]] = AXIAL,
    origin: Sequence[float] = (-40.0, -30.0, 12.5),
    sides: tuple[float, float, float] = (1.5, 1.25, 8.0),
    step: Sequence[float] | None = None,
    keep: Sequence[int] | None = None,
    backwards: bool = False,
    suffix: str = ".dcm",
    **attributes: Any,
) -> npt.NDArray[np.float64]:
    """Write `voxels` [column, row, slice] as a slice a file.

    Args:
        folder: For the files.
        voxels: Stored values.
        axes: Direction of columns and of rows, LPS.
        origin: Of the first voxel, LPS.
        sides: Along column, row and slice, mm.
        step: From slice to slice, LPS; None: along the normal.
        keep: Slices that are written; None: all.
        backwards: The last slice has the first name and number.
        suffix: Of the names.
        attributes: Of every header; a function gets the number of the slice.

    Returns:
        The affine in RAS, worked out by the definition of ImagePositionPatient.
    """
    across, down = np.array(axes, np.float64)
    onwards = np.array(step) if step is not None else np.cross(across, down) * sides[2]
    count = voxels.shape[2]
    for place in range(count) if keep is None else keep:
        index = count - 1 - place if backwards else place
        own = {name: value(place) if callable(value) else value for name, value in attributes.items()}
        about = pixels(header(index), np.ascontiguousarray(voxels[:, :, place].T))
        about.ImagePositionPatient = numbers(np.array(origin) + place * onwards)
        about.ImageOrientationPatient = numbers([across, down])
        about.PixelSpacing = numbers([sides[1], sides[0]])  # between rows first
        about.SliceThickness = f"{sides[2]:.6g}"
        for name, value in own.items():
            setattr(about, name, value)
        about.SOPInstanceUID = f"{about.SeriesInstanceUID}.{index + 1}"
        write(folder / f"IM{index:04}{suffix}", about)
    affine = np.eye(4)
    affine[:3] = np.stack([across * sides[0], down * sides[1], onwards, np.array(origin)], axis=1)
    ras: npt.NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return ras


def series_of_nifti(folder: Path, source: Path) -> npt.NDArray[np.float64]:
    """The voxels of a NIfTI file as a series, in steps of intensity that 16 bits hold; returns those intensities."""
    image = nib.Nifti1Image.from_filename(source)
    values, affine = np.asarray(image.dataobj, np.float64), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    low, slope = float(f"{values.min():.9g}"), float(f"{np.ptp(values) / 60000:.9g}")
    stored = np.round(np.maximum(values - low, 0) / slope).astype(np.uint16)
    mirrored = np.linalg.det(affine[:3, :3]) < 0  # slices are counted along the normal
    start = affine @ _reversed(values.shape[2]) if mirrored else affine
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    write_series(
        folder, stored[:, :, ::-1] if mirrored else stored, axes=(affine[:3, :2] / sides[:2]).T, origin=start[:3, 3],
        sides=(sides[0], sides[1], sides[2]), RescaleSlope=f"{slope:.9g}", RescaleIntercept=f"{low:.9g}",
    )  # fmt: skip
    return (stored * slope + low).astype(np.float64)


def _reversed(slices: int) -> npt.NDArray[np.float64]:
    turn = np.diag([1.0, 1.0, -1.0, 1.0])
    turn[2, 3] = slices - 1
    return turn


def write_enhanced(
    path: Path, voxels: npt.NDArray[Any], *, slopes: Sequence[float], heights: Sequence[float] | None = None
) -> npt.NDArray[np.float64]:
    """One multi-frame object, its frames stored from the last slice to the first, a slope for each; see above."""
    count = voxels.shape[2]
    heights = [8.0 * place for place in range(count)] if heights is None else heights
    about = header(SOPClassUID=EnhancedMRImageStorage, ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    pixels(about, np.ascontiguousarray(voxels.transpose(2, 1, 0)[::-1]), NumberOfFrames=count)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=["1.25", "1.5"], SliceThickness="8")]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=numbers(AXIAL))]
    about.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place in reversed(range(count)):
        frame = Dataset()
        frame.FrameContentSequence = [_item(FrameAcquisitionNumber=1, DimensionIndexValues=[count - place])]
        frame.PlanePositionSequence = [_item(ImagePositionPatient=numbers([-40, -30, 12.5 + heights[place]]))]
        scaling = _item(RescaleSlope=f"{slopes[place]:g}", RescaleIntercept="-10", RescaleType="US")
        frame.PixelValueTransformationSequence = [scaling]
        frames.append(frame)
    about.PerFrameFunctionalGroupsSequence = frames
    organization = generate_uid(entropy_srcs=[str(path.name)])
    about.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    write(path, about)
    return np.array([[-1.5, 0, 0, 40], [0, -1.25, 0, 30], [0, 0, 8, 12.5], [0, 0, 0, 1]])


def write_report(path: Path, modality: str = "SR") -> Path:
    """An object that is no image."""
    return write(path, header(uid="1.2.77", Modality=modality, SOPClassUID=CTImageStorage))


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item
