# SPDX-License-Identifier: Apache-2.0
"""The best, the median and the worst case of a run, to be looked at."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from secl_models.data.cases import DataSet
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.evaluate import evaluated_cases
from secl_models.inference.evaluations import Evaluation
from secl_models.inference.metrics import CaseScores


def _case_dice(case: CaseScores) -> float:
    values = [score.dice for score in case.scores if score.dice is not None]
    return statistics.fmean(values) if values else math.nan


def chosen_volumes(evaluation: Evaluation, data: DataSet, run: Path, split: str) -> list[tuple[str, float, Volume]]:
    """Rank, mean Dice and volume of the best, the median and the worst case of a run.

    Args:
        evaluation: Of the run.
        data: Where images and truth of the cases are read.
        run: Its folder, whose split names the cases.
        split: `test` or `val`.
    """
    cases = {case.name: case for case in evaluated_cases(run, data, split)}
    scored = [case for case in evaluation.cases if case.case in cases and not math.isnan(_case_dice(case))]
    ranked = sorted(scored, key=_case_dice, reverse=True)
    places = {"Best": 0, "Median": len(ranked) // 2, "Worst": len(ranked) - 1}
    chosen = dict.fromkeys(places.values()) if ranked else {}
    titles = {place: next(title for title, at in places.items() if at == place) for place in chosen}
    picked = [(titles[place], ranked[place]) for place in chosen]
    return [(title, _case_dice(case), load_volume(cases[case.case], data)) for title, case in picked]
