# SPDX-License-Identifier: Apache-2.0
"""What the name of a file says: which files of a folder are images, which are of formats that are not read."""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from secl_models.options.errors import InputError

NIFTI_SUFFIXES = (".nii.gz", ".nii")  # in which segmentations are written
HEADERS, VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")  # the two files of a NIfTI pair
H5_SUFFIX = ".h5"
READ = (*NIFTI_SUFFIXES, *VOXELS, *HEADERS)
SEG_NRRD = ".seg.nrrd"  # a segmentation as 3D Slicer keeps it
DICOM = (".dcm", ".dicom", ".ima")
FOREIGN = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".mha", ".mhd", SEG_NRRD, ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc",
    ".gipl", ".nia", ".vtk", ".vti", ".hdf5", ".npy", ".npz", ".mat", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp",
    *DICOM,
)  # fmt: skip
_BARE_DICOM = tuple(b"\x08\0" + bytes([element, 0]) for element in (0x00, 0x01, 0x05, 0x08, 0x16))  # no preamble
_KNOWN = (*READ, H5_SUFFIX, *FOREIGN)  # longer ones before those that they end in


def suffix_of(path: Path) -> str:
    """What says the format of a file, in lower case.

    Args:
        path: Any name.

    Example:
        >>> suffix_of(Path("scan.01.NII.GZ"))
        '.nii.gz'
    """
    name = path.name.lower()
    return next((suffix for suffix in sorted(_KNOWN, key=len, reverse=True) if name.endswith(suffix)), path.suffix)


def file_stem(path: Path) -> str:
    """The file name without the suffix of its format.

    Args:
        path: Any name.

    Example:
        >>> file_stem(Path("scan.01.NII.GZ"))
        'scan.01'
    """
    # One letter with its accent may be stored as one character or as two, in the image's name and in the label's.
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(suffix_of(path))])


def image_files(folder: Path, suffixes: Sequence[str] = READ) -> list[Path]:
    """The images of a folder by name, `.img` alone of a NIfTI pair, without the `._` files that macOS leaves.

    Args:
        folder: Where to look; none where it does not exist.
        suffixes: Of what counts as an image.

    Raises:
        InputError: A name is not UTF-8.
    """
    files = [path for path in _visible(folder) if suffix_of(path) in suffixes]
    for path in files:
        require_text(path)
    pairs = {file_stem(path) for path in files if suffix_of(path) in VOXELS}
    return [path for path in files if suffix_of(path) not in HEADERS or file_stem(path) not in pairs]


def require_one_each(files: Iterable[Path]) -> None:
    """Refuse two files that differ in their format alone.

    Args:
        files: Images, or labels, of one folder.

    Raises:
        InputError: `a.nii` stands beside `a.nii.gz`, for example.
    """
    seen: dict[str, Path] = {}
    for path in files:
        twin = seen.setdefault(file_stem(path), path)
        if twin != path:
            raise InputError(
                path,
                rule="one file for each image or label",
                got=f"{path.name} beside {twin.name}",
                cure="move away the one that is not meant",
            )


def refuse_foreign(folder: Path, images: Iterable[Path]) -> None:
    """Name the images of a folder whose format is not read and that are there in no other.

    Args:
        folder: Of images or labels; may be missing.
        images: The files of it that are read.

    Raises:
        InputError: There are such files, or a folder with images or DICOM slices in it.
    """
    if found := foreign_files(folder, images):
        names = ", ".join(path.name for path in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            found[0],
            rule=f"images are {', '.join(READ[:3])} or h5 of the lists",
            got=names + more,
            cure=conversion(found[0]),
        )


def foreign_files(folder: Path, images: Iterable[Path]) -> list[Path]:
    """The images of a folder whose format is not read, without those that are there in one that is.

    Args:
        folder: May be missing.
        images: The files of it that are read.
    """
    files = list(images)
    stems = {file_stem(path) for path in files}
    names = tuple(path.name for path in files)  # a backup has its whole name and more
    left = (path for path in _visible(folder) if suffix_of(path) not in READ and path not in files)
    unread = (path for path in left if file_stem(path) not in stems and not path.name.startswith(names))
    return [path for path in unread if _holds_image(path)]


def conversion(path: Path) -> str:
    """How an image of another format is made one that is read.

    Args:
        path: The image, or a folder of DICOM slices.
    """
    suffix = suffix_of(path)
    if path.is_file() and suffix not in _KNOWN and _is_nifti(path):
        return "end its name in .nii.gz, or in .nii where it is not packed, or move it away"
    if path.is_dir() or suffix in DICOM or suffix not in _KNOWN:
        return "one NIfTI file for each image: `dcm2niix -z y FOLDER` makes them of DICOM slices"
    if suffix.startswith(".nii"):
        return "unpack it, and pack it as .nii.gz"
    name = f"{file_stem(path)}.nii.gz"
    return f"convert it, as by SimpleITK.WriteImage(SimpleITK.ReadImage({path.name!r}), {name!r}), or move it away"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content: slices come without a suffix, or with a number that looks like one.

    Args:
        path: Any file.
    """
    head = _head(path)
    return head[128:132] == b"DICM" or head[:4] in _BARE_DICOM


def refuse_dicom(folder: Path) -> None:
    """Refuse a folder of DICOM files, or of folders of them, where a data set is asked for.

    Args:
        folder: Where to look.

    Raises:
        InputError: Says how to convert them.
    """
    inside = (path for path in folder.rglob("*") if path.is_file() and is_dicom(path))
    if found := min(inside, default=None):
        rule = "data sets are NIfTI or h5; `secl predict` alone reads DICOM"
        raise InputError(folder, rule=rule, got=f"DICOM, as {found.name}", cure=conversion(found.parent))


def require_readable(path: Path) -> None:
    """Refuse a file that is no NIfTI by its name, or half of a pair.

    Args:
        path: The file.

    Raises:
        InputError: Its suffix is another, or the file beside it is missing.
    """
    suffix = suffix_of(path)
    if suffix not in READ:
        rule, got = "images are .nii.gz, .nii, .img with .hdr, or .h5", suffix or "no suffix"
        raise InputError(path, rule=rule, got=got, cure=conversion(path))
    if suffix in (*HEADERS, *VOXELS):
        wanted = VOXELS if suffix in HEADERS else HEADERS
        beside = (file for file in path.parent.iterdir() if file_stem(file) == file_stem(path))
        if not any(suffix_of(file) in wanted for file in beside):
            rule, cure = f"a NIfTI pair has {wanted[0]} beside {suffix}", "restore the other file of the pair"
            raise InputError(path, rule=rule, got="none", cure=cure)


def require_text(path: Path) -> None:
    """Refuse a name that cannot be written into a file of text, as a split or a table is.

    Args:
        path: A file or folder.

    Raises:
        InputError: The name is no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path.name)
        raise InputError(path, rule="names of files are UTF-8", got=name, cure="rename it") from error


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        cure = f"chmod u+rx {str(folder)!r}"
        raise InputError(folder, rule="the folder may be read", got=error.strerror, cure=cure) from error


def _holds_image(path: Path) -> bool:
    if path.is_dir():
        return any(suffix_of(inner) in _KNOWN or is_dicom(inner) for inner in _visible(path) if inner.is_file())
    return suffix_of(path) in (*FOREIGN, H5_SUFFIX) or is_dicom(path) or _is_nifti(path)


def _is_nifti(path: Path) -> bool:
    """By content: browsers write `scan.nii (1).gz`, downloads `scan.nii.gz.1`, archives `scan.gz`."""
    head = _head(path)
    with suppress(zlib.error):
        head = zlib.decompressobj(wbits=31).decompress(head, 352)
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError:
        return b""
