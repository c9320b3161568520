# SPDX-License-Identifier: Apache-2.0
"""The curves of a study: what each run reached at each validation, and how good its pseudo-labels were."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from secl_models.data.tables import read_table, write_table
from secl_models.train.run_folder import HISTORY


class RunKey(NamedTuple):
    """What tells the runs of a study apart: the same columns in both of its files."""

    data: str
    labeled: int
    method: str
    budget: str
    seed: int
    options: str  # preset and overrides


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

    @property
    def key(self) -> RunKey:
        """The run that it belongs to."""
        return RunKey(self.data, self.labeled, self.method, self.budget, self.seed, self.options)


def curves_file(study: Path) -> Path:
    """Where the curves of the study in a CSV file are kept: beside it."""
    return study.with_name(f"{study.stem}_curves.csv")


def read_curve(run: Path, key: RunKey, commit: str) -> list[Point]:
    """The validations of a run.

    Args:
        run: Its folder, with history.csv.
        key: Of the run.
        commit: Of the code that ran.
    """
    with (run / HISTORY).open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["val_dice"]]
    return [
        Point(
            *key,
            step=int(row["step"]),
            seconds=float(row["seconds"]),
            processor_seconds=float(row["processor_seconds"]),
            dice=_percent(row["val_dice"]),
            coverage=_by_structure(row, "coverage "),
            purity=_by_structure(row, "purity "),
            commit=commit,
        )
        for row in rows
    ]


def _percent(text: str) -> float:
    return round(100 * float(text), 3)


def _by_structure(row: Mapping[str, str], prefix: str) -> str:
    values = {name.removeprefix(prefix): text for name, text in row.items() if name.startswith(prefix) and text}
    return ";".join(f"{name}={_percent(text)}" for name, text in values.items())


def read_points(file: Path) -> list[Point]:
    """Read the curves of a study.

    Args:
        file: The CSV file; missing is empty.

    Raises:
        InputError: The columns or a value are not those of curves.
    """
    return read_table(file, Point, "curves", "remove or rename the file")


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
