# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves: CSV by case and by patient, summary JSON, and the table for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secl_models.data.files import write_text
from secl_models.data.folders import note_written
from secl_models.data.tables import read_table, write_table
from secl_models.inference.metrics import (
    DEFINITIONS,
    MEAN,
    CaseScores,
    StructureScore,
    StructureSummary,
    per_patient,
    summarise,
)
from secl_models.options.errors import InputError, writing

LARGEST = "-largest"  # after the name of a checkpoint: its predictions with the largest parts of some structures alone
CHECKPOINTS = ("last", "best", f"last{LARGEST}", f"best{LARGEST}")
PATIENT_COLUMNS = ("patient", "structure", "dice", "hd95", "assd", "unit", "cases", "missed", "spurious", "absent")


@dataclass(frozen=True)
class _Place:
    patient: str
    case: str


@dataclass(frozen=True)
class _Row(StructureScore, _Place):
    """A line of the table by case: whose it is, and the score of a structure."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint on one list of cases."""

    checkpoint: str
    split: str
    cases: tuple[CaseScores, ...]
    seconds: float
    step: int | None = None  # optimiser steps of the checkpoint, if known
    one_part: tuple[str, ...] = ()  # structures of which the largest part alone was scored

    @property
    def summary(self) -> list[StructureSummary]:
        """Mean and standard deviation over patients, per structure; the last row is over all structures."""
        return summarise(self.cases)


def save_evaluations(results: Sequence[Evaluation], out: Path, *, pair: bool) -> None:
    """Write two CSVs per checkpoint, by case and by patient, and the summaries; older files are replaced whole.

    The summaries of a run's last and best checkpoint stand side by side in `evaluation_<split>.json`; that of a
    checkpoint evaluated alone goes to `evaluation_<split>_<checkpoint>.json` and leaves the pair alone.

    Args:
        results: Evaluations of one run.
        out: Folder; made where missing.
        pair: The results are all checkpoints of a run.
    """
    summaries: dict[str, dict[str, object]] = {}
    for result in results:
        stem = f"evaluation_{result.split}_{result.checkpoint}"
        with _noted(out, f"{stem}.csv") as file:
            write_table(file, _Row, _rows(result.cases))
        with _noted(out, f"{stem}_patients.csv") as file:
            write_text(file, _patients_csv(result.cases))
        name = f"evaluation_{result.split}" if pair else stem
        summaries.setdefault(name, {})[result.checkpoint] = _as_json(result)
    for name, summary in summaries.items():
        text = json.dumps({**summary, "definitions": DEFINITIONS}, indent=2, allow_nan=False)
        with _noted(out, f"{name}.json") as file:
            write_text(file, text)


@contextmanager
def _noted(out: Path, name: str) -> Iterator[Path]:
    """A file that goes onto the list of its folder and is then written."""
    with writing(out / name, "evaluate again: what was written before stays"):
        note_written(out, name)
        yield out / name


def load_evaluation(run: Path, split: str = "test", checkpoint: str = "last") -> Evaluation | None:
    """Read back what `evaluate` wrote, or None where this checkpoint was not evaluated.

    Args:
        run: Folder with the CSV file.
        split: `test` or `val`.
        checkpoint: `last` or `best`.

    Returns:
        The evaluation; its seconds are NaN, the CSV does not hold them.

    Raises:
        InputError: The file is not what `evaluate` wrote any more.
    """
    file = run / f"evaluation_{split}_{checkpoint}.csv"
    if not file.is_file():
        return None
    cases: dict[tuple[str, str], list[StructureScore]] = {}
    for row in read_table(file, _Row, "the scores of an evaluation", "evaluate the run again"):
        score = StructureScore(row.structure, row.dice, row.hd95, row.assd, row.unit, row.state)
        cases.setdefault((row.patient, row.case), []).append(score)
    if not cases:
        raise InputError(file, rule="the scores of at least one case", got="none", cure="evaluate the run again")
    found = tuple(CaseScores(*key, tuple(scores)) for key, scores in cases.items())
    return Evaluation(checkpoint, split, found, math.nan, _step(run, split, checkpoint))


def _step(run: Path, split: str, checkpoint: str) -> int | None:
    """Optimiser steps of the checkpoint that was scored, by the latest summary that says so."""
    stem = f"evaluation_{split}"
    found = [file for name in (stem, f"{stem}_{checkpoint}") if (file := run / f"{name}.json").is_file()]
    for file in sorted(found, key=lambda each: -each.stat().st_mtime_ns):
        try:
            step = json.loads(file.read_text(encoding="utf-8"))[checkpoint]["step"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(step, int):
            return step
    return None


def evaluation_table(results: Sequence[Evaluation]) -> Table:
    """The summaries of several checkpoints side by side, for the terminal.

    Args:
        results: Evaluations of one run, at least one.

    Returns:
        A rich table: Dice in percent, distances in their unit, mean and SD over patients.
    """
    total = results[0].summary[-1]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    cases = f"{results[0].split} list, {total.patients} patients"
    table.caption = f"mean (SD) over patients, {cases}; cases: M missed, I invented, A absent"
    if kept := next((result.one_part for result in results if result.one_part), ()):
        table.caption += f"\n{LARGEST}: {', '.join(kept)} as one part, as in every labelled training case"
    for name in ("", "structure", "Dice %", f"HD95 {total.unit}", f"ASSD {total.unit}", "M", "I", "A"):
        text = name in ("", "structure")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for result in results:
        for number, row in enumerate(result.summary):
            means = (format_mean(row.dice, 100), format_mean(row.hd95), format_mean(row.assd))
            counts = map(str, (row.missed, row.spurious, row.absent))
            cells = (result.checkpoint if number == 0 else "", row.structure, *means, *counts)
            table.add_row(*map(escape, cells), end_section=row.structure == MEAN)
    return table


def format_mean(value: tuple[float, float], scale: float = 1.0, digits: int = 1) -> str:
    """Write a mean and its standard deviation, a dash where there is none.

    Args:
        value: (mean, SD), either may be NaN.
        scale: Factor on both, 100 for percent.
        digits: Decimals.

    Returns:
        Such as `87.1 (2.3)`.

    Example:
        >>> format_mean((0.8714, 0.023), 100)
        '87.1 (2.3)'
    """
    mean, spread = (f"{number * scale:.{digits}f}" if math.isfinite(number) else "-" for number in value)
    return mean if spread == "-" else f"{mean} ({spread})"


def _rows(cases: Iterable[CaseScores]) -> Iterable[_Row]:
    for case in cases:
        for score in case.scores:
            yield _Row(case.patient, case.case, **asdict(score))


def _patients_csv(cases: Sequence[CaseScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, PATIENT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for patient, rows in per_patient(cases).items():
        count = sum(case.patient == patient for case in cases)
        for row in rows:
            means = {name: value[0] for name, value in (("dice", row.dice), ("hd95", row.hd95), ("assd", row.assd))}
            known = {name: value for name, value in means.items() if math.isfinite(value)}
            counts = {"cases": count, "missed": row.missed, "spurious": row.spurious, "absent": row.absent}
            writer.writerow({"patient": patient, "structure": row.structure, "unit": row.unit, **known, **counts})
    return text.getvalue()


def _as_json(result: Evaluation) -> dict[str, object]:
    def finite(value: tuple[float, float]) -> dict[str, float | None]:
        return {name: x if math.isfinite(x) else None for name, x in zip(("mean", "sd"), value, strict=True)}

    structures = {
        row.structure: {
            **asdict(row),
            "dice": finite(row.dice),
            "hd95": finite(row.hd95),
            "assd": finite(row.assd),
        }
        for row in result.summary
    }
    return {
        "step": result.step,
        **({"one_part": list(result.one_part)} if result.one_part else {}),
        "seconds": round(result.seconds, 3),
        "cases": len(result.cases),
        "structures": structures,
    }
