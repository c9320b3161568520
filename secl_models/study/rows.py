# SPDX-License-Identifier: Apache-2.0
"""The two files of a study: a row per checkpoint of a run, and beside it a point per validation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from secl_models.data.tables import read_table, write_table

STEPS, TIME = "steps", "time"


class RunKey(NamedTuple):
    """What tells the runs of a study apart: the same columns in both of its files."""

    data: str
    labeled: int
    method: str
    budget: str
    seed: int
    options: str  # preset and overrides


@dataclass(frozen=True)
class Row:
    """One line of the CSV file: one checkpoint of one run. Dice in percent, distances in the data's unit."""

    data: str
    labeled: int
    method: str
    budget: str
    seed: int
    steps: int
    seconds: float  # of training steps alone
    processor_seconds: float  # of the same steps, all threads
    checkpoint: str
    dice: float
    hd95: float
    assd: float
    peak_mib: float
    machine: str
    commit: str
    structures: str  # "Anterior=78.1;Posterior=77.0"
    options: str  # preset and overrides
    split: str = "test"  # the list that was scored
    against: str = ""  # the method whose seconds labels-only had, where the budget is time
    digest: str = ""  # of all options and cases; empty in rows of earlier versions

    def __post_init__(self) -> None:
        _require_times(self.seconds, self.processor_seconds)
        by_structure(self.structures)

    @property
    def threads(self) -> int | None:
        """As many as its machine says it had; None: it does not say."""
        found = re.search(r", (\d+) threads?$", self.machine)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Point:
    """One validation of one run."""

    data: str
    labeled: int
    method: str
    budget: str
    seed: int
    options: str
    step: int
    seconds: float  # of training steps so far
    processor_seconds: float  # of the same steps, all threads
    dice: float  # percent, on the validation cases
    coverage: str  # "Anterior=93.1;Posterior=90.2", percent of true pixels that have a confident pseudo-label
    purity: str  # percent of the confident pseudo-labels that are right
    commit: str

    def __post_init__(self) -> None:
        _require_times(self.seconds, self.processor_seconds)
        by_structure(self.coverage)
        by_structure(self.purity)

    @property
    def key(self) -> RunKey:
        """The run that it belongs to."""
        return RunKey(self.data, self.labeled, self.method, self.budget, self.seed, self.options)


Kind = TypeVar("Kind", Row, Point)


def in_order(options: str) -> str:
    """A preset and its overrides in the order of their names, the last of equal names alone."""
    preset, *overrides = re.split(r"\s+(?=[\w.]+=)", options)  # a list may hold spaces
    named = {part.partition("=")[0]: part for part in overrides}
    return " ".join((preset, *(named[name] for name in sorted(named))))


def by_structure(text: str) -> dict[str, float]:
    """The numbers of a cell such as `Anterior=78.1;Posterior=77.0`, by name.

    Raises:
        ValueError: It is another text.
    """
    pairs = (part.rpartition("=") for part in text.split(";") if part)
    return {name: float(value) for name, _, value in pairs}


def structure_cell(dice: Iterable[tuple[str, float]]) -> str:
    """Such a cell of the Dice of each structure, given in [0, 1] and written in percent.

    Args:
        dice: Name and value.
    """
    return ";".join(f"{name}={rounded(100 * value)}" for name, value in dice)


def rounded(value: float) -> float:
    """A score to three decimals; one that is not a number stays."""
    return value if math.isnan(value) else round(value, 3)


def _require_times(*seconds: float) -> None:
    if not all(0 <= value < math.inf for value in seconds):
        raise ValueError(f"seconds {seconds}")


def curves_file(study: Path) -> Path:
    """Where the curves of the study in a CSV file are kept: beside it."""
    return study.with_name(f"{study.stem}_curves.csv")


def timed_against(rows: Iterable[Row], method: str) -> list[Row]:
    """Those of labels-only that have the seconds of a method; rows of earlier versions do not say whose they have.

    Args:
        rows: Any of a study.
        method: The other one.
    """
    return [row for row in rows if row.budget == TIME and row.against in ("", method)]


def row_key(row: Row) -> RunKey:
    """The run that a row belongs to."""
    return RunKey(row.data, row.labeled, row.method, row.budget, row.seed, row.options)


def read_rows(file: Path) -> list[Row]:
    """Read the CSV file of a study.

    Args:
        file: The file; missing is empty.

    Returns:
        Its rows.

    Raises:
        InputError: The columns or a value are not those of a study.
    """
    return _ordered(read_table(file, Row, "a study", "name another --csv"))


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write all rows of a study, whole or not at all.

    Args:
        file: The CSV file.
        rows: All its rows.
    """
    write_table(file, Row, rows)


def read_points(file: Path) -> list[Point]:
    """Read the curves of a study.

    Args:
        file: The CSV file; missing is empty.

    Raises:
        InputError: The columns or a value are not those of curves.
    """
    return _ordered(read_table(file, Point, "curves", "remove or rename the file"))


def _ordered(items: list[Kind]) -> list[Kind]:
    return [replace(item, options=in_order(item.options)) for item in items]


def add_points(file: Path, points: Iterable[Point]) -> None:
    """Put the curves of some runs into the file, in the place of what it held of the same runs, whole or not at all.

    Args:
        file: The CSV file.
        points: All points of these runs.
    """
    added = list(points)
    runs = {point.key for point in added}
    kept = [point for point in read_points(file) if point.key not in runs]
    write_table(file, Point, [*kept, *added])
