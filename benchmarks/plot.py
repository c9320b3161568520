# SPDX-License-Identifier: Apache-2.0
"""How every figure looks, and what it may show: the newest right rows, each with its origin."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import standing
from benchmarks.contenders import COMPILED, NATIVE, TRITON
from benchmarks.provenance import BUSY, Row, shown

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen first: there may be no screen
from matplotlib.layout_engine import ConstrainedLayoutEngine

# The colours of Okabe and Ito stay apart for every kind of colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07800", "#3A9BD9"
INK, FAINT, PALE, BAR = "#212529", "#6c757d", "#ced4da", "#b4bac1"
COLORS = {
    NATIVE: BLUE,
    TRITON: BLUE,
    COMPILED: VERMILLION,
    "chunked + checkpoint": GREEN,
    "eager torch": FAINT,
    "pytorch-metric-learning": PURPLE,
    "KeOps": ORANGE,
    "F.linear_cross_entropy": SKY,
}
STYLE: Any = {
    "font.size": 13, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
WIDTH = 7.6  # inches; at 150 dots each a phone shows the letters at a readable size
DOTS = 150


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each case and contender."""
    keys = ("case", "setting", "kind", "width", "contender", "loss", "dtype")
    return list({tuple(row.get(key, "") for key in keys): row for row in rows}.values())


def is_ours(row: Row) -> bool:
    """Whether a row is one of our backends."""
    return standing.is_ours(row["contender"])


def is_rival(row: Row) -> bool:
    """Whether a row is a right answer by someone else."""
    return standing.is_rival(row["contender"]) and bool(row["p50_ms"])


def origin(rows: Sequence[Row]) -> str:
    """What was measured where; every value that the rows have, where they come from several runs.

    Example:
        >>> row = {"threads": "2", "machine": "a CPU", "versions": "python 3.11; torch 2.13", "date": "2026-01-01"}
        >>> origin([row | {"commit": "abc"}, row | {"commit": "def"}])
        '2 CPU threads (a CPU), torch 2.13, commit abc or def, 2026-01-01'
    """

    def said(values: Sequence[str]) -> str:
        return " or ".join(dict.fromkeys(values))

    torch = said([next((part for part in row["versions"].split("; ") if part.startswith("torch")), "") for row in rows])
    fields = {field: said([row[field] for row in rows]) for field in ("threads", "machine", "commit", "date")}
    plural = "" if fields["threads"] == "1" else "s"
    place = fields["machine"]
    if "CUDA" not in place:
        place = f"{fields['threads']} CPU thread{plural} ({place})"
    marked = sum(BUSY in row.get("note", "") for row in rows)
    beside = f", {BUSY}{marked} of {len(rows)} rows were timed beside others" if marked else ""
    return f"{place}, {torch}, commit {fields['commit']}, {fields['date']}{beside}"


def failure(note: str) -> str:
    """A failure in a few words: what it asked for, or the kind of error."""
    asked = [word for word in note.replace(",", " ").split() if word.isdigit() and len(word) > len("999999999")]
    if asked:
        return f"fails: asks for {int(asked[0]) / 1e12:,.1f} TB"
    if note.startswith(("cannot express", "left out", "wrong")):
        return note.partition(":")[0]
    return "not installed" if note.startswith("ModuleNotFoundError") else f"not timed: {note.partition(':')[0]}"


def canvas(panels: int, heights: Sequence[float], title: str, below: str) -> tuple[Any, list[Any]]:
    """A figure of stacked panels under one message, with its origin below."""
    plt.rcParams.update(STYLE)
    lines = textwrap.fill(below, 108)
    figure, axes = plt.subplots(
        panels, 1, figsize=(WIDTH, sum(heights) + 1.0), squeeze=False, height_ratios=heights,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )  # fmt: skip
    figure.suptitle(title, x=0.012, ha="left", fontsize=16, weight="bold")
    figure.supxlabel(lines, fontsize=8.5, color=FAINT, x=0.012, ha="left")
    return figure, list(axes.flat)


def save(figure: Any, out: Path) -> None:
    """Write the picture and forget it."""
    figure.savefig(out, dpi=DOTS)
    plt.close(figure)
    print(f"drawn: {shown(out)}")


def bare(axis: Any) -> None:
    """Bars that carry their own numbers need no scale below."""
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False, bottom=False, labelbottom=False)


def devices(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each device, under a short name that a file can carry.

    Example:
        >>> list(devices([{"machine": "NVIDIA H200, CUDA 13.0; a CPU"}, {"machine": "AMD EPYC, AVX512"}]))
        ['h200', 'cpu']
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        name, cuda, _ = row["machine"].partition(", CUDA ")
        short = re.sub(r"[^a-z0-9]+", "-", name.removeprefix("NVIDIA ").lower()).strip("-") if cuda else "cpu"
        found.setdefault(short, []).append(row)
    return found
