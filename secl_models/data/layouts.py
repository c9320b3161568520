# SPDX-License-Identifier: Apache-2.0
"""Which files are which case: the Decathlon / nnU-Net, SSL4MIS and CSV layouts, read into one `DataSet`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from secl_models.data.cases import Case, DataSet
from secl_models.data.volumes import H5_SUFFIX, NIFTI_SUFFIXES, count_channels, file_stem, label_values
from secl_models.options.errors import InputError

SPLITS = ("train", "val", "test")
RESERVED = "mean"  # the row of a table that is no structure
CSV_COLUMNS = ("image", "label", "patient", "split")
CARDIAC = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}  # ACDC, the set of the SSL4MIS lists
DECATHLON_PARTS = ("dataset.json", "imagesTr", "labelsTr")
SSL4MIS_PARTS = ("train_slices.list", "val.list", "test.list")


def read_data_set(root: Path) -> DataSet:
    """Recognise the layout of a folder and list its cases; no image is read.

    Args:
        root: A folder with `dataset.json`, `imagesTr`, `labelsTr` (Decathlon, nnU-Net raw), or with
            `train_slices.list`, `val.list`, `test.list` (SSL4MIS), or with one CSV file (columns image,
            label, patient, split); or the CSV file itself.

    Raises:
        InputError: There is no such folder, no layout fits, or a list is empty or names a missing file.

    Example:
        >>> from pathlib import Path
        >>> data = read_data_set(Path("phantom"))
        >>> data.layout, data.classes
        ('decathlon', {1: 'right ventricle', 2: 'myocardium', 3: 'left ventricle'})
    """
    if not root.exists():
        raise InputError(root, rule="the data folder exists", got="no such folder", cure="correct the path")
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise InputError(root, rule="data are a folder or a .csv file", got=root.name, cure="name the folder")
        return _read_csv(root)
    tables = [root / "data.csv"] if (root / "data.csv").is_file() else sorted(root.glob("*.csv"))
    if not _missing(root, DECATHLON_PARTS):
        return _read_decathlon(root)
    if not _missing(root, SSL4MIS_PARTS):
        return _read_ssl4mis(root)
    if len(tables) == 1:
        return _read_csv(tables[0])
    got = (
        f"Decathlon lacks {_missing(root, DECATHLON_PARTS)}; SSL4MIS lacks {_missing(root, SSL4MIS_PARTS)}; "
        f"CSV needs one table, there are {len(tables)}"
    )
    raise InputError(
        root,
        rule="the folder has a Decathlon / nnU-Net, SSL4MIS or CSV layout",
        got=got,
        cure="add the missing parts, or name the folder above or below",
    )


def _missing(root: Path, parts: tuple[str, ...]) -> str:
    return ", ".join(part for part in parts if not (root / part).exists())


def _read_decathlon(root: Path) -> DataSet:
    info = _read_json(root / "dataset.json")
    images = _image_files(root / "imagesTr") + _image_files(root / "imagesUn")
    labels = {file_stem(path): path for path in _image_files(root / "labelsTr")}
    stems = {file_stem(path) for path in images}
    per_channel = "channel_names" in info or any(name not in stems and f"{name}_0000" in stems for name in labels)
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in images:
        stem = file_stem(path)
        name = _without_channel(stem, path) if per_channel else stem
        groups.setdefault((path.parent.name, name), []).append(path)
    cases = tuple(
        Case(name, _patient(name), tuple(files), labels.get(name), None) for (_, name), files in groups.items()
    )
    _require_cases(cases, root / "imagesTr")
    _require_listed(info, cases, labels, root)
    about = root / "dataset.json"
    return DataSet(root, "decathlon", _classes_of(info, about), _modality_of(info, about) or ("unknown",), cases)


def _modality_of(info: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Channel names in channel order; none where the file names none."""
    names = info.get("channel_names", info.get("modality", {}))
    if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
        raise InputError(path, rule="channels are numbered", got=names, cure='write "modality": {"0": "MRI"}')
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _image_files(folder: Path) -> list[Path]:
    """NIfTI files by name, without the hidden `._` files that macOS leaves in archives."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(NIFTI_SUFFIXES) and not p.name.startswith("."))


def _without_channel(stem: str, path: Path) -> str:
    found = re.fullmatch(r"(.+)_\d{4}", stem)
    if not found:
        rule = "nnU-Net images are named CASE_0000, CASE_0001, ... by channel"
        raise InputError(path, rule=rule, got=path.name, cure="append _0000 to the name")
    return found[1]


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


def _classes_of(info: dict[str, Any], path: Path) -> dict[int, str]:
    """Both spellings: {"1": "Anterior"} of the Decathlon, {"Anterior": 1} of nnU-Net v2."""
    labels = info.get("labels")
    pairs = [
        (int(key), str(value)) if str(key).isdigit() else (value, str(key))
        for key, value in (labels.items() if isinstance(labels, dict) else ())
    ]
    whole = all(isinstance(value, int) or str(value).isdigit() for value, _ in pairs)
    if not pairs or not whole or any(name == "ignore" for _, name in pairs):
        rule = "`labels` gives each structure one whole number, without regions and ignore labels"
        raise InputError(path, rule=rule, got=labels, cure='write {"1": "structure"} or {"structure": 1}')
    classes = {int(value): name for value, name in sorted((int(value), name) for value, name in pairs)}
    classes.pop(0, None)
    if not classes or min(classes) < 0 or len(classes) < len({name for value, name in pairs if int(value)}):
        raise InputError(path, rule="structures have different values above 0", got=labels, cure="correct `labels`")
    if len(set(classes.values())) < len(classes) or RESERVED in classes.values():
        rule = f"structures have different names, none of them `{RESERVED}`"
        raise InputError(path, rule=rule, got=labels, cure="rename one")
    return classes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, rule="the file is JSON", got=error, cure="correct or restore it") from error
    if not isinstance(info, dict):
        raise InputError(path, rule="the file holds a JSON object", got=type(info).__name__, cure="restore it")
    return info


def _read_ssl4mis(root: Path) -> DataSet:
    cases = (
        *_listed_cases(root, "train_slices.list", "data/slices", "train"),
        *_listed_cases(root, "val.list", "data", "val"),
        *_listed_cases(root, "test.list", "data", "test"),
    )
    # Volumes hold every structure and are few; slices are checked against them when read.
    classes = _found_classes((case.label for case in cases if case.split == "val"), CARDIAC)
    modality = "MRI" if list(classes) == list(CARDIAC) else "unknown"
    return DataSet(root, "ssl4mis", classes, (modality,), cases)


def _listed_cases(root: Path, list_name: str, folder: str, split: str) -> list[Case]:
    path = root / list_name
    names = [line.strip().removesuffix(H5_SUFFIX) for line in path.read_text(encoding="utf-8").splitlines()]
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
    return [Case(name, _patient(name), (file,), file, split) for name, file in zip(names, files, strict=True)]


def _patient(name: str) -> str:
    """The name without its frame and slice: patient099 of patient099_frame01_slice_15."""
    return re.sub(r"(_frame\d+)?(_slice_?\d+)?$", "", name)


def _found_classes(labels: Iterable[Path | None], names: dict[int, str]) -> dict[int, str]:
    values: set[int] = set()
    for path in labels:
        if path is not None:
            with contextlib.suppress(InputError):  # reported when the case is loaded or checked
                values |= label_values(path)
    return {value: names.get(value, f"structure {value}") for value in sorted(values)}


def _csv_rows(path: Path) -> list[Case]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except ValueError as error:
        raise InputError(path, rule="the table is UTF-8 text", got=error, cure="save it as CSV UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    columns = [column.strip() for column in reader.fieldnames or []]
    reader.fieldnames = columns
    if lacking := [column for column in CSV_COLUMNS if column not in columns]:
        rule = f"the table has the columns {', '.join(CSV_COLUMNS)}"
        got = f"{', '.join(columns) or 'nothing'} without {', '.join(lacking)}"
        raise InputError(path, rule=rule, got=got, cure="add the columns, separated by commas")
    return [_csv_row(path, reader.line_num, row) for row in reader]


def _read_csv(path: Path) -> DataSet:
    cases = _named_uniquely(_csv_rows(path))
    _require_cases(cases, path)
    beside = path.parent / "dataset.json"
    info = _read_json(beside) if beside.is_file() else {}
    classes = _classes_of(info, beside) if "labels" in info else _found_classes((case.label for case in cases), {})
    channels = 1
    with contextlib.suppress(InputError):  # reported when the case is loaded or checked
        channels = count_channels(cases[0].image)
    return DataSet(path, "csv", classes, _modality_of(info, beside) or ("unknown",) * channels, cases)


def _csv_row(path: Path, line: int, row: dict[str, str | None]) -> Case:
    what = f"{path}, line {line}"
    image, label, patient, split = ((row[column] or "").strip() for column in CSV_COLUMNS)
    if not image or not patient:
        got = f"image {image!r}, patient {patient!r}"
        raise InputError(what, rule="each row has an image and a patient", got=got, cure="fill the cell")
    if split not in ("", *SPLITS):
        raise InputError(what, rule="split is train, val, test or empty", got=split, cure="correct the cell")
    images = tuple(path.parent / part.strip() for part in image.split(";"))
    labels = [path.parent / label] if label else []
    for file in (*images, *labels):
        if not file.is_file():
            raise InputError(what, rule="each file of the table exists", got=file, cure="correct the path")
    return Case(file_stem(images[0]), patient, images, labels[0] if labels else None, split or None)


def _named_uniquely(rows: list[Case]) -> tuple[Case, ...]:
    """File names where they tell cases apart, else with the patient, else with the row number as well."""
    choices: tuple[Callable[[int, Case], str], ...] = (
        lambda row, case: case.name,
        lambda row, case: f"{case.patient}_{case.name}",
        lambda row, case: f"{case.patient}_{case.name}_{row}",
    )
    for choice in choices:
        names = [choice(row, case) for row, case in enumerate(rows, start=1)]
        if len(set(names)) == len(names):
            break
    pairs = zip(names, rows, strict=True)
    return tuple(Case(name, case.patient, case.image, case.label, case.split) for name, case in pairs)


def _require_cases(cases: tuple[Case, ...], where: Path) -> None:
    if not cases:
        raise InputError(where, rule="there is at least one image", got="none", cure="add .nii.gz or .nii images")
    if twice := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        got = f"{twice[0]} in imagesTr and imagesUn"
        raise InputError(where, rule="each case has its own name", got=got, cure="rename or remove one")
