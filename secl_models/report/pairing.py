# SPDX-License-Identifier: Apache-2.0
"""Differences between two methods, paired by case; the patient is the unit, as their cases are not independent."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from secl_models.inference.evaluations import Evaluation
from secl_models.inference.metrics import MEAN, StructureScore
from secl_models.report.spread import Spread, bootstrap

MEASURES = {"dice": 100.0, "hd95": 1.0, "assd": 1.0}
"""Measures with the factor that they are shown with: Dice in percent."""
Case = tuple[str, str]  # patient, name
Values = dict[Case, dict[str, float]]  # by structure


class Scored(NamedTuple):
    """The scores of a run."""

    seed: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Side:
    """One method of a pair.

    Attributes:
        title: What it is called.
        data: Name of the data set, or nothing where that is not known.
        runs: Those that have scores.
    """

    title: str
    data: str
    runs: tuple[Scored, ...]

    @property
    def structures(self) -> tuple[str, ...]:
        """Names that were scored."""
        return tuple(dict.fromkeys(score.structure for _, score in _scores(self.runs)))


@dataclass(frozen=True)
class Difference:
    """First minus second of one measure of one structure.

    Attributes:
        measure: A key of `MEASURES`.
        structure: Its name, or `mean`.
        unit: `%`, `mm` or `voxel`.
        patients: Over the patients, of the mean of each one's cases.
        resampled: 95 % interval of the mean by resampling patients.
        seeds: Over the seeds that both have, of the mean of the patients; None for fewer than two.
    """

    measure: str
    structure: str
    unit: str
    patients: Spread
    resampled: tuple[float, float] | None
    seeds: Spread | None


@dataclass(frozen=True)
class Pairing:
    """Two methods side by side.

    Attributes:
        first: The one that the other is taken from.
        second: That one.
        obstacle: Why nothing is paired, or nothing.
        differences: By structure and measure.
        cases: Cases that both were scored on.
        patients: Patients of those.
        alone: Cases that only the first, and only the second, was scored on.
        seeds: Those that both have; where they share none, every run counts.
        unmatched: Scores of a structure of a shared case that one has and the other lacks: it is in no truth, and one
            invented it.
    """

    first: Side
    second: Side
    obstacle: str = ""
    differences: tuple[Difference, ...] = ()
    cases: int = 0
    patients: int = 0
    alone: tuple[int, int] = (0, 0)
    seeds: tuple[int, ...] = ()
    unmatched: int = 0

    def of(self, measure: str, structure: str = MEAN) -> Difference | None:
        """One difference, if there is such."""
        found = (each for each in self.differences if (each.measure, each.structure) == (measure, structure))
        return next(found, None)


def pair_all(sides: Sequence[Side]) -> list[Pairing]:
    """Every two methods, the later one minus the earlier one."""
    return [pair(second, first) for first, second in combinations(sides, 2)]


def pair(first: Side, second: Side) -> Pairing:
    """Compare two methods on the cases that both were scored on.

    The score of a case is its mean over the runs of a method; the difference of a patient is the mean over its cases,
    that of `mean` over its structures too, as in `inference.metrics.summarise`.

    Args:
        first: The one that the other is taken from.
        second: That one.
    """
    structures = [name for name in first.structures if name in second.structures]
    if obstacle := _obstacle(first, second, structures):
        return Pairing(first, second, obstacle)
    shared = sorted({run.seed for run in first.runs} & {run.seed for run in second.runs})
    sides = [[run for run in side.runs if run.seed in shared or not shared] for side in (first, second)]
    ours, theirs = (_cases(side) for side in sides)
    both = ours & theirs
    if not both:
        return Pairing(first, second, "they were scored on no case in common")
    differences = [
        found
        for structure in (*structures, MEAN)
        for measure in MEASURES
        if (found := _difference(sides, measure, structure, structures, both, shared))
    ]
    return Pairing(
        first, second, "", tuple(differences), len(both), len({patient for patient, _ in both}),
        (len(ours - both), len(theirs - both)), tuple(shared), _unmatched(sides, structures, both),
    )  # fmt: skip


def mean_dice(side: Side) -> dict[Case, float]:
    """Dice of every case in percent: the mean over the runs of a method, then over its structures."""
    return {case: statistics.fmean(values.values()) for case, values in _values(side.runs, "dice").items()}


def _obstacle(first: Side, second: Side, structures: Sequence[str]) -> str:
    unscored = [side.title for side in (first, second) if not side.runs]
    if unscored:
        return f"{' and '.join(unscored)} {'were' if len(unscored) > 1 else 'was'} not evaluated"
    if first.data and second.data and first.data != second.data:
        return f"they are of different data sets, {first.data} and {second.data}"
    return "" if structures else "they have no structure in common"


def _scores(runs: Iterable[Scored]) -> Iterable[tuple[Case, StructureScore]]:
    for run in runs:
        for case in run.evaluation.cases:
            yield from (((case.patient, case.case), score) for score in case.scores)


def _cases(runs: Iterable[Scored]) -> set[Case]:
    return {case for case, _ in _scores(runs)}


def _values(runs: Iterable[Scored], measure: str) -> Values:
    """The mean over runs of every score that there is."""
    found: dict[Case, dict[str, list[float]]] = {}
    for case, score in _scores(runs):
        if (value := getattr(score, measure)) is not None:
            found.setdefault(case, {}).setdefault(score.structure, []).append(MEASURES[measure] * value)
    return {case: {name: statistics.fmean(each) for name, each in values.items()} for case, values in found.items()}


def _difference(
    sides: Sequence[Sequence[Scored]],
    measure: str,
    structure: str,
    structures: Sequence[str],
    cases: set[Case],
    seeds: Sequence[int],
) -> Difference | None:
    wanted = structures if structure == MEAN else (structure,)
    units = {
        score.unit for side in sides for case, score in _scores(side) if case in cases and score.structure in wanted
    }
    if measure != "dice" and len(units) > 1:
        return None
    found = list(_by_patient(sides, measure, wanted, cases).values())
    patients = Spread.of(found)
    if patients is None:
        return None
    of_seeds = []
    for seed in seeds:
        own = [[run for run in side if run.seed == seed] for side in sides]
        if values := _by_patient(own, measure, wanted, cases):
            of_seeds.append(statistics.fmean(values.values()))
    unit = "%" if measure == "dice" else units.pop()
    over_seeds = Spread.of(of_seeds) if len(of_seeds) > 1 else None
    return Difference(measure, structure, unit, patients, bootstrap(found), over_seeds)


def _by_patient(
    sides: Sequence[Sequence[Scored]], measure: str, structures: Iterable[str], cases: set[Case]
) -> dict[str, float]:
    """First minus second of each patient: the mean over cases, then over structures."""
    ours, theirs = (_values(side, measure) for side in sides)
    found: dict[str, dict[str, list[float]]] = {}
    for case in sorted(cases & ours.keys() & theirs.keys()):
        for name in structures:
            if name in ours[case] and name in theirs[case]:
                own = found.setdefault(case[0], {}).setdefault(name, [])
                own.append(ours[case][name] - theirs[case][name])
    return {patient: statistics.fmean(map(statistics.fmean, by.values())) for patient, by in found.items()}


def _unmatched(sides: Sequence[Sequence[Scored]], structures: Iterable[str], cases: set[Case]) -> int:
    ours, theirs = (_values(side, "dice") for side in sides)
    return sum((name in ours.get(case, {})) != (name in theirs.get(case, {})) for case in cases for name in structures)
