# SPDX-License-Identifier: Apache-2.0
"""The best, the median and the worst case, of a run or of several methods, to be looked at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secl_models.data.cases import DataSet
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.evaluate import evaluated_cases
from secl_models.inference.evaluations import Evaluation
from secl_models.inference.metrics import CaseScores
from secl_models.inference.windows import segment_volume
from secl_models.method.checkpoint import LoadedModel
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError
from secl_models.report.elements import number
from secl_models.report.pairing import Side, mean_dice
from secl_models.report.pictures import overlay


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


def contoured(model: LoadedModel, volume: Volume, *, largest: bool = False) -> str:
    """A picture of a case: contours of truth and prediction on three slices.

    Args:
        model: Predicts.
        volume: With its label.
        largest: Keep the largest part alone of the structures that are one part.

    Returns:
        A PNG file as base64 text.

    Raises:
        InputError: The case has no label.
    """
    if volume.label is None:
        raise InputError(volume.case.name, rule="a reported case has a label", got="none", cure="add its label")
    prediction = segment_volume(model.network, model.preprocess, model.config, volume)
    if largest:
        keep_largest(prediction, model.one_part)
    spacing = volume.spacing or (1.0,) * prediction.ndim
    return overlay(volume.image[0], volume.label, prediction.astype(np.int64), spacing)


def extreme_cases(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """By data set the worst, the median and the best of the cases that all its methods were scored on.

    Args:
        sides: The methods of a comparison.

    Returns:
        A table for each data set; its rows are ranked by the common mean of the methods.
    """
    tables = []
    for data in dict.fromkeys(side.data for side in sides if side.runs):
        own = [side for side in sides if side.data == data and side.runs]
        dice = [mean_dice(side) for side in own]
        shared = [case for case in dice[0] if all(case in each for each in dice)]
        ranked = sorted(shared, key=lambda case: (statistics.fmean(each[case] for each in dice), case))
        places = {"Worst": 0, "Best": len(ranked) - 1, "Median": len(ranked) // 2} if ranked else {}
        unique = {place: rank for rank, place in reversed(places.items())}  # of few cases one may be two of these
        rows = [
            {"rank": unique[place], "case": ranked[place][1], "pictures": [],
             "dice": [number(each[ranked[place]]) for each in dice]}
            for place in sorted(unique)
        ]  # fmt: skip
        titles = [side.title for side in own]
        if rows:
            tables.append({"data": data, "groups": titles, "rows": rows, "cases": len(ranked), "legend": []})
    return tables
