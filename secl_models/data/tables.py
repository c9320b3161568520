# SPDX-License-Identifier: Apache-2.0
"""CSV files whose rows are dataclasses of numbers and text, read with their types and written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secl_models.data.files import write_text
from secl_models.options.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Kind = TypeVar("Kind", bound=DataclassInstance)
else:
    Kind = TypeVar("Kind")

_TYPES: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
    "str": str,
}


def read_table(file: Path, kind: type[Kind], what: str, cure: str) -> list[Kind]:
    """Read a file of rows.

    Args:
        file: The CSV file; missing is empty.
        kind: Dataclass of a row, in a module with postponed annotations; its fields are int, float (or None) or str.
        what: What the file should hold, for the message.
        cure: For the message.

    Raises:
        InputError: The columns or a value are not those of the rows.
    """
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return [_typed(values, kind) for values in csv.DictReader(stream)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        names = ", ".join(field.name for field in fields(kind))
        raise InputError(file, rule=f"{what} with the columns {names}", got=f"fault at {error}", cure=cure) from error


def _typed(values: dict[str, Any], kind: type[Kind]) -> Kind:
    """A row; a column that is younger than the file has its default."""
    known = [field for field in fields(kind) if field.name in values or field.default is MISSING]
    return kind(**{field.name: _TYPES[str(field.type)](values[field.name]) for field in known})


def write_table(file: Path, kind: type[Kind], rows: Iterable[Kind]) -> None:
    """Write a file of rows.

    Args:
        file: The CSV file.
        kind: Dataclass of a row.
        rows: All rows.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(file, text.getvalue())
