# SPDX-License-Identifier: Apache-2.0
"""The small plot below a training's bar: it fits, it is right, it is cheap, and it is there for people alone."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from secl_models.options import events
from secl_models.options.events import listen
from secl_models.train import live_plot
from secl_models.train.live_plot import LEAST_HEIGHT, LEAST_WIDTH, ROWS, LivePlot, Point, braille
from secl_models.train.progress import TrainingProgress, shown, training_bar
from tests.models.test_events import _nobody_listens_afterwards, _Terminal

__all__ = ["_nobody_listens_afterwards"]

VALUES = {"loss": 0.5, "images_per_second": 7.0, "memory_mib": 99.0}


def _has_braille(text: str) -> bool:
    return any(0x2800 <= ord(letter) < 0x2900 for letter in text)


def _plot(clock: Callable[[], float] = lambda: 0.0) -> LivePlot:
    plot = LivePlot(1000, clock)
    for step in range(10, 701, 10):
        plot.add(step, 2 * math.exp(-step / 150), None if step % 100 else step / 1000)
    return plot


def _drawn(plot: LivePlot, width: int, height: int = 24, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, force_terminal=True, width=width, height=height, color_system=None)
    with console.capture() as caught:
        console.print(plot)
    return caught.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_plot_fits_below_the_bar(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None)
    bar = training_bar(console, _plot())
    bar.add_task("labels only", total=1000, completed=700, shown=shown(0.3, 0.8, 25, 700))
    with console.capture() as caught:
        console.print(bar)
    lines = caught.get().splitlines()
    assert len(lines) == 1 + ROWS
    assert max(map(len, lines)) <= width
    assert "loss 1.871" in lines[1]
    assert "Dice 70.0" in lines[1]
    assert "0.019" in lines[3]
    assert "10.0" in lines[3]
    assert all(map(_has_braille, lines[1:]))


def test_a_line_goes_where_its_values_go() -> None:
    """By hand: a row has four dots on two columns; 0x40 and 0x80 are the lowest, 0x01 and 0x08 the highest."""
    assert braille([Point(0, 1.0), Point(7, 1.0)], 7, 4, rows=1) == [4 * chr(0x2800 + 0x40 + 0x80)]
    assert braille([Point(0, 3.0)], 8, 2, rows=2) == [chr(0x2800) * 2, chr(0x2840) + chr(0x2800)]
    falling = braille([Point(0, 1.0), Point(7, 0.0)], 7, 4, rows=2)
    assert [line.strip(chr(0x2800)) != "" for line in falling] == [True, True]
    assert falling[0][0] != chr(0x2800) != falling[1][3]
    assert falling[1][0] == falling[0][3] == chr(0x2800)
    half = braille([Point(0, 0.0), Point(50, 1.0)], 100, 10, rows=1)[0]
    assert half[:5].count(chr(0x2800)) == 0
    assert half[6:] == 4 * chr(0x2800)
    assert braille([Point(0, math.nan), Point(1, math.inf)], 2, 2, rows=1) == [chr(0x2800) * 2]


def test_nothing_is_drawn_where_it_would_not_fit_or_show() -> None:
    assert _has_braille(_drawn(_plot(), LEAST_WIDTH, LEAST_HEIGHT))
    assert _drawn(_plot(), LEAST_WIDTH - 1).strip() == ""
    assert _drawn(_plot(), 80, LEAST_HEIGHT - 1).strip() == ""
    assert _drawn(_plot(), 80, encoding="ascii").strip() == ""
    assert _drawn(LivePlot(10), 80).strip() == ""


def test_a_second_passes_between_two_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    now, count = [0.0], [0]
    original = LivePlot._draw

    def counted(plot: LivePlot, width: int) -> object:
        count[0] += 1
        return original(plot, width)

    monkeypatch.setattr(LivePlot, "_draw", counted)
    plot = _plot(lambda: now[0])
    for tenth in range(25):
        now[0] = tenth / 10
        plot.add(700 + tenth, 1.0, None)
        _drawn(plot, 80)
    assert count[0] == 3
    _drawn(plot, 100)  # the terminal was made wider
    assert count[0] == 4
    plot.add(1000, 1.0, None)  # the last state is the one that stays
    _drawn(plot, 100)
    assert count[0] == 5


def test_a_long_run_keeps_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_plot, "MOST", 16)
    plot = LivePlot(10_000)
    for step in range(1, 10_000):
        plot.add(step, 1.0, None)
    assert len(plot._loss) <= 18
    assert plot._loss[-1].step == 9_999
    assert plot._loss[0].step < 5_000


def _trained(log_format: str, *, quiet: bool = False) -> str:
    terminal = _Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setenv("LINES", "24")
        listen(log_format, quiet=quiet)
        with TrainingProgress("secl", 100, 0, spoken=True, bar=True) as progress:
            for done in range(10, 101, 10):
                progress.looked(done, VALUES | {"loss": 1 / done}, 0.5, {"ring": 0.5} if done % 50 == 0 else {})
    return terminal.getvalue()


def test_a_terminal_shows_it_and_nothing_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert _has_braille(_trained("auto"))
    assert not _has_braille(_trained("auto", quiet=True))
    assert not _has_braille(_trained("plain"))
    assert not _has_braille(_trained("json"))
    listen()  # standard error is a file here
    assert not events.bars()
    with TrainingProgress("secl", 100, 0, spoken=True, bar=True) as progress:
        progress.looked(50, VALUES, 0.5, {"ring": 0.5})
    assert not _has_braille(capsys.readouterr().err)
