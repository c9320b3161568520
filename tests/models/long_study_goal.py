# SPDX-License-Identifier: Apache-2.0
"""What was wanted of the long study beside what it found, as a table."""

from __future__ import annotations

from typing import NamedTuple

from secl_models.report.spread import Spread
from tests.models.committed import interval, markdown, signed
from tests.models.long_study import OURS, OURS_FINER, Kind, differences, kinds

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
    found = kinds("study_long.csv")
    grids = {name: found.get(Kind(*ACDC, *ours)) for name, ours in (("64 x 64", OURS), ("96 x 96", OURS_FINER))}
    dice, hd95 = (
        {name: Spread.of([getattr(row, score) for row in rows]) for name, rows in grids.items() if rows}
        for score in ("dice", "hd95")
    )
    return [
        Goal(
            f"ACDC, 3 patients: Dice of at least {DICE:g} %",
            _on_grids(dice),
            any(spread is not None and spread.mean >= DICE for spread in dice.values()),
        ),
        Goal(
            f"the same: HD95 of at most {HD95:g} voxels",
            _on_grids(hd95),
            any(spread is not None and spread.mean <= HD95 for spread in hd95.values()),
        ),
    ]


def _differences() -> list[Goal]:
    found = gained()
    best = found[ACDC]["both, labels in patches"]
    own, alone = (
        {f"{data}, {labeled}": each[name] for (data, labeled), each in found.items() if name in each}
        for name in ("contrast on top of mixing", "contrast without mixing")
    )
    on_acdc = {place: spread for place, spread in own.items() if place in ("acdc, 1", "acdc, 3")}
    everywhere = own | {
        f"{data}, {labeled}, 96 x 96": each["contrast, 96 x 96"]
        for (data, labeled), each in found.items()
        if "contrast, 96 x 96" in each
    }
    return [
        Goal(
            f"the same: {OVER_LABELS:g} points over labels only at equal time, on the grid that suits these best",
            _told(best),
            best.mean >= OVER_LABELS,
        ),
        Goal(
            f"contrast on top of mixing: {OF_CONTRAST:g} point with its interval above zero on ACDC, 1 or 3 patients",
            _each(on_acdc),
            any(each.mean >= OF_CONTRAST and (each.interval() or (0.0, 0.0))[0] > 0 for each in on_acdc.values()),
        ),
        Goal(
            f"the same nowhere below {NO_LOSS:g} points",
            _each(everywhere),
            min(each.mean for each in everywhere.values()) >= NO_LOSS,
        ),
        Goal(
            f"contrast without mixing: {WITHOUT_MIXING:g} points over a mean teacher",
            _each(alone),
            min(each.mean for each in alone.values()) >= WITHOUT_MIXING,
        ),
    ]


def _told(spread: Spread) -> str:
    return f"{interval(spread)}, {spread.count} pairs" if spread.count > 1 else f"{signed(spread.mean)}, one pair"


def _each(found: dict[str, Spread]) -> str:
    return "; ".join(f"{place}: {_told(spread)}" for place, spread in found.items())


def _on_grids(found: dict[str, Spread | None]) -> str:
    return "; ".join(f"{spread.text()} at {grid}" for grid, spread in found.items() if spread is not None)
