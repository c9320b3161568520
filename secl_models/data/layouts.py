# SPDX-License-Identifier: Apache-2.0
"""Which files are which case: the Decathlon / nnU-Net, SSL4MIS and CSV layouts, read into one `DataSet`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secl_models.data.cases import Case, DataSet
from secl_models.data.csv_layout import lists_cases, read_csv
from secl_models.data.description import classes_of, found_classes, ignored_of, modality_of, read_description
from secl_models.data.files import read_text
from secl_models.data.formats import (
    H5_SUFFIX,
    file_stem,
    image_files,
    refuse_dicom,
    refuse_foreign,
    require_one_each,
    require_text,
)
from secl_models.data.partial_labels import with_field
from secl_models.data.patients import patient_of
from secl_models.options.errors import InputError
from secl_models.options.spacing import AUTO

CARDIAC = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}  # ACDC, the set of the SSL4MIS lists
DECATHLON_PARTS = ("dataset.json", "imagesTr", "labelsTr")
TABLE_EXAMPLE = (
    "cases.csv: `image,label,patient,split` and a line such as `images/a.nii,labels/a.nii,A,` for each image"
)
SSL4MIS_PARTS = ("train_slices.list", "val.list", "test.list")


def read_data_set(root: Path, spacing_from: str = AUTO) -> DataSet:
    """Recognise the layout of a folder and list its cases; no image is read.

    Args:
        root: A folder with `dataset.json`, `imagesTr`, `labelsTr` (Decathlon, nnU-Net raw), or with
            `train_slices.list`, `val.list`, `test.list` (SSL4MIS), or with one CSV file (columns image,
            label, patient, split); or the CSV file itself.
        spacing_from: `data.spacing_from`, for when the images are read.

    Raises:
        InputError: There is no such folder, no layout fits, a table of cases lies beside another list of them, or a
            list is empty or names a missing file.

    Example:
        >>> from pathlib import Path
        >>> data = read_data_set(Path("phantom"))
        >>> data.layout, data.classes
        ('decathlon', {1: 'right ventricle', 2: 'myocardium', 3: 'left ventricle'})
    """
    require_text(root)
    if not root.exists():
        raise InputError(root, rule="the data folder exists", got="no such folder", cure="correct the path")
    return replace(_recognised(root), spacing_from=spacing_from)


def _recognised(root: Path) -> DataSet:
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise InputError(root, rule="data are a folder or a .csv file", got=root.name, cure="name the folder")
        return read_csv(root)
    tables = [root / "data.csv"] if (root / "data.csv").is_file() else sorted(root.glob("*.csv"))
    if not _missing(root, DECATHLON_PARTS):
        _refuse_tables(root, "dataset.json")
        return _read_decathlon(root)
    if not _missing(root, SSL4MIS_PARTS):
        _refuse_tables(root, SSL4MIS_PARTS[0])
        return _read_ssl4mis(root)
    if len(tables) == 1:
        return read_csv(tables[0])
    refuse_dicom(root)
    got = (
        f"Decathlon lacks {_missing(root, DECATHLON_PARTS)}; SSL4MIS lacks {_missing(root, SSL4MIS_PARTS)}; "
        f"CSV needs one table, there are {len(tables)}"
    )
    raise InputError(
        root,
        rule="the folder has a Decathlon / nnU-Net, SSL4MIS or CSV layout",
        got=got,
        cure=f"add the missing parts, name the folder above or below, or write a table there, as {TABLE_EXAMPLE}",
    )


def _refuse_tables(root: Path, other: str) -> None:
    """A table of cases says who is whose patient, which the other layout would not hear."""
    if table := next(filter(lists_cases, sorted(root.glob("*.csv"))), None):
        cure = f"name the table, `--data {table}`, or move it away"
        raise InputError(root, rule="a folder lists its cases once", got=f"{other} and {table.name}", cure=cure)


def _missing(root: Path, parts: tuple[str, ...]) -> str:
    return ", ".join(part for part in parts if not (root / part).exists())


def _read_decathlon(root: Path) -> DataSet:
    info = read_description(root / "dataset.json")
    images = _image_files(root / "imagesTr") + _image_files(root / "imagesUn")
    labels = {file_stem(path): path for path in _image_files(root / "labelsTr")}
    stems = {file_stem(path) for path in images}
    per_channel = "channel_names" in info or any(name not in stems and f"{name}_0000" in stems for name in labels)
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in images:
        stem = file_stem(path)
        name = _without_channel(stem, path) if per_channel else stem
        groups.setdefault((path.parent.name, name), []).append(path)
    if per_channel:
        _require_channels_in_order(groups)
    cases = tuple(
        Case(name, patient_of(name), tuple(files), labels.get(name), None) for (_, name), files in groups.items()
    )
    _require_cases(cases, root / "imagesTr")
    _require_listed(info, cases, labels, root)
    about = root / "dataset.json"
    classes, channels = classes_of(info, about), modality_of(info, about) or ("unknown",)
    cases = tuple(with_field(cases, info, classes, about))
    return DataSet(root, "decathlon", classes, channels, cases, ignored=ignored_of(info, about))


def _image_files(folder: Path) -> list[Path]:
    """The images or labels of a folder, one for each name; those of another format are refused by name."""
    files = image_files(folder)
    require_one_each(files)
    refuse_foreign(folder, files)
    return files


def _without_channel(stem: str, path: Path) -> str:
    found = re.fullmatch(r"(.+)_\d{4}", stem)
    if not found:
        rule = "nnU-Net images are named CASE_0000, CASE_0001, ... by channel"
        raise InputError(path, rule=rule, got=path.name, cure="append _0000 to the name")
    return found[1]


def _require_channels_in_order(groups: Mapping[tuple[str, str], Sequence[Path]]) -> None:
    for (_, name), files in groups.items():
        if [file_stem(path) for path in files] != [f"{name}_{number:04}" for number in range(len(files))]:
            rule = "the channels of an image are numbered from 0000, without a gap"
            got = ", ".join(path.name for path in files)
            raise InputError(files[0], rule=rule, got=got, cure="restore the channel that is missing, or rename them")


def _require_listed(info: dict[str, Any], cases: tuple[Case, ...], labels: dict[str, Path], root: Path) -> None:
    """Every pair of dataset.json and every label file has its image."""
    names = {case.name for case in cases if case.image[0].parent.name == "imagesTr"}
    listed = info.get("training")
    for entry in listed if isinstance(listed, list) else []:
        pair = entry if isinstance(entry, dict) else {"image": entry}
        if file_stem(Path(str(pair.get("image")))) not in names:
            _raise_unlisted(root / "dataset.json", "each image of `training` exists", pair.get("image"))
        if "label" in pair and file_stem(Path(str(pair["label"]))) not in labels:
            _raise_unlisted(root / "dataset.json", "each label of `training` exists", pair["label"])
    for name, path in labels.items():
        if name not in names:
            _raise_unlisted(path, "each label has an image of its name in imagesTr", "none")


def _raise_unlisted(what: Path, rule: str, got: object) -> None:
    raise InputError(what, rule=rule, got=got, cure="restore the file or remove the entry")


def _read_ssl4mis(root: Path) -> DataSet:
    cases = (
        *_listed_cases(root, "train_slices.list", "data/slices", "train"),
        *_listed_cases(root, "val.list", "data", "val"),
        *_listed_cases(root, "test.list", "data", "test"),
    )
    # Volumes hold every structure and are few; slices are checked against them when read.
    classes = found_classes((case.label for case in cases if case.split == "val"), CARDIAC)
    modality = "MRI" if list(classes) == list(CARDIAC) else "unknown"
    return DataSet(root, "ssl4mis", classes, (modality,), cases)


def _listed_cases(root: Path, list_name: str, folder: str, split: str) -> list[Case]:
    path = root / list_name
    text = read_text(path, "a list of names in UTF-8", "restore the list")
    names = [line.strip().removesuffix(H5_SUFFIX) for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise InputError(path, rule="the list names at least one file", got="an empty list", cure="restore the list")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(path, rule="the list names each file once", got=f"{twice[0]} twice", cure="remove one")
    parent = root / folder
    there = {file.name for file in parent.iterdir()} if parent.is_dir() else set()
    if gone := [name for name in names if name + H5_SUFFIX not in there]:
        got = f"{len(gone)} of {len(names)} missing, the first is {parent / gone[0]}{H5_SUFFIX}"
        raise InputError(path, rule=f"each name of the list is a file in {folder}", got=got, cure="restore the files")
    files = [parent / (name + H5_SUFFIX) for name in names]
    return [Case(name, patient_of(name), (file,), file, split) for name, file in zip(names, files, strict=True)]


def _require_cases(cases: tuple[Case, ...], where: Path) -> None:
    if not cases:
        raise InputError(where, rule="there is at least one image", got="none", cure="add .nii.gz or .nii images")
    if twice := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        got = f"{twice[0]} in imagesTr and imagesUn"
        raise InputError(where, rule="each case has its own name", got=got, cure="rename or remove one")
