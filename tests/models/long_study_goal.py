# SPDX-License-Identifier: Apache-2.0
"""What was wanted of the long study beside what it found, as a table."""

from __future__ import annotations

from typing import NamedTuple

from secl_models.report.spread import Spread
from tests.models.committed import interval, markdown, signed
from tests.models.long_study import OURS, Kind, differences, kinds

DICE, HD95, OVER_LABELS, OF_CONTRAST, NO_LOSS, WITHOUT_MIXING = 84.0, 4.0, 12.0, 1.0, -0.5, 2.0
ACDC = ("acdc", 3)


class Goal(NamedTuple):
    """A line of the table."""

    wanted: str
    found: str
    met: bool


def gained() -> dict[tuple[str, int], dict[str, Spread]]:
    """What each ingredient gives, by data set and number of labels."""
    found: dict[tuple[str, int], dict[str, Spread]] = {}
    for each in differences():
        spread = Spread.of(each.values)
        assert spread is not None
        found.setdefault((each.data, each.labeled), {})[each.name] = spread
    return found


def goals() -> list[Goal]:
    """Every line: scores, then differences."""
    return [*_scores(), *_differences()]


def goal_markdown() -> str:
    """The table."""
    lines = [(goal.wanted, goal.found, "yes" if goal.met else "no") for goal in goals()]
    return markdown(("wanted", "found", "met"), lines, left=3)


def _scores() -> list[Goal]:
    rows = kinds("study_long.csv")[Kind(*ACDC, *OURS)]
    dice, hd95 = Spread.of([row.dice for row in rows]), Spread.of([row.hd95 for row in rows])
    assert dice is not None
    assert hd95 is not None
    return [
        Goal(f"ACDC, 3 patients: Dice of at least {DICE:g} %", dice.text(), dice.mean >= DICE),
        Goal(f"the same: HD95 of at most {HD95:g} voxels", hd95.text(), hd95.mean <= HD95),
    ]


def _differences() -> list[Goal]:
    found = gained()
    best, contrast = found[ACDC]["both, labels in patches"], found[ACDC]["contrast on top of mixing"]
    own = {place: each["contrast on top of mixing"] for place, each in found.items()}
    alone = {
        place: each["contrast without mixing"] for place, each in found.items() if "contrast without mixing" in each
    }
    return [
        Goal(
            f"the same: {OVER_LABELS:g} points over labels only at equal time, on the grid that suits these best",
            _told(best),
            best.mean >= OVER_LABELS,
        ),
        Goal(
            f"contrast on top of mixing: {OF_CONTRAST:g} point with its interval above zero on ACDC",
            _told(contrast),
            contrast.mean >= OF_CONTRAST and (contrast.interval() or (0.0, 0.0))[0] > 0,
        ),
        Goal(
            f"the same nowhere below {NO_LOSS:g} points", _each(own), min(each.mean for each in own.values()) >= NO_LOSS
        ),
        Goal(
            f"contrast without mixing: {WITHOUT_MIXING:g} points over a mean teacher",
            _each(alone),
            min(each.mean for each in alone.values()) >= WITHOUT_MIXING,
        ),
    ]


def _told(spread: Spread) -> str:
    return f"{interval(spread)}, {spread.count} pairs" if spread.count > 1 else f"{signed(spread.mean)}, one pair"


def _each(found: dict[tuple[str, int], Spread]) -> str:
    return "; ".join(f"{data}, {labeled}: {_told(spread)}" for (data, labeled), spread in found.items())
