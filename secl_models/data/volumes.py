# SPDX-License-Identifier: Apache-2.0
"""One case as arrays: reading image and label with every check, writing a segmentation on the same grid."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt

from secl_models.data.files import write_bytes
from secl_models.data.formats import H5_SUFFIX, NIFTI_SUFFIXES, require_readable, suffix_of
from secl_models.data.grid import FloatArray, grid_of, voxel_sides
from secl_models.data.labels import class_index, opened, value_type
from secl_models.data.nifti import (
    UNREADABLE,
    NiftiFile,
    nifti_like,
    open_nifti,
    read_voxels,
    scanner_header,
    to_bytes,
    unreadable,
)
from secl_models.options.errors import InputError
from secl_models.options.spacing import AFFINE, AUTO

if TYPE_CHECKING:  # layouts imports this module
    from secl_models.data.cases import Case, DataSet

# Share of the smallest voxel side: two headers of one scan differ by rounding, a shifted label by far more.
GRID_TOLERANCE = 0.05


@dataclass(frozen=True)
class Volume:
    """An image with its label on one grid; the last spatial axis is the slice axis.

    Attributes:
        case: Where it came from.
        image: Intensities as stored, float32 `[C, *spatial]`.
        label: Class index 0..K, -1 where nothing is said, -2 where background or a structure that the case does not
            label is, int64 `[*spatial]`; None when the case has no label.
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
        image = _read_image(case, len(data.modality), data.spacing_from)
    if image is not None:
        with _collect(faults):
            require_finite(image.array, case.image[0])
    if case.label is not None:
        with _collect(faults):
            label = _read_file(case.label, "label", data.spacing_from)
            if image is not None:
                _require_other(image, label, case)
                label = _like_rank(label, image.array.ndim)
            index = class_index(_single_channel(label.array, case.label), data.classes, case.label, data.ignored)
            index = opened(index, case.unlabeled, data.classes, case.label)
        if image is not None and label is not None:
            with _collect(faults):
                _require_same_grid(image, label, case.image[0], case.label)
    if image is None or faults:
        return None, faults
    return Volume(case, image.array, index, image.affine, image.spacing), faults


def read_label(path: Path) -> npt.NDArray[Any]:
    """The values of a label file as stored, `[*spatial]`.

    Args:
        path: A NIfTI or h5 file.

    Raises:
        InputError: The file cannot be read or has several channels.
    """
    # The spacing does not matter here; what contradicts itself is reported when the case is read.
    return _single_channel(_read_file(path, "label", AFFINE).array, path)


def count_channels(files: tuple[Path, ...]) -> int:
    """How many channels the files of one image hold together, from the headers alone.

    Args:
        files: One file per channel, or one NIfTI file `[*spatial, C]`.

    Raises:
        InputError: A file cannot be read.
    """
    if len(files) > 1 or suffix_of(files[0]) == H5_SUFFIX:
        return len(files)
    shape = _open(files[0]).shape
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
    if suffix_of(path) not in NIFTI_SUFFIXES:
        raise InputError(
            path,
            rule="a segmentation is NIfTI",
            got=path.suffix or "no suffix",
            cure="end the name in .nii.gz",
        )
    values = np.array([0, *sorted(classes)])
    values = values.astype(value_type(int(values.max())))
    if label.size and not 0 <= label.min() <= label.max() <= len(classes):
        got = f"{label.min()} to {label.max()}"
        raise InputError(
            path, rule=f"class indices are 0 to {len(classes)}", got=got, cure="pass the classes trained on"
        )
    save_map(path, values[label], like)


def save_map(path: Path, values: npt.NDArray[Any], like: Path | Volume) -> None:
    """Write one number for every voxel as NIfTI on the grid of an image, with the type of the array.

    Args:
        path: Target, `.nii.gz` or `.nii`; it appears whole or not at all.
        values: `[*spatial]`.
        like: The image, as for `save_segmentation`.

    Raises:
        InputError: The shape differs from the image's.
    """
    kind, header, shape = grid_like(like, values.dtype)
    if values.shape != shape:
        rule, got = "segmentation and image share one shape", f"{values.shape} and {shape}"
        what = like if isinstance(like, Path) else like.case.what
        raise InputError(what, rule=rule, got=got, cure="resample the prediction back")
    payload = to_bytes(kind, values, header)
    # mtime 0: equal segmentations are equal files
    packed = suffix_of(path).endswith(".gz")
    write_bytes(path, gzip.compress(payload, 6, mtime=0) if packed else payload)


def grid_like(source: Path | Volume, kind: npt.DTypeLike) -> tuple[type[Any], Any, tuple[int, ...]]:
    """What puts an array onto the grid of an image.

    Args:
        source: The image, or its file; of an h5 file only the shape is known.
        kind: Type of the voxels to write.

    Returns:
        The nibabel class; a header with the grid fields of `source` and none of its intensity fields, None for h5;
        the spatial shape.

    Raises:
        InputError: The image cannot be read.
    """
    if isinstance(source, Volume):
        if source.case.series is not None:
            return nib.Nifti1Image, scanner_header(source.affine, kind), source.image.shape[1:]
        source = source.case.image[0]
    if suffix_of(source) == H5_SUFFIX:
        return nib.Nifti1Image, None, tuple(_read_h5(source, "image").array.shape[1:])
    opened = _open(source)
    return (*nifti_like(opened, kind), opened.shape[:3])


def require_finite(array: npt.NDArray[np.float32], what: object) -> None:
    """Refuse an image with NaN or infinite intensities.

    Args:
        array: Intensities.
        what: The image, for the message.

    Raises:
        InputError: Says how many.
    """
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        rule = "intensities are finite float32 numbers"
        got = f"{bad} of {array.size} voxels NaN or infinite"
        raise InputError(what, rule=rule, got=got, cure="replace them, for example by the smallest intensity")


@contextlib.contextmanager
def _collect(faults: list[InputError]) -> Iterator[None]:
    try:
        yield
    except InputError as fault:
        faults.append(fault)


def _read_image(case: Case, channels: int, spacing_from: str) -> _Stored:
    """All channels of a case, float32 `[C, *spatial]`."""
    files = [_read_file(path, "image", spacing_from) for path in case.image]
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


def _read_file(path: Path, key: str, spacing_from: str = AUTO) -> _Stored:
    """One file, channels first; `key` picks the array of an h5 file."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise InputError(path, rule="the file exists", got=got, cure="correct the path or restore the file")
    if suffix_of(path) == H5_SUFFIX:
        return _read_h5(path, key)
    opened = _open(path)
    _require_rank(opened.shape, path, ranks=(2, 3, 4))
    axes = min(3, len(opened.shape))
    affine, spacing = grid_of(opened.image.header, opened.header, axes, path, spacing_from)
    array = read_voxels(opened)
    _require_numbers(array, path)
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return _Stored(array, affine, spacing)


def _open(path: Path) -> NiftiFile:
    require_readable(path)
    return open_nifti(path)


def _read_h5(path: Path, key: str) -> _Stored:
    try:
        with h5py.File(path, "r") as file:
            stored = file.get(key)
            if not isinstance(stored, h5py.Dataset):
                raise InputError(
                    path, rule=f"an h5 file holds {key!r}", got=sorted(file), cure="write the missing array"
                )
            _require_rank(stored.shape or (), path, ranks=(2, 3))
            array = np.asarray(stored)
    except (*UNREADABLE, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(path, error) from error
    _require_numbers(array, path)
    if array.ndim == 3:
        array = np.moveaxis(array, 0, -1)  # stored [Z, H, W]
    return _Stored(array[None], np.eye(4), None)


def _require_rank(shape: tuple[int, ...], path: Path, *, ranks: tuple[int, ...]) -> None:
    if len(shape) not in ranks:
        rule = f"an image has {' or '.join(map(str, ranks))} axes, channels last"
        cure = "store one image per file, its channels along the fourth axis"
        raise InputError(path, rule=rule, got=f"shape {shape}", cure=cure)
    if 0 in shape:
        raise InputError(path, rule="an image has voxels", got=f"shape {shape}", cure="leave the empty file out")


def _require_numbers(array: npt.NDArray[Any], path: Path) -> None:
    if array.dtype.kind in "buif":
        return
    cure = "convert it to a scalar image"
    if array.dtype.names:
        cure = "convert the colours to grey, or write one file for each of them"
    elif array.dtype.kind == "c":
        cure = "write the magnitude, or magnitude and phase as two channels"
    raise InputError(path, rule="voxels are real numbers", got=array.dtype, cure=cure)


def _single_channel(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.shape[0] != 1:
        raise InputError(path, rule="a label has one channel", got=array.shape[0], cure="store one value per voxel")
    label: npt.NDArray[Any] = array[0]
    return label


def _require_other(image: _Stored, label: _Stored, case: Case) -> None:
    """A label is not the image itself, under whatever name."""
    same = image.array.shape == label.array.shape and np.array_equal(image.array, label.array)
    if same and label.array.min() != label.array.max():
        got, cure = f"the voxels of {case.image[0]}", "name the label file"
        raise InputError(case.label, rule="a label is not the image itself", got=got, cure=cure)


def _like_rank(label: _Stored, rank: int) -> _Stored:
    """A label of one slice as the image has it: `[H, W]` and `[H, W, 1]` are one grid."""
    array, axes = label.array, label.array.ndim
    if (rank, axes) == (3, 4) and array.shape[-1] == 1:
        return _Stored(array[..., 0], label.affine, label.spacing)
    return _Stored(array[..., None], label.affine, label.spacing) if (rank, axes) == (4, 3) else label


def _require_same_grid(first: _Stored, second: _Stored, first_path: Path, second_path: Path) -> None:
    """Equal shapes, and no corner of the grid further apart than a small share of a voxel."""
    cure = f"resample it to {first_path.name}"
    shapes = first.array.shape[1:], second.array.shape[1:]
    if shapes[0] != shapes[1]:
        got, rule = f"{shapes[1]} and {shapes[0]}", f"the shape is that of {first_path.name}"
        raise InputError(second_path, rule=rule, got=got, cure=cure)
    extent = np.array([*(size - 1 for size in shapes[0]), *[0] * (3 - len(shapes[0]))])
    corners = np.array(np.meshgrid(*([0, size] for size in extent))).reshape(3, -1).T
    difference = first.affine - second.affine
    gap = np.abs(corners @ difference[:3, :3].T + difference[:3, 3]).max()
    if gap > GRID_TOLERANCE * voxel_sides(first.affine).min():
        rule, got = f"the affine is that of {first_path.name}", f"corners up to {gap:.3g} mm apart"
        raise InputError(second_path, rule=rule, got=got, cure=f"{cure}, or copy its header")
