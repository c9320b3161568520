# SPDX-License-Identifier: Apache-2.0
"""A data set as a table: a CSV file with the columns image, label, patient and split, and sometimes labeled."""

from __future__ import annotations

import contextlib
import csv
import io
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secl_models.data.cases import Case, DataSet
from secl_models.data.description import classes_of, found_classes, ignored_of, modality_of, read_description
from secl_models.data.files import read_text
from secl_models.data.formats import H5_SUFFIX, file_stem, suffix_of
from secl_models.data.labels import ALSO_FIELD, FIELD
from secl_models.data.partial_labels import names_in, unlabeled_of, with_field
from secl_models.data.volumes import count_channels
from secl_models.options.errors import InputError

SPLITS = ("train", "val", "test")
CSV_COLUMNS = ("image", "label", "patient", "split")


def read_csv(path: Path) -> DataSet:
    """The cases of a table; what its labels hold is read from them where no `dataset.json` beside it says so.

    Args:
        path: The CSV file; the files that it names lie relative to it.

    Raises:
        InputError: A column, a cell or a file is missing, a file is named by two cases, or a label is no label.
    """
    table = _csv_rows(path)
    if not table:
        raise InputError(path, rule="there is at least one image", got="none", cure="add .nii.gz or .nii images")
    rows = [(line, _csv_row(path, line, row)) for line, row in table]
    _require_own_files(path, rows)
    beside = path.parent / "dataset.json"
    info = read_description(beside) if beside.is_file() else {}
    found = [case.label for _, case in rows]
    classes = classes_of(info, beside) if "labels" in info else found_classes(found, {})
    named_cases = with_field(_named_uniquely([case for _, case in rows]), info, classes, beside)
    pairs = zip(table, named_cases, strict=True)
    cases = tuple(_with_cell(case, row.get(FIELD), classes, f"{path}, line {line}") for (line, row), case in pairs)
    channels = 1
    with contextlib.suppress(InputError):  # reported when the case is loaded or checked
        channels = count_channels(cases[0].image)
    named = modality_of(info, beside) or ("unknown",) * channels
    return DataSet(path, "csv", classes, named, cases, ignored=ignored_of(info, beside))


def lists_cases(path: Path) -> bool:
    """Whether a file is a table with the columns that `read_csv` needs, in UTF-8 or not.

    Args:
        path: The CSV file.

    Example:
        >>> lists_cases(Path("runs/secl/history.csv"))
        False
    """
    try:
        return set(CSV_COLUMNS) <= set(_columns(_reader(path.read_text("utf-8-sig", "replace"))))
    except (OSError, csv.Error):
        return False


def _reader(text: str) -> csv.DictReader[str]:
    first = text.partition("\n")[0]
    # Spreadsheets take semicolons or tabs where a comma stands in numbers.
    between = next((sign for sign in ",;\t" if sign in first), ",")
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=between, skipinitialspace=True)


def _columns(reader: csv.DictReader[str]) -> list[str]:
    named = [column.strip().lower() for column in reader.fieldnames or []]
    return [FIELD if column == ALSO_FIELD else column for column in named]


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each row that is filled, with its line."""
    reader = _reader(read_text(path, "the table is UTF-8 text", "save it as CSV UTF-8"))
    try:
        columns = _columns(reader)
        reader.fieldnames = columns
        table = [(reader.line_num, row) for row in reader if _is_filled(row)]
    except csv.Error as error:
        what = f"{path}, line {reader.line_num}"
        raise InputError(what, rule="the table is CSV", got=error, cure="save it anew as CSV UTF-8") from error
    if lacking := [column for column in CSV_COLUMNS if column not in columns]:
        rule = f"the table has the columns {', '.join(CSV_COLUMNS)}"
        got = f"{', '.join(columns) or 'nothing'} without {', '.join(lacking)}"
        raise InputError(path, rule=rule, got=got, cure="add the columns, separated by commas")
    if twice := [column for column in (*CSV_COLUMNS, FIELD) if columns.count(column) > 1]:
        got = f"{columns.count(twice[0])} columns {twice[0]}"
        raise InputError(path, rule="each column stands once", got=got, cure="remove or rename the others")
    return table


def _is_filled(row: dict[str, Any]) -> bool:
    """Spreadsheets leave rows of nothing but commas."""
    return any(value and str(value).strip() for value in row.values() if not isinstance(value, list))


def _csv_row(path: Path, line: int, row: dict[str, Any]) -> Case:
    what = f"{path}, line {line}"
    if beyond := [cell for cell in row.get(None, []) if cell.strip()]:  # type: ignore[call-overload]
        cure = "put cells that hold the separator into quotes, or give the column a name"
        raise InputError(
            what, rule="a row has as many cells as there are columns", got=f"{beyond[0]!r} behind", cure=cure
        )
    image, label, patient, split = ((row[column] or "").strip() for column in CSV_COLUMNS)
    patient = unicodedata.normalize("NFC", patient)
    if not image or not patient:
        got = f"image {image!r}, patient {patient!r}"
        raise InputError(what, rule="each row has an image and a patient", got=got, cure="fill the cell")
    split = split.lower()
    if split not in ("", *SPLITS):
        raise InputError(what, rule="split is train, val, test or empty", got=split, cure="correct the cell")
    images = tuple(path.parent / part.strip() for part in image.split(";"))
    labels = [path.parent / label] if label else []
    for file in (*images, *labels):
        if not _is_file(file):
            raise InputError(what, rule="each file of the table exists", got=file, cure="correct the path")
    return Case(file_stem(images[0]), patient, images, labels[0] if labels else None, split or None)


def _with_cell(case: Case, cell: str | None, classes: Mapping[int, str], what: str) -> Case:
    """The case with what its cell says that the label shows; an empty one says nothing."""
    if not cell or not cell.strip():
        return case
    return replace(case, unlabeled=unlabeled_of(names_in(cell, classes), classes, f"{what}, column {FIELD}"))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


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
    return tuple(replace(case, name=name) for name, case in pairs)


def _require_own_files(path: Path, rows: Sequence[tuple[int, Case]]) -> None:
    """A file, by whatever path and link, is an image of one case, or the label of one patient."""
    images: dict[tuple[int, int], int] = {}
    labels: dict[tuple[int, int], tuple[int, str]] = {}
    for line, case in rows:
        for number, file in enumerate(case.image):
            before = images.setdefault(_identity(file), line)
            if before != line or _identity(file) in map(_identity, case.image[:number]):
                _refuse_twice(path, line, "an image belongs to one case", f"{file}, as in line {before}")
    for line, case in rows:
        if case.label is None:
            continue
        identity = _identity(case.label)
        if identity in images and suffix_of(case.label) != H5_SUFFIX:  # h5 holds both
            _refuse_twice(path, line, "a label is not an image", f"{case.label}, the image of line {images[identity]}")
        before, patient = labels.setdefault(identity, (line, case.patient))
        if patient != case.patient:
            _refuse_twice(path, line, "a label belongs to one patient", f"{case.label}, as in line {before}")


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_dev, stat.st_ino


def _refuse_twice(path: Path, line: int, rule: str, got: str) -> None:
    raise InputError(f"{path}, line {line}", rule=rule, got=got, cure="correct the cell, or remove one of the rows")
