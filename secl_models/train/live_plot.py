# SPDX-License-Identifier: Apache-2.0
"""Loss and validation Dice as small lines of braille below the bar of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

ROWS = 3  # lines of a terminal; a cell of braille has four dots on two
LEAST_WIDTH, LEAST_HEIGHT = 44, 10  # of a terminal that has room for it
LABEL = 11  # columns before a line, such as "loss 12.345"
MOST = 2_000  # losses; every second one goes where there are more
EVERY = 1.0  # seconds between two drawings
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of the left and the right column, from above


class Point(NamedTuple):
    """A value at a step."""

    step: int
    value: float


class LivePlot:
    """What rich draws below the bar: the loss on the left, Dice on the right, each with its ends beside it.

    Nothing is drawn before the first value, on a terminal that is too small, or on one without braille. It is drawn
    anew at most once a second, however often the bar is.

    Args:
        steps: Of the whole run: the width of a line.
        clock: Seconds.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = steps, clock
        self._loss: list[Point] = []
        self._dice: list[Point] = []
        self._drawn = (-math.inf, 0)  # when, and for how many columns
        self._lines: list[Text] = []

    def add(self, step: int, loss: float, dice: float | None) -> None:
        """Take values that the loop has read.

        Args:
            step: Steps done.
            loss: At that step.
            dice: Of a validation at that step in [0, 1], or None.
        """
        self._loss = self._loss[::2] if len(self._loss) > MOST else self._loss
        self._loss.append(Point(step, loss))
        if step >= self._steps:
            self._drawn = (-math.inf, 0)  # the end is what stays
        if dice is not None and math.isfinite(dice):
            self._dice.append(Point(step, 100 * dice))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The lines, as `rich` asks for them at every refresh of the bar."""
        width = options.max_width
        roomy = width >= LEAST_WIDTH and options.size.height >= LEAST_HEIGHT
        if not self._loss or not roomy or options.ascii_only:
            return
        now = self._clock()
        if now - self._drawn[0] >= EVERY or width != self._drawn[1]:
            self._drawn, self._lines = (now, width), self._draw(width)
        yield from self._lines

    def _draw(self, width: int) -> list[Text]:
        own = (width - 3) // 2 - LABEL - 1
        left = _panel("loss", self._loss, self._steps, own, ".3f", "cyan")
        right = _panel("Dice", self._dice, self._steps, own, ".1f", "green")
        return [Text.assemble(one, "   ", other) for one, other in zip(left, right, strict=True)]


def _panel(name: str, points: Sequence[Point], steps: int, width: int, form: str, colour: str) -> list[Text]:
    """Lines of a plot with its name and the ends of its range."""
    values = [point.value for point in points if math.isfinite(point.value)]
    ends = (max(values), min(values)) if values else (math.nan, math.nan)
    labels = [f"{name} {_short(ends[0], form)}", *[""] * (ROWS - 2), _short(ends[1], form)]
    drawn = braille(points, steps, width)
    return [
        Text.assemble((label.rjust(LABEL), "dim"), " ", (line, colour))
        for label, line in zip(labels, drawn, strict=True)
    ]


def _short(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"[:6]


def braille(points: Sequence[Point], steps: int, width: int, rows: int = ROWS) -> list[str]:
    """A line through points, joined, over the whole run from left to right and the range of the values in height.

    Args:
        points: By step; those that are not finite are left out.
        steps: At the right edge.
        width: Columns, each two dots wide.
        rows: Lines, each four dots high.

    Example:
        >>> braille([Point(0, 0.0), Point(8, 1.0)], 8, 4, rows=1)
        ['⣀⠤⠒⠉']
    """
    known = [point for point in points if math.isfinite(point.value)]
    dots = [[0] * width for _ in range(rows)]
    if known:
        low, high = min(point.value for point in known), max(point.value for point in known)
        across, up = (2 * width - 1) / max(1, steps), (4 * rows - 1) / ((high - low) or 1.0)
        places = [(min(point.step, steps) * across, (point.value - low) * up) for point in known]
        for x, y in _joined(places):
            row, dot = divmod(4 * rows - 1 - y, 4)
            dots[row][x // 2] |= _DOTS[x % 2][dot]
    return ["".join(chr(_BRAILLE + cell) for cell in line) for line in dots]


def _joined(places: Sequence[tuple[float, float]]) -> Iterator[tuple[int, int]]:
    """Whole dots on the way from each place to the next."""
    for (x, y), (to_x, to_y) in zip(places, [*places[1:], places[-1]], strict=True):
        count = max(1, math.ceil(max(abs(to_x - x), abs(to_y - y))))
        for part in range(count + 1):
            yield round(x + (to_x - x) * part / count), round(y + (to_y - y) * part / count)
