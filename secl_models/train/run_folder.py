# SPDX-License-Identifier: Apache-2.0
"""The folder of a run beside its checkpoints: history.csv, TensorBoard scalars, summary.json."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard.writer import SummaryWriter

from secl_models.data.files import UNFINISHED, write_text
from secl_models.method import checkpoint
from secl_models.options.errors import InputError

HISTORY, SUMMARY, CONFIG, SPLIT = "history.csv", "summary.json", "config.yaml", "split.json"
RUN_FILES = (checkpoint.LAST, checkpoint.BEST, HISTORY, SUMMARY, CONFIG, SPLIT)
COLUMNS = (
    "step",
    "seconds",
    "processor_seconds",
    "lr",
    "ramp",
    "loss",
    "supervised",
    "consistency",
    "region",
    "anatomical",
    "mixed",
    "cells",
    "coverage",
    "precision",
    "positives",
    "skipped",
    "images_per_second",
    "memory_mib",
    "val_dice",
    "val_precision",
)


@dataclass(frozen=True)
class RunSummary:
    """What a finished run reports; the content of summary.json."""

    out: str
    method: str
    labeled: int
    seed: int
    steps: int
    seconds: float  # of training steps alone, without loading and validation, over all resumptions
    processor_seconds: float  # the same in processor time of all threads
    total_seconds: float  # of this call, everything included
    best_dice: float | None  # on the validation cases, in [0, 1]; None without such cases
    best_step: int | None
    last_dice: float | None
    peak_memory_mib: float
    parameters: int
    notes: tuple[str, ...]
    versions: dict[str, str]
    commit: str | None
    machine: str


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write summary.json."""
    write_text(path, json.dumps(asdict(summary), indent=2) + "\n")


def refuse_held(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run which was not asked for.

    Args:
        out: Run folder.
        resume: An earlier run is to go on.
        overwrite: An earlier run is to be removed.

    Raises:
        InputError: The folder holds a run and neither was asked for, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(out, rule="a folder for the run", got="a file", cure="name another --out")
    held = [name for name in RUN_FILES if (out / name).exists()]
    if held and not resume and not overwrite:
        raise InputError(
            out,
            rule="an empty or new folder for a new run",
            got=f"a folder with {', '.join(held)}",
            cure="add --resume to go on, --overwrite to begin anew, or name another --out",
        )


def make_folder(out: Path, *, clear: bool) -> None:
    """Make the run folder and, to `clear` it, remove all that an earlier run and its evaluation left there.

    What a killed process was writing when it died is removed in any case: a folder belongs to one run at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    left = (*RUN_FILES, "evaluation_*", "report.html") if clear else ()
    for pattern in (*left, UNFINISHED):
        for file in out.glob(pattern):
            file.unlink()
    if clear:
        shutil.rmtree(out / "tensorboard", ignore_errors=True)


class History:
    """Rows of history.csv and the same scalars for TensorBoard, one row per logged step.

    Args:
        out: Run folder.
        structures: Names of the structures; each has columns `dice <name>`, `coverage <name>`, `purity <name>`.
        done: Optimiser steps of the checkpoint a run goes on from; later rows are dropped.
    """

    def __init__(self, out: Path, structures: Sequence[str], done: int) -> None:
        self._path = out / HISTORY
        kinds = ("dice", "coverage", "purity")
        self._columns = [*COLUMNS, *(f"{kind} {name}" for kind in kinds for name in structures)]
        self._rows: list[dict[str, str]] = []
        if done and self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as stream:
                self._rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= done]
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)

    def add(self, step: int, values: Mapping[str, float], picture: npt.NDArray[np.uint8] | None = None) -> None:
        """Append the values of one step; columns without a value stay empty, NaN as well.

        Args:
            step: Optimiser steps done.
            values: By column.
            picture: [rows, columns, 3] for TensorBoard, of a step that was validated.
        """
        row = {
            "step": str(step),
            **{name: f"{value:.6g}" for name, value in values.items() if not math.isnan(value)},
        }
        self._rows.append(row)
        for name in row.keys() - {"step"}:
            self._board.add_scalar(name.replace(" ", "/", 1), values[name], step)
        if picture is not None:
            self._board.add_image("validation/image, label, prediction", picture, step, dataformats="HWC")

    def write(self) -> None:
        """Bring history.csv up to date, whole."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, stream.getvalue())
        self._board.flush()

    def close(self) -> None:
        """Write what is left and release the TensorBoard file."""
        self.write()
        self._board.close()
