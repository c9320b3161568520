# SPDX-License-Identifier: Apache-2.0
"""How sure a run is, and how sure it should be: charts of what `secl calibrate` found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secl_models.data.tables import read_table
from secl_models.inference.calibrations import Expected, calibration_table, load_calibration
from secl_models.inference.palette import COLOURS
from secl_models.inference.reliability import Reliability
from secl_models.options.errors import InputError
from secl_models.options.events import tell
from secl_models.report.elements import chart, legend
from secl_models.report.pictures import diagonal_chart


def calibration_charts(checkpoint: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Reliability before and after, and expected against true Dice; nothing where the run was not calibrated.

    Args:
        checkpoint: A checkpoint file or a run folder.
        names: Structures in the order of the class index.
    """
    try:
        found = load_calibration(checkpoint)
    except InputError as error:  # the run went on after it was calibrated
        tell("note", f"Left out of the report: {error}", level=logging.WARNING)
        return []
    if found is None:
        return []
    part, whose = (found.test, "test") if found.test.cases else (found.val, "validation")
    before, after = part.before, part.after
    lines = {"as trained": _points(before), f"temperature {found.temperature:.2f}": _points(after)}
    text = (
        f"Voxels near the structures of {part.cases} {whose} cases: {100 * before.error:.1f} % off the diagonal "
        f"as trained, {100 * after.error:.1f} % with the temperature of the validation cases."
    )
    limits = (0.0, 100.0)
    sure = diagonal_chart(lines, x="probability of the class, %", y="right, %", limits=limits, joined=True)
    charts = [chart("How far to believe a probability", text, sure, legend(lines, COLOURS))]
    dice = read_table(calibration_table(checkpoint), Expected, "what secl calibrate wrote", "calibrate again")
    if dice and found.dice_error is not None:
        dots = {name: [(100 * e.expected, 100 * e.dice) for e in dice if e.structure == name] for name in names}
        related = "" if found.correlation is None else f"correlation {found.correlation:.2f}, "
        text = f"Each test case and structure: {related}{100 * found.dice_error:.1f} points apart on average."
        foreseen = diagonal_chart(dots, x="Dice % expected without truth", y="true Dice %", limits=limits)
        charts.append(chart("Dice without truth", text, foreseen, legend(names, COLOURS)))
    return charts


def _points(reliability: Reliability) -> list[tuple[float, float]]:
    bins = zip(reliability.voxels, reliability.confidence, reliability.accuracy, strict=True)
    return [(100 * confidence, 100 * accuracy) for voxels, confidence, accuracy in bins if voxels]
