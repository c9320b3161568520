# SPDX-License-Identifier: Apache-2.0
"""Which images `secl predict` is given, as files, channels or DICOM series, and where each segmentation goes."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from secl_models.data.cases import Case
from secl_models.data.formats import (
    H5_SUFFIX,
    NIFTI_SUFFIXES,
    READ,
    SEG_NRRD,
    conversion,
    file_stem,
    foreign_files,
    image_files,
    is_dicom,
    refuse_foreign,
    require_text,
    suffix_of,
)
from secl_models.data.series import (
    OPTION,
    Header,
    choose_series,
    others_of,
    read_headers,
    series_of,
    without_names,
)
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, tell

SUFFIXES = (*READ, H5_SUFFIX)
DICOM_SEG = ".dcm"
WRITTEN = (*NIFTI_SUFFIXES, SEG_NRRD, DICOM_SEG)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")  # nnU-Net: a file per channel, case_0000, case_0001
_LABEL = re.compile(r"(?P<image>.+)[_.-](?:gt|labels?|mask|seg|segmentation)", re.IGNORECASE)


@dataclass(frozen=True)
class Images:
    """What is to be segmented.

    Attributes:
        cases: One for each image.
        single: There is one, and `--out` may name its segmentation.
        failures: Folders of a folder whose series cannot be told.
    """

    cases: tuple[Case, ...]
    single: bool
    failures: tuple[InputError, ...] = ()


def images_of(source: Path, channels: int, series: str | None = None) -> Images:
    """The images of a file or folder; what is left out is told.

    Args:
        source: An image, a folder of images, the folder of a DICOM series, or a folder of such folders.
        channels: Image channels of the network.
        series: UID, number or description of the series that is meant.

    Raises:
        InputError: Nothing there, no image, or no series that is meant.
    """
    may_be_dicom = not image_files(source, SUFFIXES) if source.is_dir() else is_dicom(source)
    if may_be_dicom and (headers := read_headers(source)):
        return _dicom_images(source, headers, series)
    cases = find_images(source, channels)
    if series is not None:
        cure = f"leave {OPTION} out, or name a folder that holds DICOM alone"
        raise InputError(OPTION, rule="it chooses among DICOM series", got=f"other images in {source}", cure=cure)
    _tell_of_foreign(source, cases)
    if channels == 1 and (found := _look_like_channels(cases)):
        sentence = f"{found} look like channels of one case; the network takes one, and each is segmented by itself."
        tell("note", sentence, level=logging.WARNING)
    return Images(tuple(cases), not source.is_dir())


def targets_of(images: Images, source: Path, out: Path) -> list[Path]:
    """The segmentation of each image.

    Args:
        images: Of `source`.
        source: What the user named.
        out: A folder, or for a single image a file.

    Raises:
        InputError: A file where there are several images, a suffix that is not written, DICOM of what is no DICOM.
    """
    if source.is_dir() and out.resolve() == source.resolve():
        cure = "name another folder: the segmentations have the names of the images"
        raise InputError("--out", rule="another folder than --input", got=out, cure=cure)
    if not images.single:
        if suffix_of(out) in (*SUFFIXES, *WRITTEN) or out.is_file():
            cure = "name a folder; each image gets a file of its name"
            raise InputError("--out", rule="a folder, since --input is a folder", got=out, cure=cure)
        return [out / f"{case.name}.nii.gz" for case in images.cases]
    (case,) = images.cases
    suffix = suffix_of(out)
    if suffix == DICOM_SEG and case.series is None:
        rule = "a DICOM segmentation belongs to the DICOM series that it is made of"
        cure = f"give the series as --input, or end the name in .nii.gz or {SEG_NRRD}"
        raise InputError("--out", rule=rule, got=f"{out} of {case.image[0]}", cure=cure)
    if suffix in WRITTEN:
        return [out]
    if out.is_dir() or not out.suffix:
        return [out / f"{case.name}.nii.gz"]
    rule = f"a name ending in .nii.gz or .nii, {SEG_NRRD}, {DICOM_SEG} for DICOM, or a folder"
    raise InputError("--out", rule=rule, got=out, cure="end the name in .nii.gz")


def find_images(source: Path, channels: int) -> list[Case]:
    """The images of a file or a folder, channels of one case put together.

    Args:
        source: An image or a folder of images.
        channels: Image channels of the network; with more than one, files `case_0000`, `case_0001`, ... of a
            folder are the channels of `case`; with one, `case_07_0000` alone is the image of `case_07`. What a
            folder holds as `case_gt`, `case_seg` or alike beside `case` is its label, and left out.

    Returns:
        One case per image, sorted by name.

    Raises:
        InputError: Nothing there, or no image in the folder.
    """
    if source.is_dir():
        files = _without_labels(image_files(source, SUFFIXES))
        if not files:
            refuse_foreign(source, files)
    elif source.is_file():
        require_text(source)
        files = [source]
    else:
        raise InputError(
            source, rule="an image or a folder of images", got="nothing at this path", cure="correct --input"
        )
    if not files:
        raise InputError(
            source,
            rule="a folder with images (.nii.gz, .nii, .img with .hdr, .h5, DICOM)",
            got="none",
            cure="name the folder that holds the images themselves",
        )
    stems = {file_stem(file) for file in files}
    groups: dict[str, list[Path]] = {}
    numbers: dict[str, list[str]] = {}
    for file in files:
        split = _CHANNEL.fullmatch(file_stem(file)) if source.is_dir() else None
        if channels == 1 and split and not _is_only_channel(split, stems):
            split = None
        name = split["case"] if split else file_stem(file)
        groups.setdefault(name, []).append(file)
        numbers.setdefault(name, []).append(split["number"] if split else "")
    for name, images in groups.items():
        _require_one_file_each(source / name, images, numbers[name])
    return [Case(name, name, tuple(images), None, None) for name, images in groups.items()]


def _dicom_images(source: Path, headers: Sequence[Header], series: str | None) -> Images:
    """One image where the files lie side by side or are of one study, else one for each folder in the folder."""
    names = dict.fromkeys(name for header in headers for name in header.names)
    others = [path for path in foreign_files(source, ()) if path.is_file() and not is_dicom(path)]
    if left := [Path(without_names(str(path), names)) for path in others]:
        _tell_unread(left, conversion(left[0]))
    slices = [header for header in headers if header.size is not None or header.fault]
    beside = any(header.file.parent == source for header in slices)
    studies = {header.study for header in slices if header.fault is None}
    if source.is_file() or beside or len(studies) <= 1:
        return Images((_dicom_case(source, headers, series),), single=True)
    cases: list[Case] = []
    failures: list[InputError] = []
    for place in sorted({header.file.relative_to(source).parts[0] for header in slices}):
        folder = source / place
        try:
            cases.append(_dicom_case(folder, [one for one in headers if folder in one.file.parents], series))
        except InputError as failure:
            failures.append(failure)
            tell("failure", str(failure), level=logging.WARNING, image=failure.what)
    if not cases:
        raise failures[0]
    return Images(tuple(cases), single=False, failures=tuple(failures))


def _dicom_case(folder: Path, headers: Sequence[Header], series: str | None) -> Case:
    """The series of a folder that is meant, under a name that is not the patient's."""
    names = dict.fromkeys(name for header in headers for name in header.names)
    if fault := next((header.fault for header in headers if header.fault), None):
        raise InputError(without_names(fault.what, names), rule=fault.rule, got=fault.got, cure=fault.cure)
    what = without_names(str(folder), names)
    others, found = others_of(headers), series_of(headers)
    if others:
        tell("note", f"{what}: passed over, since they are no images: {others}.", level=NOTE)
    if not found:
        cure = "name the folder of the series that is to be segmented"
        raise InputError(what, rule="a folder with a DICOM series of images", got=others, cure=cure)
    chosen = choose_series(found, series, what)
    if len(found) > 1:
        tell("note", f"{what}: segmenting series {chosen}", level=NOTE)
    about = chosen.first
    own = file_stem(folder) if folder.is_file() else folder.resolve().name
    name = own if own == without_names(own, names) else f"series_{hashlib.sha256(about.uid.encode()).hexdigest()[:8]}"
    return Case(name, name, chosen.files, None, None, series=f"{what}, series {about.number or about.uid}")


def _tell_of_foreign(source: Path, cases: Sequence[Case]) -> None:
    left = foreign_files(source, (image for case in cases for image in case.image))
    slices = [path for path in left if path.is_file() and is_dicom(path)]
    folders = [path for path in left if path.is_dir()]
    others = [path for path in left if path not in (*slices, *folders)]
    if folders:
        _tell_unread(folders, "name one of them", "folders")
    if slices:
        _tell_unread(slices, "name a folder that holds DICOM alone", "DICOM files")
    if others:
        _tell_unread(others, conversion(others[0]))


def _tell_unread(left: Sequence[Path], cure: str, kind: str = "files of other formats") -> None:
    names = ", ".join(path.name for path in left[:3]) + (", ..." if len(left) > 3 else "")
    sentence = f"Not read, {len(left)} {kind}: {names}. To segment them, {cure}."
    tell("note", sentence, level=logging.WARNING, files=[str(path) for path in left])


def _without_labels(files: Sequence[Path]) -> list[Path]:
    """Those that are not named as the label of an image beside them; these are told."""
    stems = {file_stem(file) for file in files}
    named = {file: found["image"] for file in files if (found := _LABEL.fullmatch(file_stem(file)))}
    plain = stems - {file_stem(file) for file in named}
    labels = [
        file for file, image in named.items() if image in stems or any(stem.startswith(f"{image}_") for stem in plain)
    ]
    if labels:
        _tell_unread(labels, "name each by itself", "files named as the label of an image beside them")
    return [file for file in files if file not in labels]


def _look_like_channels(cases: Sequence[Case]) -> str | None:
    """The first images that are called like nnU-Net's channels of one case, if all with its number are."""
    found: dict[str, list[str]] = {}
    for case in cases:
        split = _CHANNEL.fullmatch(case.name)
        if split and any(letter.isdigit() for letter in split["case"]):  # else 0000 is the number of the case
            found.setdefault(split["case"], []).append(split["number"])
    for name, numbers in found.items():
        if len(numbers) > 1 and numbers == [f"{number:04}" for number in range(len(numbers))]:
            return f"{name}_{numbers[0]} and {name}_{numbers[1]}"
    return None


def _is_only_channel(split: re.Match[str], stems: Collection[str]) -> bool:
    """Whether `case_07_0000` is the one channel of `case_07`: no file else is of that case, and 07 numbers it."""
    case = split["case"]
    others = {stem for stem in stems if case in (stem, re.sub(r"_\d{4}$", "", stem))} - {split[0]}
    return split["number"] == "0000" and any(letter.isdigit() for letter in case) and not others


def _require_one_file_each(case: Path, images: Sequence[Path], numbers: Sequence[str]) -> None:
    """One file for a case, or its channels `_0000`, `_0001`, ... without a gap."""
    if len(images) == 1 or list(numbers) == [f"{number:04}" for number in range(len(images))]:
        return
    raise InputError(
        case,
        rule="a case is one file, or one file for each channel: CASE_0000, CASE_0001, ...",
        got=", ".join(image.name for image in images),
        cure="move all but one of them to another folder, or number the channels from 0000",
    )
