# SPDX-License-Identifier: Apache-2.0
"""The folder of a run beside its checkpoints: history.csv, TensorBoard scalars, summary.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard.writer import SummaryWriter

from secl_models.data.files import write_text
from secl_models.data.folders import note_written, refuse_unlisted, remove_partial, remove_written, written
from secl_models.method import checkpoint
from secl_models.options.errors import InputError
from secl_models.options.plain import from_plain

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
    "prototype",
    "centroid",
    "disagreement",
    "second",
    "nearest",
    "banks",
    "anchors",
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
    data: str = ""  # name of the data set
    init: str = ""  # what of a file of weights the network began with, if it began with one


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
        InputError: The folder holds a run and neither was asked for, or files of these names that no run wrote.
    """
    held = [name for name in RUN_FILES if (out / name).exists()]
    if held and not resume and not overwrite:
        raise InputError(
            out,
            rule="an empty or new folder for a new run",
            got=f"a folder with {', '.join(held)}",
            cure="add --resume to go on, --overwrite to begin anew, or name another --out",
        )
    if not (resume and checkpoint.LAST in held):
        refuse_unlisted(out, held)


def make_folder(out: Path, *, clear: bool) -> None:
    """Make the run folder ready, and put the files of a run onto its list.

    What a killed process was writing when it died is removed in any case: a folder belongs to one run at a time.

    Args:
        out: Run folder, held by this process.
        clear: Remove what an earlier run and its evaluation left there; what they did not write stays.
    """
    if clear:
        remove_written(out)
    note_written(out, *RUN_FILES)
    remove_partial(out, written(out))
    remove_partial(out, RUN_FILES)


def read_history(file: Path, columns: Collection[str] | None = None) -> list[dict[str, str]]:
    """The rows of history.csv: a text in each column, empty where nothing was measured.

    Args:
        file: What `History` wrote.
        columns: Those that it may have; None: any.

    Raises:
        InputError: It is not a table of steps and numbers any more, as after a spreadsheet saved it.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, strict=True))
        for row in rows:
            int(row["step"])
            _require_numbers(row)
        unknown = sorted(rows[0].keys() - set(columns)) if rows and columns is not None else []
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r}")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            file,
            rule="the history as it was written: names in the first line, numbers between commas, `step` whole",
            got=f"fault at {error}",
            cure="restore it, or remove it: checkpoints are whole without it, and the curves begin anew",
        ) from error
    return rows


def copy_history(start: Path, out: Path) -> None:
    """Let the history of a run begin with that of the one it goes on from, if that has one."""
    if (start / HISTORY).is_file():
        write_text(out / HISTORY, (start / HISTORY).read_text(encoding="utf-8"))


def _require_numbers(row: Mapping[str, str]) -> None:
    for value in row.values():
        float(value if value != "" else "nan")


def read_summary(file: Path) -> dict[str, Any]:
    """The entries of summary.json; none where the file is missing.

    Raises:
        InputError: It is not a summary any more.
    """
    if not file.is_file():
        return {}
    try:
        # A score that is not a number, as of an empty list, is none.
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
        return asdict(from_plain(RunSummary, values))
    except (ValueError, TypeError) as error:  # InputError is a ValueError
        cure = "restore it, or let the run write it again: the same command with --resume"
        raise InputError(file, rule="the summary as it was written", got=error, cure=cure) from error


def _open_board(out: Path, purge_step: int) -> SummaryWriter:
    place = out / "tensorboard"
    before = set(place.iterdir()) if place.is_dir() else set()
    board = SummaryWriter(str(place), purge_step=purge_step)
    note_written(out, *(str(file.relative_to(out)) for file in set(place.iterdir()) - before))
    return board


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
            self._rows = [row for row in read_history(self._path, self._columns) if int(row["step"]) <= done]
        self._board = _open_board(out, purge_step=done + 1)

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
