# SPDX-License-Identifier: Apache-2.0
"""One NIfTI file: its voxels read to the end, its header as it lies there, and arrays written on its grid."""

from __future__ import annotations

import io
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from secl_models.options.errors import InputError

UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, zlib.error,
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
_SILENT = 100  # above every level of a log
_PIECE = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_QUATERNION = "w2 should be positive"  # nibabel of the fourth part, which the others leave over
_INTENSITY_FIELDS = (
    "scl_slope", "scl_inter", "cal_max", "cal_min", "intent_code", "descrip", "aux_file", "db_name",
)  # fmt: skip
_GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file of which the header was read.

    Attributes:
        path: The file, of a pair the one that was named.
        image: For nibabel, which mends the header silently.
        header: The same header as it lies in the file.
        shape: Of the voxels, without axes of length one after the fourth.
    """

    path: Path
    image: Any
    header: Any
    shape: tuple[int, ...]

    @property
    def announced(self) -> int:
        """Bytes that the file of the voxels has at the least, uncompressed."""
        stored = self.image.dataobj
        return int(stored.offset) + math.prod(map(int, stored.shape)) * int(stored.dtype.itemsize)


def open_nifti(path: Path) -> NiftiFile:
    """Read the header of a file.

    Args:
        path: `.nii.gz`, `.nii`, or either file of a pair `.hdr` and `.img`, both of which are there.

    Raises:
        InputError: The file cannot be read, is no NIfTI, or announces voxels that it cannot hold.
    """
    try:
        with _silent():
            image: Any = nib.load(path, mmap=False)
            if not isinstance(image, nib.Nifti1Pair):
                got = f"{type(image).__name__}, which does not say how the patient lies"
                raise InputError(path, rule="the file is NIfTI", got=got, cure="convert it to NIfTI")
            with image.file_map["header" if "header" in image.file_map else "image"].get_prepare_fileobj(
                "rb"
            ) as stream:
                block = stream.read(image.header.template_dtype.itemsize)
            header = type(image.header)(block, image.header.endianness, check=False)
            shape = _shape(image.header, path)
            opened = NiftiFile(path, image, header, shape)
            _require_length(opened, _voxel_file(image), path)
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise _not_opened(path, error) from error
    return opened


def read_voxels(opened: NiftiFile) -> npt.NDArray[Any]:
    """The voxels of an opened file, scaled by its slope, of the shape that it has.

    Raises:
        InputError: The file ends too early, its checksum is wrong, or its voxels do not fit into memory.
    """
    image, path = opened.image, opened.path
    try:
        with _silent(), np.errstate(all="ignore"):  # what overflows is infinite, and refused as such
            if _voxel_file(image).suffix.lower() == ".gz":
                image = _unpacked(opened)
            array: npt.NDArray[Any] = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(path, error) from error
    return array.reshape(opened.shape)


def nifti_like(opened: NiftiFile, kind: npt.DTypeLike) -> tuple[type[Any], Any]:
    """What puts an array onto the grid of a file: the class, and its header without what belongs to the intensities.

    Args:
        opened: The image.
        kind: Type of the voxels to write.
    """
    header = opened.header.copy()
    single = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    if not header.is_single:
        header = single.header_class(header.binaryblock, header.endianness, check=False)
        header["magic"] = header.single_magic
    header.extensions.clear()  # may hold the patient's name
    header.set_data_dtype(kind)
    blank = header.default_structarr()
    for name in _INTENSITY_FIELDS:
        if name in blank.dtype.names:  # NIfTI-2 has no db_name
            header[name] = blank[name]
    return single, header


def scanner_header(affine: npt.NDArray[np.float64], kind: npt.DTypeLike) -> Any:
    """A header that puts voxels where the scanner saw them, in mm, by sform and qform.

    Args:
        affine: Voxel index to world, `[4, 4]`.
        kind: Type of the voxels to write.
    """
    with _silent():
        header: Any = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine).header
        header.set_data_dtype(kind)
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header.set_xyzt_units("mm")
    return header


def to_bytes(kind: type[Any], array: npt.NDArray[Any], header: Any) -> bytes:
    """An uncompressed file of an array, its grid bit for bit that of the header; None is the identity."""
    with _silent():
        if header is None:
            return bytes(kind(array, np.eye(4)).to_bytes())
        payload = bytearray(kind(array, None, header).to_bytes())
    for name in _GRID_FIELDS:  # nibabel mends what it holds for wrong
        offset, stored = header.template_dtype.fields[name][1], header[name].tobytes()
        payload[offset : offset + len(stored)] = stored
    return bytes(payload)


def unreadable(path: Path, error: Exception) -> InputError:
    """What a file that cannot be read is refused with.

    Args:
        path: The file.
        error: What reading it raised.
    """
    got = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PermissionError):
        return InputError(path, rule="the file may be read", got=error.strerror, cure=f"chmod u+r {str(path)!r}")
    if isinstance(error, MemoryError):
        return InputError(path, rule="its voxels fit into memory", got=got, cure="crop it, or use a larger machine")
    return InputError(path, rule="the file can be read to its end", got=got, cure="copy or download it again")


@contextmanager
def _silent() -> Iterator[None]:
    """Without nibabel's log and warnings, which name no file; what matters of them is a fault of ours."""
    log = nib.imageglobals.logger
    level = log.level
    log.setLevel(_SILENT)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)


def _not_opened(path: Path, error: Exception) -> InputError:
    """What keeps nibabel from opening a file, where it does not say it so that one could cure it."""
    if _QUATERNION in str(error):
        return InputError(
            path,
            rule="quaternion b, c, d of the qform are of length 1 at most",
            got=error,
            cure="write the affine into the sform with a code above 0, or 0 into qform_code",
        )
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            _unpack(content, _PIECE, path)
    except UNREADABLE as reason:
        return reason if isinstance(reason, InputError) else unreadable(path, reason)
    return unreadable(path, error)


def _voxel_file(image: Any) -> Path:
    return Path(image.file_map["image"].filename)


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if any(length < 1 for length in shape):
        raise InputError(path, rule="an image has voxels", got=f"shape {shape}", cure="leave the empty file out")
    return shape


def _require_length(opened: NiftiFile, voxels: Path, path: Path) -> None:
    """A file that is not packed has the bytes that its header announces, before memory is asked for them."""
    size = voxels.stat().st_size
    if voxels.suffix.lower() != ".gz" and size < opened.announced:
        raise _short(opened, size)


def _short(opened: NiftiFile, size: int) -> InputError:
    lengths = " x ".join(map(str, opened.image.header.get_data_shape()))
    got = f"{size:,} bytes; the header announces {lengths} voxels in {opened.announced:,} bytes"
    rule = "the file can be read to its end"
    return InputError(opened.path, rule=rule, got=got, cure="copy or download it again")


def _unpacked(opened: NiftiFile) -> Any:
    """The image over unpacked bytes: reading to the end verifies the checksum, before which nibabel stops."""
    files, size = {}, 0
    for key, holder in opened.image.file_map.items():
        file, most = Path(holder.filename), opened.announced if key == "image" else _PIECE
        content = file.read_bytes()
        if content[:2] == _GZIP:
            content = _unpack(content, most, file)
        size = len(content) if key == "image" else size
        files[key] = FileHolder(fileobj=io.BytesIO(content))
    if size < opened.announced:
        raise _short(opened, size)
    return type(opened.image).from_file_map(files)


def _unpack(packed: bytes, most: int, path: Path) -> bytes:
    """The first `most` bytes, and a piece more at times; what follows is read for its checksum alone."""
    parts, length = [], 0
    while packed:
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            part = stream.decompress(packed, max(most - length, _PIECE))
            packed = stream.unconsumed_tail
            if not (part or packed or stream.eof):
                raise EOFError("the compressed data end too early")
            if length < most:
                parts.append(part)
            length += len(part)
        packed = stream.unused_data.lstrip(b"\0")
        if packed and packed[:2] != _GZIP:
            raise InputError(
                path,
                rule="nothing follows the compressed data",
                got=f"{len(packed)} bytes of something else",
                cure=f"the image is whole; pack it anew: gunzip -c {path.name!r} > x.nii, and gzip x.nii",
            )
    return parts[0] if len(parts) == 1 else b"".join(parts)
