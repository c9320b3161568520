# SPDX-License-Identifier: Apache-2.0
"""The figures: growth with N, published sizes, share of the limit, the whole pixel step, the memory claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.cases import Case
from benchmarks.contenders import YARDSTICKS
from benchmarks.pixel import CASES as PIXEL_CASES
from benchmarks.plot import (
    BAR,
    BLUE,
    COLORS,
    FAINT,
    INK,
    PALE,
    SKY,
    VERMILLION,
    bare,
    canvas,
    devices,
    failure,
    is_ours,
    newest,
    origin,
    save,
)
from benchmarks.provenance import Row, read_rows, shown
from benchmarks.published import KINDS, PUBLISHED
from benchmarks.standing import FEW_ROWS, MOST_OF_PRODUCTS, Standing, standing, wanted

SWEEP_WIDTH = 128
TIMES = "\N{MULTIPLICATION SIGN}"
Said = Callable[[float], str]
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # hides the line behind a word
TITLES = {case.name: case.title for case in (*PUBLISHED, *KINDS)}


def _number(value: float) -> str:
    """Three digits that matter.

    Example:
        >>> _number(0.1234), _number(12.34), _number(1234.5)
        ('0.123', '12.3', '1,234')
    """
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _time(milliseconds: float) -> str:
    if milliseconds >= 999.5:
        return f"{_number(milliseconds / 1e3)} s"
    return f"{_number(milliseconds)} ms" if milliseconds >= 0.1 else f"{_number(1e3 * milliseconds)} µs"


def _memory(mib: float) -> str:
    return f"{_number(mib / 1024)} GiB" if mib >= 999.5 else f"{_number(mib)} MiB"


def _rows(count: float) -> str:
    return f"{count / 1024:,.0f}k" if count >= 10_240 else f"{count:,.0f}"


def growth(rows: Sequence[Row], out: Path) -> None:
    """Time and extra memory against N, both axes logarithmic, lines named where they end."""
    chosen = [
        row for row in rows
        if row["kind"] == "self" and row["width"] == str(SWEEP_WIDTH) and row["p50_ms"]
        and row["contender"] not in YARDSTICKS
    ]  # fmt: skip
    if not chosen:
        return
    below = (
        f"Self-contrast, SupCon's denominator, D = {SWEEP_WIDTH}, {chosen[0]['dtype']}, forward + backward, median; "
        f"extra memory of one step. {origin(chosen)}"
    )
    figure, axes = canvas(2, (3.4, 3.4), "Memory grows with N, not with N²", below)
    for axis, field, title, said, tick in (
        (axes[0], "p50_ms", "Time", _time, _time),
        (axes[1], "extra_mib", "Extra memory", _memory, lambda value: f"{value:,g} MiB"),
    ):
        _lines(axis, chosen, field, said)
        counts = sorted({int(row["rows"]) for row in chosen})
        axis.set(xscale="log", yscale="log")
        axis.set_title(title, loc="left", fontsize=13, color=FAINT)
        axis.set_xticks(counts, [f"{count // 1024}k" for count in counts], fontsize=11)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _, tick=tick: tick(value)))
        axis.grid(axis="y", color="#eef0f2")
        axis.set_axisbelow(True)
        axis.set_xlim(counts[0] / 1.25, counts[-1] * (counts[-1] / counts[0]) ** 0.55)  # names stand on the right
    axes[1].set_xlabel("rows N")
    save(figure, out)


def _lines(axis: Any, rows: Sequence[Row], field: str, said: Said) -> None:
    ends = []
    rows = [row for row in rows if row[field] and float(row[field]) > 0]  # a logarithmic axis has no place for 0
    if not rows:
        return
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        points = sorted((int(row["rows"]), float(row[field])) for row in mine)
        bold = is_ours(mine[0])
        style = {"linewidth": 3.0, "markersize": 6.0} if bold else {"linewidth": 1.6, "markersize": 4.0}
        color = COLORS.get(name, FAINT)
        axis.plot(*zip(*points, strict=True), marker="o", color=color, zorder=4 if bold else 3, **style)
        ends.append((*points[-1], name, color, bold))
    last = max(end[0] for end in ends)
    low = min(float(row[field]) for row in rows)
    gap = (max(end[1] for end in ends) / low) ** (1 / 11)  # so many lines of text fit between lowest and highest
    placed = 0.0
    for count, value, name, color, bold in sorted(ends, key=lambda end: end[1]):
        placed = max(value, placed * gap)
        axis.plot([count, 1.22 * last], [value, placed], color=color, linewidth=0.8, linestyle=(0, (1, 3)), zorder=2)
        axis.text(
            1.26 * last, placed, f"{name}  {said(value)}", va="center", fontsize=11, color=color,
            weight="bold" if bold else "normal",
        )  # fmt: skip


def published(rows: Sequence[Row], out: Path) -> None:
    """One bar per published case, small ones first: how many times as fast as the fastest rival, and what is wanted."""
    chosen = [row for row in rows if row["case"] in {case.name for case in PUBLISHED}]
    timed = [row for row in chosen if row["p50_ms"]]
    bars = []
    for case in PUBLISHED:
        medians = {row["contender"]: float(row["p50_ms"]) for row in timed if row["case"] == case.name}
        found = standing(case.rows, medians)
        if found is not None:
            bars.append((case, found))
    if not bars:
        return
    figure, (axis,) = canvas(1, (0.62 * len(bars) + 0.6,), "Times as fast as the fastest rival", _below(bars, chosen))
    for place, (_, found) in enumerate(bars):
        _standing_bar(axis, place, found)
    names = [f"{case.title}\n{case.rows:,} {TIMES} {case.keys or case.rows:,} {TIMES} {case.width}" for case, _ in bars]
    axis.set_yticks(range(len(bars)), names, fontsize=10.5)
    axis.axvline(1, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 2.2 * max(2.0, *(found.factor for _, found in bars)))
    bare(axis)
    save(figure, out)


def _below(bars: Sequence[tuple[Case, Standing]], chosen: Sequence[Row]) -> str:
    """What the marks of the published figure mean, what it leaves out, and where it comes from."""
    drawn = {case.title for case, _ in bars}
    left = [TITLES[row["case"]] for row in chosen if "left out" in row["note"] and TITLES[row["case"]] not in drawn]
    absent = f"Left out above this run's budget: {'; '.join(dict.fromkeys(left))}. " if left else ""
    dtype = next(row["dtype"] for row in chosen if row["p50_ms"])
    return (
        f"A tick is what is wanted: {wanted(0):g}{TIMES} below {FEW_ROWS:,} rows, {wanted(FEW_ROWS):g}{TIMES} from "
        f"there up, or at most {MOST_OF_PRODUCTS:g}{TIMES} the time of the bare matrix products. Dark: reached; light: "
        f"faster than every rival; red: slower than one. {absent}Loss and gradient, {dtype}, medians; rivals that "
        f"compute the same number. {origin(chosen)}"
    )


def _standing_bar(axis: Any, place: int, found: Standing) -> None:
    color = BLUE if found.met else SKY if found.factor >= 1 else VERMILLION
    goal = wanted(found.rows)
    axis.barh(place, found.factor, color=color, height=0.62)
    axis.plot([goal, goal], [place - 0.42, place + 0.42], color=INK, linewidth=2, zorder=4)
    label = axis.annotate(
        f"{found.factor:.2f}{TIMES}" if found.rival else "no rival ran", (max(found.factor, goal), place), (6, 0),
        textcoords="offset points", va="center", weight="bold", bbox=WHITE,
    )  # fmt: skip
    detail = _time(found.own)
    if found.rival:
        detail += f", {found.rival.replace('pytorch-metric-learning', 'PML')} {_time(found.rival_ms)}"
    if found.share is not None:
        detail += f"\n{found.share:.2f}{TIMES} the products"
    axis.annotate(
        detail, (1, 0.5), (8, 0), xycoords=label, textcoords="offset points", va="center", fontsize=10, color=FAINT
    )


def limit(rows: Sequence[Row], out: Path) -> None:
    """One bar per case: the share of what the GPU could do at best; not drawn without rows of a GPU."""
    chosen = [row for row in rows if row["device"] == "cuda" and is_ours(row) and row["share_of_limit"]]
    if not chosen:
        return
    best: dict[str, Row] = {}
    for row in sorted(chosen, key=lambda row: float(row["share_of_limit"])):
        best[row["case"]] = row
    bars = sorted(best.values(), key=lambda row: -float(row["share_of_limit"]))
    below = f"Limit: {bars[0]['limit']}. {bars[0]['dtype']}, forward + backward, medians. {origin(chosen)}"
    figure, (axis,) = canvas(1, (0.5 * len(bars) + 0.6,), "Share of what the chip can do at best", below)
    for place, row in enumerate(bars):
        share = float(row["share_of_limit"])
        axis.barh(place, share, color=BLUE, height=0.6)
        label = axis.annotate(
            f"{share:.0%}", (share, place), (6, 0), textcoords="offset points", va="center", weight="bold", bbox=WHITE
        )
        axis.annotate(
            f"{_time(float(row['p50_ms']))}, {_number(float(row['tflops']))} TFLOP/s", (1, 0.5), (8, 0), xycoords=label,
            textcoords="offset points", va="center", fontsize=10, color=FAINT,
        )  # fmt: skip
    axis.set_yticks(range(len(bars)), [TITLES.get(row["case"], row["case"]) for row in bars], fontsize=10.5)
    axis.axvline(1, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 1.6)
    bare(axis)
    save(figure, out)


def pixel_step(rows: Sequence[Row], out: Path) -> None:
    """Bars of the whole step's time, a panel per case, memory beside."""
    cases = [case for case in PIXEL_CASES if any(row["case"] == case.name for row in rows)]
    counts = [sum(row["case"] == case.name for row in rows) for case in cases]
    below = (
        "Feature map to the gradient of the map: sample, gather, normalise, contrast, backward; medians, and extra "
        f"memory of one step. The loop samples as ContrastiveSeg does. {origin(rows)}"
    )
    figure, axes = canvas(len(cases), [0.42 * count + 0.5 for count in counts], "The whole pixel step", below)
    for axis, case in zip(axes, cases, strict=True):
        _bars(axis, [row for row in rows if row["case"] == case.name])
        axis.set_title(case.title, loc="left", fontsize=12, color=FAINT)
    save(figure, out)


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    longest = max(float(row["p50_ms"] or 0) for row in rows)
    for place, row in enumerate(rows):
        if not row["p50_ms"]:
            axis.text(0, place, f"  {failure(row['note'])}", va="center", color=FAINT, style="italic", fontsize=10.5)
            continue
        middle, low, high = (float(row[field]) for field in ("p50_ms", "p20_ms", "p80_ms"))
        axis.barh(place, middle, color=BLUE if is_ours(row) else BAR, height=0.66)
        axis.plot([low, high], [place, place], color=INK, linewidth=1)
        label = axis.annotate(
            _time(middle), (high, place), (6, 0), textcoords="offset points", va="center",
            weight="bold" if is_ours(row) else "normal",
        )  # fmt: skip
        if row["extra_mib"]:
            axis.annotate(
                _memory(float(row["extra_mib"])), (1, 0.5), (8, 0), xycoords=label, textcoords="offset points",
                va="center", color=FAINT, fontsize=10,
            )  # fmt: skip
    axis.set_yticks(range(len(rows)), [row["contender"] for row in rows], fontsize=11)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.5 * longest)
    bare(axis)


def claim(rows: Sequence[Row], out: Path) -> None:
    """Bars of the most rows that fit the budget."""
    chosen = [row for row in rows if row["kind"] == "self"]
    chosen.sort(key=lambda row: -int(row["rows"] or 0))
    if not chosen:
        return
    budget = float(chosen[0]["budget_mib"])
    below = (
        f"Self-contrast, SupCon's denominator, D = {chosen[0]['width']}, {chosen[0]['dtype']}: the largest N whose "
        f"loss and gradient were measured to take at most {_memory(budget)} above the inputs. {origin(chosen)}"
    )
    title = f"Rows that fit {_memory(budget)}"
    figure, (axis,) = canvas(1, (0.55 * len(chosen) + 0.4,), title, below)
    for place, row in enumerate(chosen):
        if not row["rows"]:
            axis.text(0, place, f"  {failure(row['note'])}", va="center", color=FAINT, style="italic", fontsize=10.5)
            continue
        count, mine = int(row["rows"]), is_ours(row)
        axis.barh(place, count, color=BLUE if mine else BAR, height=0.66)
        more = " or more" if row["note"].startswith("at least") else ""
        axis.annotate(
            f"{count:,}{more}", (count, place), (6, 0), textcoords="offset points", va="center",
            weight="bold" if mine else "normal",
        )  # fmt: skip
    axis.set_yticks(range(len(chosen)), [row["contender"] for row in chosen], fontsize=11)
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    axis.set_xlim(0, 1.3 * max(int(row["rows"] or 0) for row in chosen))
    axis.axvline(0, color=PALE)
    bare(axis)
    save(figure, out)


FIGURES = {
    "growth": ("growth.csv", growth),
    "published": ("cases.csv", published),
    "limit": ("cases.csv", limit),
    "pixel": ("pixel.csv", pixel_step),
    "memory": ("memory.csv", claim),
}


def draw(results: Path, out: Path) -> None:
    """Draw each figure for each device whose rows the folder holds.

    Raises:
        SystemExit: There is no table.
    """
    drawn = 0
    out.mkdir(parents=True, exist_ok=True)
    for name, (table, figure) in FIGURES.items():
        for device, rows in devices(read_rows(results / table)).items():
            figure(newest(rows), out / f"{name}-{device}.png")
            drawn += 1
    if not drawn:
        tables = ", ".join(sorted({table for table, _ in FIGURES.values()}))
        raise SystemExit(f"{shown(results)} must hold one of {tables}; measure first, or name another with --results")
