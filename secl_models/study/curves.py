# SPDX-License-Identifier: Apache-2.0
"""The curve of a run: what it reached at each validation, and how good its pseudo-labels were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from secl_models.study.rows import Point, RunKey
from secl_models.train.run_folder import HISTORY, read_history


def read_curve(run: Path, key: RunKey, commit: str) -> list[Point]:
    """The validations of a run.

    Args:
        run: Its folder, with history.csv.
        key: Of the run.
        commit: Of the code that ran.
    """
    rows = [row for row in read_history(run / HISTORY) if row["val_dice"]]
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


def peak_memory(run: Path) -> float:
    """Most MiB that a run held by its history, in all the sittings that it took."""
    return max(float(row["memory_mib"] or 0) for row in read_history(run / HISTORY))


def _percent(text: str) -> float:
    return round(100 * float(text), 3)


def _by_structure(row: Mapping[str, str], prefix: str) -> str:
    values = {name.removeprefix(prefix): text for name, text in row.items() if name.startswith(prefix) and text}
    return ";".join(f"{name}={_percent(text)}" for name, text in values.items())
