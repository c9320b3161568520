# SPDX-License-Identifier: Apache-2.0
"""Where a comparison may be written: into new files, or over those of an earlier one, and over no others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from secl_models.data.cases import DataSet
from secl_models.data.folders import refuse_unlisted, refuse_writing_over, written
from secl_models.options.errors import InputError
from secl_models.report.comparison_rows import DifferenceRow, ScoreRow
from secl_models.train.run_folder import RUN_FILES

KIND = "Comparison of runs"  # what its page calls itself
_HEAD = 1 << 16  # bytes that a page calls itself in


def refuse_targets(folders: Sequence[Path], page: Path, tables: Sequence[Path], data: DataSet | None = None) -> None:
    """Refuse to write a comparison over anything but an earlier one.

    Args:
        folders: Run folders that are compared.
        page: HTML file that is to be written.
        tables: CSV files that are to be written.
        data: Data set that is read for pictures.

    Raises:
        InputError: Two of the files are one, or one is a folder, is read, or holds something else.

    Example:
        >>> refuse_targets([Path("runs/secl"), Path("runs/baseline")], Path("comparison.html"), [])
    """
    _require_different([page, *tables])
    for file in (page, *tables):
        if file.is_dir():
            cure = "name a file in it, such as report.html"
            raise InputError(file, rule="a file to write", got="a folder", cure=cure)
    others = [file for file in (page, *tables) if not (_holds_page(file) if file == page else _holds_table(file))]
    own = (folder / name for folder in folders for name in RUN_FILES)
    listed = (file for folder in folders for file in written(folder).values() if file.exists())
    refuse_writing_over([*own, *listed, *(data.files() if data is not None else [])], *others)
    for file in (page, *tables):
        refuse_unlisted(file.parent, [file.name])
    if there := [file for file in others if file.exists()]:
        cure = "move it away, or name another file"
        raise InputError(there[0], rule="only an earlier comparison is replaced", got="another file", cure=cure)


def _require_different(files: Sequence[Path]) -> None:
    places: dict[str, Path] = {}
    for file in files:
        before = places.setdefault(os.path.realpath(file), file)
        if before is not file:
            rule = "a file of its own for the page and for each table"
            raise InputError(file, rule=rule, got=f"the same as {before}", cure="name another --csv")


def _holds_page(file: Path) -> bool:
    return f">{KIND}<" in _head(file)


def _holds_table(file: Path) -> bool:
    found = set(_head(file).partition("\n")[0].split(","))
    return any(found <= {field.name for field in fields(kind)} for kind in (ScoreRow, DifferenceRow))


def _head(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        return stream.read(_HEAD).decode(errors="replace")
