# SPDX-License-Identifier: Apache-2.0
"""The CSV file of a study of suggested patients: a row per run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from secl_models.data.tables import read_table

FIRST, RANDOM = "first", "random"  # the other choices are those of `inference.suggest.WAYS`


class Draw(NamedTuple):
    """What tells the runs of one draw from those of another: the same columns as in a row."""

    data: str
    method: str
    seed: int
    options: str  # preset and overrides


@dataclass(frozen=True)
class LabellingRow:
    """One line of the CSV file: the last checkpoint of one run. Dice in percent, distances in the data's unit."""

    data: str
    method: str
    seed: int
    options: str  # preset and overrides
    choice: str  # first, random, or how they were suggested: doubt or typical
    patients: str  # the labelled ones, between semicolons
    dice: float
    hd95: float
    assd: float
    structures: str  # "Anterior=78.1;Posterior=77.0"
    steps: int
    seconds: float  # of training steps alone
    machine: str
    commit: str

    @property
    def draw(self) -> Draw:
        """The draw that it belongs to."""
        return Draw(self.data, self.method, self.seed, self.options)


def read_labelling(file: Path) -> list[LabellingRow]:
    """Read the CSV file of such a study.

    Args:
        file: The file; missing is empty.

    Raises:
        InputError: The columns or a value are not those of such a study.
    """
    return read_table(file, LabellingRow, "a study of suggested patients", "name another --csv")
