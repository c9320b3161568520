# SPDX-License-Identifier: Apache-2.0
"""What a run folder says about itself: its summary, its curves and how it was scored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secl_models.inference.evaluations import Evaluation, load_evaluation
from secl_models.options.events import tell
from secl_models.train.run_folder import HISTORY, SUMMARY, read_history, read_summary


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: Where it is.
        facts: The entries of summary.json; none before the run ends.
        evaluation: Scores of a checkpoint; None where it was not evaluated.
        rows: Of history.csv.
        best: Scores of the checkpoint that validation chose.
    """

    folder: Path
    facts: dict[str, Any]
    evaluation: Evaluation | None
    rows: list[dict[str, str]]
    best: Evaluation | None = None

    @property
    def method(self) -> str:
        """What was trained; of an unfinished run the name of its folder."""
        return str(self.facts.get("method", self.folder.name))

    def scored(self, *, both: bool) -> list[tuple[str, Evaluation]]:
        """Name of the row and evaluation: of the last checkpoint, and of the best if `both`."""
        if self.evaluation is None:
            return []
        if not both or self.best is None:
            return [(self.method, self.evaluation)]
        return [(f"{self.method}, last", self.evaluation), (f"{self.method}, best", self.best)]

    def curve(self, column: str, scale: float = 1.0, *, over: str = "step") -> list[tuple[float, float]]:
        """The points of a column of the history where it has a value.

        Args:
            column: Of the vertical axis.
            scale: Factor on it, 100 for percent.
            over: Column of the horizontal axis.
        """
        return [(float(row[over]), scale * float(row[column])) for row in self.rows if row.get(column)]


def read_run(folder: Path, split: str, checkpoint: str = "last") -> Run:
    """Read what a run folder holds; what is missing is empty.

    Args:
        folder: Of the run.
        split: List of the evaluation, `test` or `val`.
        checkpoint: That of `evaluation`.

    Raises:
        InputError: A file is not what was written any more.
    """
    history = folder / HISTORY
    rows = read_history(history) if history.is_file() else []
    facts = read_summary(folder / SUMMARY)
    evaluation, best = (_of_now(load_evaluation(folder, split, name), facts, folder) for name in (checkpoint, "best"))
    return Run(folder, facts, evaluation, rows, best)


def _of_now(found: Evaluation | None, facts: dict[str, Any], folder: Path) -> Evaluation | None:
    """Scores of a checkpoint as it is now; None, and told, where the run went on after it was evaluated."""
    if found is None or found.step is None:
        return found
    now = facts.get("best_step" if found.checkpoint.startswith("best") else "steps", found.step)
    if found.step == now:
        return found
    told = f"the scores of {found.checkpoint} are of step {found.step}, and the run is at step {now}"
    tell("note", f"{folder}: {told}: they are left out. Call `secl evaluate` again.", level=logging.WARNING)
    return None
