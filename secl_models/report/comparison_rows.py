# SPDX-License-Identifier: Apache-2.0
"""The two tables of a comparison as CSV: a row per run and structure, and a row per pair, structure and measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.inference.evaluations import Evaluation
from secl_models.report.pairing import Pairing


@dataclass(frozen=True)
class ScoreRow:
    """A structure of a run, or a run that was not evaluated. Dice in percent; standard deviations over patients."""

    run: str
    group: str
    method: str
    data: str
    labeled: int
    seed: int
    steps: int
    minutes: float | None
    memory_mib: float | None
    structure: str = ""
    dice: float | None = None
    dice_sd: float | None = None
    hd95: float | None = None
    hd95_sd: float | None = None
    assd: float | None = None
    assd_sd: float | None = None
    unit: str = ""
    patients: int = 0
    missed: int = 0
    invented: int = 0


@dataclass(frozen=True)
class DifferenceRow:
    """First minus second: mean over patients, Student's and bootstrap interval, and the same over common seeds."""

    first: str
    second: str
    structure: str
    measure: str
    unit: str
    patients: int
    cases: int
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    seeds: int = 0
    seeds_mean: float | None = None
    seeds_sd: float | None = None


def differences_file(scores: Path) -> Path:
    """Where the differences of a comparison go: beside its scores."""
    return scores.with_name(f"{scores.stem}_pairs.csv")


def with_scores(run: ScoreRow, evaluation: Evaluation | None) -> Iterator[ScoreRow]:
    """The rows of a run, one for each structure; of a run without scores that one row.

    Args:
        run: What its rows have in common.
        evaluation: Its scores.
    """
    if evaluation is None:
        yield run
        return
    for summary in evaluation.summary:
        dice, dice_sd = (_known(100 * value) for value in summary.dice)
        hd95, hd95_sd, assd, assd_sd = map(_known, (*summary.hd95, *summary.assd))
        yield replace(
            run, structure=summary.structure, dice=dice, dice_sd=dice_sd, hd95=hd95, hd95_sd=hd95_sd, assd=assd,
            assd_sd=assd_sd, unit=summary.unit, patients=summary.patients, missed=summary.missed,
            invented=summary.spurious,
        )  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def difference_rows(pairings: Iterable[Pairing]) -> Iterator[DifferenceRow]:
    """The rows of all pairs that share cases.

    Args:
        pairings: Of the comparison.
    """
    for pairing in pairings:
        for each in pairing.differences:
            low, high = each.patients.interval() or (None, None)
            below, above = each.resampled or (None, None)
            seeds = (each.seeds.count, each.seeds.mean, each.seeds.deviation) if each.seeds else (0, None, None)
            yield DifferenceRow(
                pairing.first.title, pairing.second.title, each.structure, each.measure, each.unit,
                each.patients.count, pairing.cases, each.patients.mean, each.patients.deviation,
                low, high, below, above, *seeds,
            )  # fmt: skip
