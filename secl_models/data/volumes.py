# SPDX-License-Identifier: Apache-2.0
"""One case as arrays: reading image and label with every check, writing a segmentation on the same grid."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from secl_models.data.files import write_bytes
from secl_models.options.errors import InputError

if TYPE_CHECKING:  # layouts imports this module
    from secl_models.data.cases import Case, DataSet

NIFTI_SUFFIXES = (".nii.gz", ".nii")
H5_SUFFIX = ".h5"
# Share of the smallest voxel side: two headers of one scan differ by rounding, a shifted label by far more.
GRID_TOLERANCE = 0.05
MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI unit codes of metre and micron; all others are read as mm
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """An image with its label on one grid; the last spatial axis is the slice axis.

    Attributes:
        case: Where it came from.
        image: Intensities as stored, float32 `[C, *spatial]`.
        label: Class index 0..K, int64 `[*spatial]`; None when the case has no label.
        affine: Voxel index to world, float64 `[4, 4]`; the identity when the file stores none.
        spacing: Voxel sides in mm, one per spatial axis; None when the file stores none (h5).
    """

    case: Case
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64] | None
    affine: FloatArray
    spacing: tuple[float, ...] | None


@dataclass(frozen=True)
class _Stored:
    """What one file holds: an array, channels first, and its grid."""

    array: npt.NDArray[Any]  # [C, *spatial]
    affine: FloatArray
    spacing: tuple[float, ...] | None


def file_stem(path: Path) -> str:
    """The file name without `.nii.gz`, `.nii` or `.h5`."""
    for suffix in (*NIFTI_SUFFIXES, H5_SUFFIX):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def load_volume(case: Case, data: DataSet) -> Volume:
    """Read the image and, where the case has one, the label.

    Args:
        case: A case of `data`.
        data: Gives the classes, which map label values to class indices, and the number of channels.

    Raises:
        InputError: A file is missing, unreadable or truncated; an intensity is not finite; the rank,
            channels, shape, affine or a label value is not what it should be. The message names the file.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> data = read_data_set(Path("phantom"))
        >>> [round(size, 3) for size in load_volume(data.cases[0], data).spacing]  # mm
        [1.8, 1.8, 8.0]
    """
    volume, faults = examine_case(case, data)
    if volume is None:
        raise faults[0]
    return volume


def load_volumes(data: DataSet, cases: Iterable[Case]) -> list[Volume]:
    """Read cases one after the other; the first fault is raised, as by `load_volume`."""
    return [load_volume(case, data) for case in cases]


def examine_case(case: Case, data: DataSet) -> tuple[Volume | None, list[InputError]]:
    """Read a case and collect every fault it has.

    Args:
        case: A case of `data`.
        data: Gives the classes and the number of channels.

    Returns:
        The volume and no faults, or None and at least one fault.
    """
    faults: list[InputError] = []
    image: _Stored | None = None
    label: _Stored | None = None
    index: npt.NDArray[np.int64] | None = None
    with _collect(faults):
        image = _read_image(case, len(data.modality))
    if image is not None:
        with _collect(faults):
            _require_finite(image.array, case.image[0])
    if case.label is not None:
        with _collect(faults):
            label = _read_file(case.label, "label")
            index = _class_index(_single_channel(label.array, case.label), data.classes, case.label)
        if image is not None and label is not None:
            with _collect(faults):
                _require_same_grid(image, label, case.image[0], case.label)
    if image is None or faults:
        return None, faults
    return Volume(case, image.array, index, image.affine, image.spacing), faults


def label_values(path: Path) -> set[int]:
    """The distinct whole numbers above 0 in a label file; other values are for `load_volume` to refuse.

    Args:
        path: A NIfTI or h5 file.

    Raises:
        InputError: The file cannot be read.
    """
    values = np.unique(_read_file(path, "label").array).astype(np.float64)
    return {int(value) for value in values if value > 0 and value == np.rint(value)}


def count_channels(files: tuple[Path, ...]) -> int:
    """How many channels the files of one image hold together, from the headers alone.

    Args:
        files: One file per channel, or one NIfTI file `[*spatial, C]`.

    Raises:
        InputError: A file cannot be read.
    """
    if len(files) > 1 or files[0].name.endswith(H5_SUFFIX):
        return len(files)
    shape = _nifti_header(files[0]).shape
    return int(shape[3]) if len(shape) == 4 else 1


def save_segmentation(path: Path, label: npt.NDArray[Any], like: Path | Volume, classes: Mapping[int, str]) -> None:
    """Write a segmentation as NIfTI on the grid of an image: affine, spacing and form codes bit for bit.

    Args:
        path: Target, `.nii.gz` or `.nii`; it appears whole or not at all.
        label: Class index 0..K, `[*spatial]`.
        like: The image that was segmented; an h5 image has no grid, so its segmentation gets the identity.
        classes: Label value to name; class index i is written as the i-th smallest value.

    Raises:
        InputError: The suffix is not NIfTI, the shape differs from the image's, or an index is not a class.
    """
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise InputError(
            path,
            rule="a segmentation is NIfTI",
            got=path.suffix or "no suffix",
            cure="end the name in .nii.gz",
        )
    values = np.array([0, *sorted(classes)])
    values = values.astype(_smallest_type(int(values.max())))
    if label.size and not 0 <= label.min() <= label.max() <= len(classes):
        got = f"{label.min()} to {label.max()}"
        raise InputError(
            path, rule=f"class indices are 0 to {len(classes)}", got=got, cure="pass the classes trained on"
        )
    source = like if isinstance(like, Path) else like.case.image[0]
    kind, header, shape = nifti_like(source, values.dtype)
    if label.shape != shape:
        rule, got = "segmentation and image share one shape", f"{label.shape} and {shape}"
        raise InputError(source, rule=rule, got=got, cure="resample the prediction back")
    # An affine of None: nibabel leaves the stored form fields alone.
    payload = kind(values[label], np.eye(4) if header is None else None, header).to_bytes()
    # mtime 0: equal segmentations are equal files
    write_bytes(path, gzip.compress(payload, 6, mtime=0) if path.name.endswith(".gz") else payload)


def nifti_like(source: Path, kind: npt.DTypeLike) -> tuple[Any, Any, tuple[int, ...]]:
    """What puts an array onto the grid of an image.

    Args:
        source: The image; of an h5 file only the shape is known.
        kind: Type of the voxels to write.

    Returns:
        The nibabel class; a header with the grid fields of `source` and none of its intensity fields, None for h5;
        the spatial shape.

    Raises:
        InputError: The image cannot be read.
    """
    if source.name.endswith(H5_SUFFIX):
        return nib.Nifti1Image, None, tuple(_read_file(source, "image").array.shape[1:])
    template = _nifti_header(source)
    header = template.header.copy()
    header.extensions.clear()  # may hold the patient's name
    header.set_data_dtype(kind)
    blank = header.default_structarr()
    for name in ("scl_slope", "scl_inter", "cal_max", "cal_min", "intent_code", "descrip", "aux_file", "db_name"):
        if name in blank.dtype.names:  # NIfTI-2 has no db_name
            header[name] = blank[name]
    return type(template), header, tuple(template.shape[:3])


def _smallest_type(largest: int) -> type[np.integer[Any]]:
    return np.uint8 if largest < 256 else np.int16 if largest < 32768 else np.int32


@contextlib.contextmanager
def _collect(faults: list[InputError]) -> Iterator[None]:
    try:
        yield
    except InputError as fault:
        faults.append(fault)


def _read_image(case: Case, channels: int) -> _Stored:
    """All channels of a case, float32 `[C, *spatial]`."""
    files = [_read_file(path, "image") for path in case.image]
    for path, stored in zip(case.image[1:], files[1:], strict=True):
        _require_same_grid(files[0], stored, case.image[0], path)
    found = sum(stored.array.shape[0] for stored in files)
    if found != channels:
        rule = f"every image of the data set has {channels} channel(s)"
        raise InputError(case.image[0], rule=rule, got=found, cure="complete the channels or correct dataset.json")
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite and is refused as such
        parts = [stored.array.astype(np.float32) for stored in files]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return _Stored(array, files[0].affine, files[0].spacing)


def _read_file(path: Path, key: str) -> _Stored:
    """One file, channels first; `key` picks the array of an h5 file."""
    if not path.is_file():
        raise InputError(path, rule="the file exists", got="no such file", cure="correct the path or restore the file")
    if path.name.endswith(H5_SUFFIX):
        return _read_h5(path, key)
    image = _open_nifti(path)
    try:
        array = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    _require_numbers(array, path, ranks=(2, 3, 4))
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise InputError(path, rule="the affine is invertible", got=affine.tolist(), cure="write the header anew")
    scale = MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)  # the lowest three bits: space
    sides = _voxel_sides(affine)[: array.ndim - 1]
    return _Stored(array, affine, tuple(float(side) * scale for side in sides))


def _voxel_sides(affine: FloatArray) -> FloatArray:
    sides: FloatArray = np.linalg.norm(affine[:3, :3], axis=0)
    return sides


def _open_nifti(path: Path) -> Any:
    """A nibabel image that was read to the end of its file, typed Any because nibabel's annotations are partial."""
    image = _nifti_header(path)
    if not path.name.endswith(".gz"):
        return image
    try:  # which verifies the checksum; nibabel stops before it
        return type(image).from_bytes(gzip.decompress(path.read_bytes()))
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _nifti_header(path: Path) -> Any:
    """A nibabel image of which nothing but the header was read."""
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise InputError(
            path,
            rule="images are .nii.gz, .nii or .h5",
            got=path.suffix or "no suffix",
            cure="convert the file",
        )
    try:
        image: Any = nib.load(path, mmap=False)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(path, rule="the file is NIfTI", got=type(image).__name__, cure="convert it to NIfTI")
    return image


def _read_h5(path: Path, key: str) -> _Stored:
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise InputError(
                    path, rule=f"an h5 file holds {key!r}", got=sorted(file), cure="write the missing array"
                )
            array = np.asarray(file[key])
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise _unreadable(path, error) from error
    _require_numbers(array, path, ranks=(2, 3))
    if array.ndim == 3:
        array = np.moveaxis(array, 0, -1)  # stored [Z, H, W]
    return _Stored(array[None], np.eye(4), None)


def _unreadable(path: Path, error: Exception) -> InputError:
    got = " ".join(str(error).split()) or type(error).__name__
    return InputError(path, rule="the file can be read to its end", got=got, cure="copy or download it again")


def _require_numbers(array: npt.NDArray[Any], path: Path, *, ranks: tuple[int, ...]) -> None:
    if array.dtype.kind not in "buif":
        raise InputError(path, rule="voxels are real numbers", got=array.dtype, cure="convert it to a scalar image")
    if array.ndim not in ranks:
        rule = f"an image has {' or '.join(map(str, ranks))} axes"
        raise InputError(path, rule=rule, got=array.shape, cure="store one image per file")
    if array.size == 0:
        raise InputError(path, rule="an image has voxels", got=array.shape, cure="leave the empty file out")


def _require_finite(array: npt.NDArray[np.float32], path: Path) -> None:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        rule = "intensities are finite float32 numbers"
        got = f"{bad} of {array.size} voxels NaN or infinite"
        raise InputError(path, rule=rule, got=got, cure="replace them, for example by the smallest intensity")


def _single_channel(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.shape[0] != 1:
        raise InputError(path, rule="a label has one channel", got=array.shape[0], cure="store one value per voxel")
    label: npt.NDArray[Any] = array[0]
    return label


def _class_index(stored: npt.NDArray[Any], classes: Mapping[int, str], path: Path) -> npt.NDArray[np.int64]:
    """Label values to class indices: 0 stays 0, the i-th smallest value becomes i."""
    values = np.array([0, *sorted(classes)])
    index = np.minimum(np.searchsorted(values, stored), len(values) - 1)
    strange = stored[values[index] != stored]
    if strange.size:
        found = ", ".join(f"{value:g}" for value in np.unique(strange)[:5])
        rule = f"label values are among {', '.join(map(str, values))}"
        got = f"{found} in {strange.size} voxels"
        raise InputError(path, rule=rule, got=got, cure="correct the label or list the value among the classes")
    return index.astype(np.int64, copy=False)


def _require_same_grid(first: _Stored, second: _Stored, first_path: Path, second_path: Path) -> None:
    """Equal shapes, and no corner of the grid further apart than a small share of a voxel."""
    shapes = first.array.shape[1:], second.array.shape[1:]
    if shapes[0] != shapes[1]:
        got, rule = f"{shapes[1]} and {shapes[0]}", f"the shape is that of {first_path.name}"
        raise InputError(second_path, rule=rule, got=got, cure="resample the label to the image")
    extent = np.array([*(size - 1 for size in shapes[0]), *[0] * (3 - len(shapes[0]))])
    corners = np.array(np.meshgrid(*([0, size] for size in extent))).reshape(3, -1).T
    difference = first.affine - second.affine
    gap = np.abs(corners @ difference[:3, :3].T + difference[:3, 3]).max()
    if gap > GRID_TOLERANCE * _voxel_sides(first.affine).min():
        rule, got = f"the affine is that of {first_path.name}", f"corners up to {gap:.3g} mm apart"
        raise InputError(second_path, rule=rule, got=got, cure="resample the label to the image, or copy its header")
