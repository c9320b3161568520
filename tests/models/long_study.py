# SPDX-License-Identifier: Apache-2.0
"""The tables of the long study: its tries on validation patients, its finalists on test patients, and their curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from secl_models.options.methods import BASELINE, DEFAULT
from secl_models.report.spread import Spread, bootstrap
from secl_models.study.rows import STEPS, TIME, Point, Row, curves_file, read_points, read_rows, row_key
from secl_models.study.table import gains, paired
from tests.models.committed import RESULTS, markdown

AS_THEY_ARE = "as they are"
HARD = "contrast.strategy=hard contrast.weight=0.1"
WIDE = "AVX512"  # in the machine of a row: a processor that takes half of the others' minutes
FINER = "data.patch=[96,96] data.size=[96,96] train.steps=6000"
PATCHES = "data.patch=[64,64] data.size=[96,96] train.steps=3900"  # suit labels only better than small whole slices
MOST, LEAST = 24, 8  # pairs
PAIRS_OF_VARIANCE = 7.85  # two-sided 5 %, 80 % power: (1.960 + 0.842)^2


class Kind(NamedTuple):
    """What rows of several seeds have in common."""

    data: str
    labeled: int
    method: str
    settings: str


class Gains(NamedTuple):
    """Dice points that an ingredient gives with each seed."""

    data: str
    labeled: int
    name: str
    values: Sequence[float]


OURS = (DEFAULT, HARD)  # the default since; when the rows were made its options had to be given
OURS_FINER = (DEFAULT, f"{HARD} {FINER}")
DIFFERENCES = (
    ("contrast on top of mixing", OURS, ("copy-paste", AS_THEY_ARE)),
    ("contrast without mixing", ("secl", AS_THEY_ARE), ("mean-teacher", AS_THEY_ARE)),
    ("fewer whole images mixed", ("copy-paste", "mix.whole=0.25"), ("copy-paste", AS_THEY_ARE)),
    ("mixing, equal steps", ("copy-paste", AS_THEY_ARE), (BASELINE, AS_THEY_ARE)),
    ("mixing, equal time", ("copy-paste", AS_THEY_ARE), (f"{BASELINE}, equal time", AS_THEY_ARE)),
    ("both, equal steps", OURS, (BASELINE, AS_THEY_ARE)),
    ("both, equal time", OURS, (f"{BASELINE}, equal time", AS_THEY_ARE)),
    ("both, labels in patches", OURS, (BASELINE, PATCHES)),
    ("contrast, 96 x 96", OURS_FINER, ("copy-paste", FINER)),
    ("both, 96 x 96", OURS_FINER, (BASELINE, FINER)),
)


def kinds(name: str, checkpoint: str = "last") -> dict[Kind, list[Row]]:
    """The rows of a file, those of one kind together."""
    found: dict[Kind, list[Row]] = {}
    for row in read_rows(RESULTS / name):
        method = f"{row.method}, equal time" if row.budget == TIME else row.method
        if row.checkpoint == checkpoint:
            found.setdefault(Kind(row.data, row.labeled, method, _settings(row)), []).append(row)
    return found


def curves() -> list[Point]:
    """Validations of labels only where they do best, of mixing, and of both, as if of one configuration.

    Of the two settings that decide, and of one machine: the minutes of others are not comparable.
    """
    slower = {row_key(row) for row in read_rows(RESULTS / "study_long.csv") if WIDE not in row.machine}
    points = [point for point in read_points(curves_file(RESULTS / "study_long.csv")) if point.key in slower]
    finer = {(point.data, point.labeled) for point in points if _settings(point) == PATCHES}

    def shown(point: Point) -> bool:
        if point.method != BASELINE:
            return (point.method, _settings(point)) in (("copy-paste", AS_THEY_ARE), OURS)
        return _settings(point) == PATCHES if (point.data, point.labeled) in finer else point.budget == TIME

    return [replace(point, options="", budget=STEPS) for point in points if shown(point)]


def _settings(item: Row | Point) -> str:
    """What was changed of the preset; the share of the steps that all methods have in common is no part of it."""
    changed = [part for part in item.options.split()[1:] if not part.startswith("train.warm_start")]
    return " ".join(changed) or AS_THEY_ARE


def tries_markdown() -> str:
    """Each try beside `copy-paste` from the same start, on validation patients."""
    tries = kinds("study_long_tries.csv")
    lines = []
    for kind, rows in tries.items():
        mixing = tries[kind._replace(method="copy-paste", settings=AS_THEY_ARE)]
        gain = None if rows is mixing else paired(rows, mixing)
        dice, *others = _figures(rows)
        lines.append(
            (kind.data, kind.method, kind.settings, seeds_of(rows), dice, "" if gain is None else gain.text(sign=True),
             *others)
        )  # fmt: skip
    figures = ("Dice, %", "gain", "HD95, voxels", "ASSD, voxels", "minutes of a thread")
    return markdown(("data", "method", "settings", "seeds", *figures), lines, left=4)


def finals_markdown() -> str:
    """Each finalist, on test patients, as trained and with the largest part of the structures that are one."""
    whole = kinds("study_long.csv", "last-largest")
    lines = []
    for kind, rows in kinds("study_long.csv").items():
        dice, hd95, assd, minutes = _figures(rows)
        dice_of_one, hd95_of_one, *_ = _figures(whole[kind])
        figures = (dice, hd95, assd, dice_of_one, hd95_of_one, minutes)
        lines.append((kind.data, str(kind.labeled), kind.method, kind.settings, seeds_of(rows), *figures))
    head = ("data", "labelled", "method", "settings", "seeds")
    figures = ("Dice, %", "HD95, voxels", "ASSD, voxels", "Dice, one part", "HD95, one part", "minutes of a thread")
    return markdown((*head, *figures), lines, left=5)


def differences() -> list[Gains]:
    """What each ingredient gives on test patients, paired by seed."""
    found = kinds("study_long.csv")
    return [
        Gains(data, labeled, name, values)
        for data, labeled in dict.fromkeys((kind.data, kind.labeled) for kind in found)
        for name, one, other in DIFFERENCES
        if (values := gains(*(found.get(Kind(data, labeled, *which), []) for which in (one, other))))
    ]


def differences_markdown() -> str:
    """The same as a table, and how many pairs one point takes."""
    lines = [
        (each.data, str(each.labeled), each.name, str(len(each.values)), *_interval(each.values))
        for each in differences()
    ]
    head = ("data", "labelled", "Dice points")
    figures = ("pairs", "mean ± SD", "95 %, paired t", "95 %, bootstrap", "pairs wanted")
    return markdown((*head, *figures), lines, left=3)


def wanted(deviation: float) -> int:
    """Pairs that see one point at this standard deviation, by the plan: n = 7.85 s^2 + 2, at least 8, at most 24."""
    return min(MOST, max(LEAST, math.ceil(PAIRS_OF_VARIANCE * deviation**2 + 2)))


def seeds_of(rows: Sequence[Row]) -> str:
    """Such as `0, 1` or `10 - 15`."""
    seeds = sorted({row.seed for row in rows})
    runs = len(seeds) > 2 and all(later - earlier == 1 for earlier, later in pairwise(seeds))
    return f"{seeds[0]} - {seeds[-1]}" if runs else ", ".join(map(str, seeds))


def _figures(rows: Sequence[Row]) -> list[str]:
    """Dice, HD95, ASSD and minutes of a thread, mean ± SD."""
    columns = zip(*((row.dice, row.hd95, row.assd) for row in rows), strict=True)
    return [*("" if spread is None else spread.text() for spread in map(Spread.of, columns)), _minutes(rows)]


def _minutes(rows: Sequence[Row]) -> str:
    """Mean ± SD of the runs on each kind of processor."""
    kinds_of = {
        "": [row for row in rows if WIDE not in row.machine],
        " †": [row for row in rows if WIDE in row.machine],
    }
    found = {mark: Spread.of([row.processor_seconds / 60 for row in some]) for mark, some in kinds_of.items()}
    return ", ".join(f"{spread.text()}{mark}" for mark, spread in found.items() if spread is not None)


def _interval(values: Sequence[float]) -> tuple[str, ...]:
    spread = Spread.of(values)
    assert spread is not None
    ends = [
        "" if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}"
        for interval in (spread.interval(), bootstrap(values))
    ]
    return spread.text(sign=True), *ends, "" if spread.deviation is None else str(wanted(spread.deviation))
