# SPDX-License-Identifier: Apache-2.0
"""The two tables of a comparison as CSV: a row per run and structure, and a row per pair, structure and measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from secl_models.inference.metrics import StructureSummary
from secl_models.report.groups import Group, Member
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


def score_rows(groups: Iterable[Group]) -> Iterator[ScoreRow]:
    """The rows of all runs, a run of no evaluation with one.

    Args:
        groups: Of the comparison.
    """
    for group in groups:
        for member in group.members:
            summaries = member.evaluation.summary if member.evaluation else [None]
            yield from (_score_row(group, member, summary) for summary in summaries)


def _score_row(group: Group, member: Member, summary: StructureSummary | None) -> ScoreRow:
    minutes = None if member.seconds is None else member.seconds / 60
    own = (
        member.name, group.title, member.config.train.method, member.data, member.config.labeled, member.config.seed,
        member.steps, minutes, member.memory_mib,
    )  # fmt: skip
    if summary is None:
        return ScoreRow(*own)
    dice, dice_sd, *distances = (
        value if math.isfinite(value) else None for pair in (summary.dice, summary.hd95, summary.assd) for value in pair
    )
    percent = [None if value is None else 100 * value for value in (dice, dice_sd)]
    counts = summary.patients, summary.missed, summary.spurious
    return ScoreRow(*own, summary.structure, *percent, *distances, summary.unit, *counts)


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
