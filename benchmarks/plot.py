# SPDX-License-Identifier: Apache-2.0
"""The README's figures, drawn only from committed rows of measured times and memory."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.contenders import NAMES, OURS, YARDSTICKS

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen first: there may be no screen
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

Row = dict[str, str]
ORIGIN = ("threads", "machine", "torch", "rounds", "commit", "date")
LAYOUT = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
STYLE: Any = {"font.size": 10, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}
ACCENT, RIVAL, YARDSTICK, INK, FAINT = "#0b7285", "#adb5bd", "#dee2e6", "#343a40", "#868e96"
TITLES = {
    "self-all-N4096-D128-C8": 'Self-contrast, denominator="all" (SupCon)\n4,096 rows of width 128',
    "self-negatives-N4096-D128-C8": 'Self-contrast, denominator="negatives"\n4,096 rows of width 128',
    "frozen-all-N1024-M65536-D256-C8": 'Frozen keys, denominator="all"\n1,024 anchors, 65,536 keys of width 256',
    "frozen-negatives-N1024-M65536-D256-C8": (
        'Frozen keys, denominator="negatives"\n1,024 anchors, 65,536 keys of width 256'
    ),
}
SWEEP_COLORS = {OURS: ACCENT, "eager torch": FAINT}
QUADRATIC = {"linestyle": (0, (4, 3)), "color": "#ced4da", "linewidth": 1.4, "zorder": 1}


def read(table: Path) -> list[Row]:
    """Every row of a table, in order."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each case and contender."""
    return list({(row["case"], row["contender"]): row for row in rows}.values())


def origin(rows: Sequence[Row]) -> str:
    """What was measured where; every value that the rows have, where they come from several runs.

    Example:
        >>> row = {"threads": "2", "machine": "a CPU", "torch": "2.13", "rounds": "5", "date": "2026-01-01"}
        >>> origin([row | {"commit": "abc"}, row | {"commit": "def"}])
        'forward + backward, 2 CPU threads (a CPU), torch 2.13, median of 5 rounds, commit abc or def, 2026-01-01'
    """
    said = {field: " or ".join(dict.fromkeys(row[field] for row in rows)) for field in ORIGIN}
    return (
        f"forward + backward, {said['threads']} CPU threads ({said['machine']}), torch {said['torch']}, "
        f"median of {said['rounds']} rounds, commit {said['commit']}, {said['date']}"
    )


def failure(note: str) -> str:
    """A failure in a few words: what it asked for, or the kind of error."""
    asked = [word for word in note.replace(",", " ").split() if word.isdigit() and len(word) > len("999999999")]
    if asked:
        return f"fails: asks for {int(asked[0]) / 1e12:,.1f} TB"
    return "not installed" if note.startswith("ModuleNotFoundError") else f"not timed: {note.partition(':')[0]}"


def plot_contenders(table: Path, out: Path) -> None:
    """Bars of the median time, whiskers from fastest to slowest round, memory beside; one panel per case."""
    rows = [row for row in newest(read(table)) if row["case"] in TITLES]
    cases = [case for case in TITLES if any(row["case"] == case for row in rows)]
    columns = min(len(cases), 2)
    lines = -(-len(cases) // 2)
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.9 * columns, 0.5 + 2.75 * lines), layout=LAYOUT, squeeze=False
    )
    for axis, case in zip(axes.flat, cases, strict=False):
        chosen = {row["contender"]: row for row in rows if row["case"] == case}
        _bars(axis, [chosen[name] for name in NAMES if name in chosen])
        axis.set_title(TITLES[case], loc="left", fontsize=10, pad=8)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    figure.supxlabel(origin(rows), fontsize=7.5, color=FAINT, x=0.008, ha="left")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if not row["p50_ms"]:
            axis.text(0, place, f"  {failure(row['note'])}", va="center", color=FAINT, style="italic")
            continue
        name = row["contender"]
        color = ACCENT if name == OURS else YARDSTICK if name in YARDSTICKS else RIVAL
        middle, low, high = (float(row[field]) for field in ("p50_ms", "min_ms", "max_ms"))
        axis.barh(place, middle, color=color, height=0.66)
        axis.plot([low, high], [place, place], color=INK, linewidth=1)
        weight = "bold" if name == OURS else "normal"
        label = axis.annotate(
            f"{middle:,.0f} ms", (high, place), (6, 0), textcoords="offset points", va="center", weight=weight
        )
        axis.annotate(
            f"{float(row['extra_mib']):,.0f} MiB", (1, 0.5), (7, 0), xycoords=label, textcoords="offset points",
            va="center", color=FAINT, fontsize=8.5,
        )  # fmt: skip
    axis.set_yticks(range(len(rows)), [row["contender"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False, bottom=False, labelbottom=False)
    axis.set_xlim(0, 1.42 * max(float(row["max_ms"] or 0) for row in rows))


def plot_sweep(table: Path, out: Path) -> None:
    """Time and extra memory against the number of rows, both axes logarithmic, beside lines of slope 2."""
    rows = read(table)
    plt.rcParams.update(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout=LAYOUT)
    for name in dict.fromkeys(row["contender"] for row in rows):
        chosen = [row for row in rows if row["contender"] == name]
        for axis, field in ((left, "p50_ms"), (right, "extra_mib")):
            _curve(axis, name, chosen, field)
    counts = sorted({int(row["rows"]) for row in rows})
    first = next(row for row in rows if row["contender"] == OURS and int(row["rows"]) == counts[0])
    start = float(first["p50_ms"]) / 4
    _guide(left, counts, [start * (count / counts[0]) ** 2 for count in counts], "N², slope 2")
    _guide(right, counts, [4 * count**2 / 2**20 for count in counts], "4 N² bytes, slope 2")
    left.set_title("Time, ms", loc="left", fontsize=10)
    right.set_title("Extra memory, MiB", loc="left", fontsize=10)
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(counts, [f"{count // 1024}k" for count in counts])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.grid(axis="y", color="#f1f3f5")
        axis.set_axisbelow(True)
        axis.set_xlabel('rows N, self-contrast, denominator="all", D = 128')
        axis.margins(x=0.08, y=0.14)
    figure.supxlabel(origin(rows), fontsize=7.5, color=FAINT, x=0.008, ha="left")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _curve(axis: Any, name: str, rows: Sequence[Row], field: str) -> None:
    counts, values = [int(row["rows"]) for row in rows], [float(row[field]) for row in rows]
    color = SWEEP_COLORS[name]
    axis.plot(counts, values, marker="o", markersize=5, color=color, linewidth=2, zorder=3)
    for count, value in ((counts[0], values[0]), (counts[-1], values[-1])):
        axis.annotate(
            f"{value:,.0f}",
            (count, value),
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=color,
        )
    axis.annotate(
        name, (counts[-1], values[-1]), (16, 8), textcoords="offset points", ha="right", fontsize=9, color=color
    )


def _guide(axis: Any, counts: Sequence[int], values: Sequence[float], label: str) -> None:
    """A line of slope 2, named below, where it leaves room."""
    axis.plot(counts, values, **QUADRATIC)
    place = max(len(counts) - 2, 0)
    axis.annotate(
        label, (counts[place], values[place]), (4, -14), textcoords="offset points", fontsize=9, color="#adb5bd"
    )
