# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study, drawn from its two CSV files alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from secl_models.data.files import whole_file
from secl_models.inference.palette import COLOURS, GREY, colour
from secl_models.options.methods import BASELINE, METHODS, short_name
from secl_models.study.rows import STEPS, TIME, Point, Row, by_structure, timed_against
from secl_models.study.table import own_options, paired

# Of more methods than colours the rare ones share theirs with the methods that nobody studies beside them.
_PLACES = (0, 1, 4, 5, 2, 3, 6, 4, 5, 6)
METHOD_COLOURS = dict(zip(METHODS, (GREY, *(COLOURS[place] for place in _PLACES)), strict=True))
PURE_LABELS = short_name(BASELINE)
COLUMNS = 3  # panels side by side that a README shows at a readable size
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
Kept = TypeVar("Kept", Row, Point)


def draw_study(rows: Sequence[Row], points: Sequence[Point], out: Path) -> list[Path]:
    """Draw what the rows and points of a study can show.

    Args:
        rows: Of the study; those of the last checkpoint are shown.
        points: Its curves; may be empty.
        out: Folder, made where it is missing.

    Returns:
        The files written: gain.png, and with points accuracy.png and pseudo_labels.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = [row for row in rows if row.checkpoint == "last"]
    drawn: list[tuple[str, Figure | None]] = [("gain.png", gain_figure(last))]
    if points:
        one = bool(last) and all(row.threads == 1 for row in last)
        drawn.append(("accuracy.png", accuracy_figure(points, one_thread=one)))
        drawn.append(("pseudo_labels.png", pseudo_label_figure(points)))
    files = []
    for name, figure in drawn:
        if figure is not None:
            files.append(out / name)
            with whole_file(files[-1]) as stream:
                figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return files


def gain_figure(rows: Sequence[Row]) -> Figure | None:
    """Dice of every method minus labels-only of the same seed: a dot per seed, a bar for the mean."""
    groups = _groups(rows)
    groups = {title: found for title, found in groups.items() if any(row.method != BASELINE for row in found)}
    if not groups:
        return None
    methods = [len(_methods(found)) for found in groups.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, sum(0.42 * count + 1.0 for count in methods)), layout="constrained")
        panels = figure.subplots(len(groups), 2, squeeze=False, sharey="row", height_ratios=[c + 2 for c in methods])
        for line, (title, found) in zip(panels, groups.items(), strict=True):
            for axes, budget in zip(line, (STEPS, TIME), strict=True):
                _gains(axes, found, budget)
                axes.set_title(f"{title}: {'equal steps' if budget == STEPS else 'equal time'}")
            _same_range(line)
        for axes in panels[-1]:
            axes.set_xlabel("Dice points above labels-only, test patients")
    return figure


def _gains(axes: Axes, rows: Sequence[Row], budget: str) -> None:
    labels_only = [row for row in rows if (row.method, row.budget) == (BASELINE, budget)]
    methods = _methods(rows)
    for place, method in enumerate(methods):
        baseline = timed_against(labels_only, method) if budget == TIME else labels_only
        partner = {row.seed: row.dice for row in baseline}
        own = [row for row in rows if row.method == method and row.budget == STEPS and row.seed in partner]
        spread = paired(own, baseline)
        if spread is None:
            continue
        shade = METHOD_COLOURS.get(method, GREY)
        axes.barh(place, spread.mean, height=0.55, color=shade, alpha=0.35, linewidth=0)
        axes.scatter([row.dice - partner[row.seed] for row in own], [place] * len(own), s=18, color=shade, zorder=3)
        axes.annotate(
            f"{spread.mean:+.1f}", (1.0, place), xycoords=("axes fraction", "data"), ha="right", va="center"
        )  # fmt: skip
    if not labels_only:
        axes.text(0.5, 0.5, "not run yet", transform=axes.transAxes, ha="center", color=GREY)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _same_range(line: Iterable[Axes]) -> None:
    panels = list(line)
    low = min(axes.get_xlim()[0] for axes in panels)
    high = max(axes.get_xlim()[1] for axes in panels)
    for axes in panels:
        axes.set_xlim(low, high + 0.2 * (high - low))  # room for the mean, in figures


def accuracy_figure(points: Sequence[Point], *, one_thread: bool = False) -> Figure:
    """Validation Dice against minutes of training: a line for the mean over seeds, a band for their range.

    Args:
        points: The curves.
        one_thread: Count the minutes of the processor, which other programs do not stretch; on a GPU or with several
            threads they would mean nothing, and the clock counts.
    """
    minutes = "minutes of training, one thread" if one_thread else "minutes of training"
    groups = _groups(points)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9 * -(-len(groups) // 2)), layout="constrained")
        panels = list(figure.subplots(-(-len(groups) // 2), min(2, len(groups)), squeeze=False).flat)
        for axes, (title, found) in zip(panels, groups.items(), strict=False):
            for method, budget in dict.fromkeys((point.method, point.budget) for point in found):
                own = [point for point in found if (point.method, point.budget) == (method, budget)]
                _band(axes, own, _shown(method, budget), one_thread=one_thread)
            axes.set(title=title, xlabel=minutes, ylabel="Dice (%), validation")
            axes.set_ylim(bottom=_floor([point.dice for point in found]))
            axes.set_xlim(left=0)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        _legend_below(figure)
    return figure


def _floor(dice: Sequence[float]) -> float:
    """Leaves the first steps, where everything is near zero, out of the picture."""
    return max(0.0, float(np.percentile(dice, 10)) - 2)


def _band(axes: Axes, points: Sequence[Point], name: str, *, one_thread: bool) -> None:
    """Points of several seeds, matched by their place in the run: steps differ between runs of equal time."""
    by_seed: dict[int, list[Point]] = {}
    for point in points:
        by_seed.setdefault(point.seed, []).append(point)
    matched = list(zip(*by_seed.values(), strict=False))
    minutes = [
        statistics.fmean(point.processor_seconds if one_thread else point.seconds for point in each) / 60
        for each in matched
    ]
    dice = [[point.dice for point in each] for each in matched]
    shade = METHOD_COLOURS.get(points[0].method, GREY)
    style = "dashed" if points[0].budget == TIME else "solid"
    axes.plot(minutes, [statistics.fmean(each) for each in dice], color=shade, label=name, linestyle=style, zorder=3)
    axes.fill_between(minutes, [min(each) for each in dice], [max(each) for each in dice], color=shade, alpha=0.12)


def pseudo_label_figure(points: Sequence[Point]) -> Figure | None:
    """Coverage and purity of the teacher's confident classes on the validation cases, over the steps.

    Labels-only has a moving average too, though it does not listen to it; it shows what the others start from.
    """
    groups = {}
    for title, found in _groups(points).items():
        known = [point for point in found if point.budget == STEPS and point.purity]
        panels = {
            method: [point for point in known if point.method == method] for method in (BASELINE, *_methods(known))
        }
        if known:
            groups[title] = {method: own for method, own in panels.items() if own}
    if not groups:
        return None
    lines = [-(-len(panels) // COLUMNS) for panels in groups.values()]
    with mpl.rc_context(STYLE):
        heights = [2.2 * count + 0.6 for count in lines]
        figure = Figure(figsize=(7.2, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, count, (title, panels) in zip(parts, lines, groups.items(), strict=True):
            grid = part.subplots(count, COLUMNS, squeeze=False, sharey=True)
            for number, (method, own) in enumerate(panels.items()):
                _qualities(grid.flat[number], own)
                grid.flat[number].set_title(f"{title}:\n{_shown(method, STEPS)}", fontsize=9)
            for axes in grid.flat[len(panels) :]:
                axes.set_visible(False)
            for line in grid:
                line[0].set_ylabel("% of pixels")
            _explain_qualities(part, next(iter(panels.values())))
    return figure


def _qualities(axes: Axes, points: Sequence[Point]) -> None:
    steps = sorted({point.step for point in points})
    for number, name in enumerate(by_structure(points[-1].coverage), start=1):
        for style, quality in (("solid", lambda point: point.purity), ("dotted", lambda point: point.coverage)):
            mean = [_mean(points, step, name, quality) for step in steps]
            axes.plot(steps, mean, color=colour(number), linestyle=style)
    axes.set(ylim=(0, 102), xlabel="steps")


def _explain_qualities(part: SubFigure, points: Sequence[Point]) -> None:
    names = list(by_structure(points[-1].coverage))
    handles = [Line2D([], [], color=colour(number), linewidth=3) for number in range(1, len(names) + 1)]
    handles += [Line2D([], [], color="black"), Line2D([], [], color="black", linestyle="dotted")]
    labels = [*names, "purity", "coverage"]
    part.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))


def _mean(points: Sequence[Point], step: int, name: str, quality: Callable[[Point], str]) -> float:
    values = [by_structure(quality(point)).get(name, np.nan) for point in points if point.step == step]
    return float(np.mean(values))


def _groups(items: Sequence[Kept]) -> Mapping[str, list[Kept]]:
    """By data set, number of labels and options; the title says no more than tells them apart."""
    titles = {key: f"{key[0]}, {key[1]} labelled{f', {own}' if own else ''}" for key, own in own_options(items).items()}
    named: dict[str, list[Kept]] = {}
    for item in items:
        named.setdefault(titles[item.data, item.labeled, item.options], []).append(item)
    return named


def _methods(rows: Sequence[Row] | Sequence[Point]) -> list[str]:
    known = list(METHOD_COLOURS)
    named = dict.fromkeys(row.method for row in rows if row.method != BASELINE)
    return sorted(named, key=lambda name: known.index(name) if name in known else len(known))


def _shown(method: str, budget: str) -> str:
    name = PURE_LABELS if method == BASELINE else method
    return f"{name}, equal time" if budget == TIME else name


def _legend_below(figure: Figure) -> None:
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3)
