# SPDX-License-Identifier: Apache-2.0
"""Pictures of the report: curves and scatter plots as inline SVG, overlays as base64 PNG.

Lines and letters of the SVG take the colour of the surrounding text, so that they follow light and dark mode.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from secl_models.inference.metrics import CaseScores
from secl_models.inference.palette import COLOURS, GREY, colour

FEW = 20  # points of the longest line, up to which all are marked
STYLES = ("solid", "dashed", "dotted")
LETTERS = 58  # of a line across a chart
WIDTH = 5.2  # inches; letters of 12 points then stay readable on a phone
_INK = "#010203"  # stands for the colour of the page's text until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 12,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    colours: Sequence[str] = COLOURS,
    styles: Sequence[str] = ("solid",),
    limits: tuple[float, float] | None = None,
) -> str:
    """Lines over a common axis.

    Args:
        series: Name -> points (x, y), in order.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        colours: One per series, repeated where there are more.
        styles: `solid`, `dashed` or `dotted`, the same way.
        limits: Range of the vertical axis; None: the data's own.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((WIDTH, 3.0))
        marker = "o" if max(map(len, series.values()), default=0) <= FEW else ""  # one point alone draws no line
        for number, points in enumerate(series.values()):
            if points:
                shade, style = colours[number % len(colours)], styles[number % len(styles)]
                axes.plot(*zip(*points, strict=True), color=shade, linestyle=style, marker=marker, markersize=4)
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step"))
        if limits:
            axes.set_ylim(*limits)
        return _svg(figure, f"{y} over {x}")


def interval_chart(rows: Sequence[tuple[str, float, tuple[float, float] | None]], *, x: str) -> str:
    """Means with their intervals below each other, around a line at zero.

    Args:
        rows: Name, mean, and low and high end of its interval where there is one.
        x: Label of the axis.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(_STYLE):
        titles = [textwrap.wrap(name, LETTERS, max_lines=2, placeholder=" ...") for name, _, _ in rows]
        tall = 0.42 + 0.22 * max(map(len, titles), default=1)  # inches of a row
        figure, axes = _axes((WIDTH, 0.7 + tall * len(rows)))
        for row, (_, mean, ends) in enumerate(rows):
            if ends is not None:
                axes.plot(ends, [row, row], color=_INK, linewidth=2.2)
            axes.scatter([mean], [row], s=46, color=COLOURS[0], edgecolors=_INK, linewidths=1.4, zorder=3)
            at = (0, row - 0.14 / tall)
            axes.annotate("\n".join(titles[row]), at, xycoords=("axes fraction", "data"), fontsize=11, va="bottom")
        axes.axvline(0, color=_INK, linewidth=1)
        axes.set(xlabel=x, yticks=[])
        axes.set_ylim(len(rows) - 0.6, -0.9)
        axes.grid(axis="y", visible=False)
        return _svg(figure, f"{x}, {len(rows)} pairs")


def patient_chart(cases: Sequence[CaseScores], names: Sequence[str]) -> str:
    """Dice of every case, one row of dots per structure, so that outliers are seen beside the mean.

    Args:
        cases: Scores.
        names: Structures in the order of the class index.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((WIDTH, max(3.4, 0.9 + 0.5 * len(names))))
        for row, name in enumerate(names):
            dice = [
                100 * score.dice
                for case in cases
                for score in case.scores
                if score.structure == name and score.dice is not None
            ]
            height = row + 0.12 * (np.arange(len(dice)) % 5 - 2)  # fixed jitter: dots of equal Dice stay apart
            axes.scatter(dice, height, s=22, color=colour(row + 1), alpha=0.7, linewidths=0)
            if dice:
                axes.plot([np.mean(dice)] * 2, [row - 0.36, row + 0.36], color=_INK, linewidth=2)
        axes.set(xlabel="Dice (%)", yticks=range(len(names)), yticklabels=list(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(right=100.5)
        axes.grid(axis="y", visible=False)
        return _svg(figure, "Dice of every case")


def diagonal_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    limits: tuple[float, float],
    colours: Sequence[str] = COLOURS,
    joined: bool = False,
) -> str:
    """Points that would lie on the diagonal if what is said were what is found.

    Args:
        series: Name -> points (x, y).
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        limits: Of both axes.
        colours: One per series, repeated where there are more.
        joined: Draw a line through the points of each.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((WIDTH, 4.2))
        axes.plot(limits, limits, color=GREY, linestyle="dotted")
        for number, points in enumerate(series.values()):
            if points:
                line = "solid" if joined else "none"
                shade = colours[number % len(colours)]
                axes.plot(*zip(*points, strict=True), color=shade, marker="o", markersize=4, linestyle=line, alpha=0.8)
        axes.set(xlabel=x, ylabel=y, xlim=limits, ylim=limits)
        axes.set_aspect("equal")
        return _svg(figure, f"{y} by {x}: {', '.join(series)}")


def plane_chart(points: npt.NDArray[np.float64], index: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """Rows of a feature map in the plane of their first two principal components, coloured by class.

    Args:
        points: [N, 2].
        index: Class index of each row, [N].
        names: Structures in the order of the class index, without background.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _axes((WIDTH, 3.4))
        for number in range(len(names) + 1):
            dots = points[index == number]
            axes.scatter(dots[:, 0], dots[:, 1], s=9, color=colour(number), alpha=0.65, lw=0)
        axes.set(xlabel="first component", ylabel="second component", xticks=[], yticks=[])
        return _svg(figure, "feature rows by class")


def overlay(
    image: npt.NDArray[np.float32],  # [*spatial]
    truth: npt.NDArray[np.int64],  # [*spatial]
    prediction: npt.NDArray[np.int64],  # [*spatial]
    spacing: Sequence[float],
) -> str:
    """Contours of truth (dashed) and prediction (solid) on three slices spread over the structures.

    Args:
        image: One channel of the image.
        truth: Class index per voxel.
        prediction: Class index per voxel.
        spacing: Voxel sides, for the shape of a pixel.

    Returns:
        A PNG file as base64 text.
    """
    if image.ndim == 2:
        image, truth, prediction = image[..., None], truth[..., None], prediction[..., None]
    shown = truth > 0 if (truth > 0).any() else prediction > 0
    slices = _spread(np.any(shown, axis=(0, 1)))
    rows, columns = window(np.any(shown, axis=2))
    low, high = np.percentile(image[rows, columns], (1, 99.5))
    side = spacing[0] * (rows.stop - rows.start), spacing[1] * (columns.stop - columns.start)
    figure = Figure(figsize=(5.4, 3.6 * side[1] / side[0]), facecolor="black")
    grid = figure.add_gridspec(2, 3, left=0, right=1, bottom=0, top=1, wspace=0.015, hspace=0.015)
    places = (grid[0, 2], grid[:, :2], grid[1, 2])  # the middle slice is the large one
    for place, number in zip(places, slices, strict=True):
        axes = figure.add_subplot(place)
        view = np.s_[rows, columns, number]
        axes.imshow(
            image[view].T,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
            aspect=spacing[1] / spacing[0],
            interpolation="bilinear",
        )
        contours(axes, truth[view].T, "dashed")
        contours(axes, prediction[view].T, "solid")
        axes.axis("off")
    return _png(figure)


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, facecolor="black", metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode()


def doubt(
    image: npt.NDArray[np.float32],  # [H, W]
    drawn: tuple[npt.NDArray[Any], npt.NDArray[Any]],  # each [H, W]
    apart: npt.NDArray[np.float32],  # [H, W]
    most: float,
    spacing: Sequence[float],
) -> str:
    """One slice twice: with the contours of two segmentations, and with how far networks are apart.

    Args:
        image: One channel.
        drawn: Class index per pixel; the first dashed, the second solid.
        apart: From 0 on.
        most: What it can reach.
        spacing: Pixel sides, for the shape of a pixel.

    Returns:
        A PNG file as base64 text.
    """
    low, high = np.percentile(image, (1, 99.5))
    height = image.shape[1] * spacing[1] / (image.shape[0] * spacing[0])
    figure = Figure(figsize=(7.2, float(np.clip(3.6 * height, 1.2, 7.2))), facecolor="black")
    for place in (0, 1):
        axes = figure.add_axes((0.5 * place, 0, 0.5, 1))
        aspect = spacing[1] / spacing[0]
        axes.imshow(image.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=aspect)
        if place == 0:
            contours(axes, drawn[0].T, "dashed")
            contours(axes, drawn[1].T, "solid")
        else:
            share = np.clip(apart.T / most, 0, 1)
            axes.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=np.sqrt(share), origin="lower", aspect=aspect)
        axes.set_axis_off()
    return _png(figure)


def contours(axes: Axes, label: npt.NDArray[np.int64], style: str) -> None:
    """Draw the border of every structure of a slice.

    Args:
        axes: Where the slice is shown.
        label: Class index [rows, columns].
        style: `solid` or `dashed`.
    """
    for index in range(1, int(label.max()) + 1):
        if (label == index).any():
            mask = np.pad(label == index, 1).astype(float)  # a contour closes at the edge of the view
            where = np.arange(-1, label.shape[1] + 1), np.arange(-1, label.shape[0] + 1)
            axes.contour(*where, mask, levels=[0.5], colors=[colour(index)], linestyles=style, linewidths=1.7)


def _spread(shown: npt.NDArray[np.bool_]) -> list[int]:
    """Slices at a quarter, half and three quarters of those that show something, else of all."""
    candidates = np.flatnonzero(shown) if shown.any() else np.arange(len(shown))
    return [int(candidates[len(candidates) * quarter // 4]) for quarter in (1, 2, 3)]


def window(mask: npt.NDArray[np.bool_], margin: float = 0.45, least: int = 32) -> tuple[slice, slice]:
    """The square around a mask that shows it with some of its surroundings, inside the image.

    Args:
        mask: What is to be seen [rows, columns].
        margin: Surroundings as a share of the longer side of the mask.
        least: Smallest side of the square in pixels.
    """
    found = np.argwhere(mask)
    if not len(found):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    low, high = found.min(0), found.max(0) + 1
    side = max(least, int((high - low).max() * (1 + margin)))
    starts = [
        int(np.clip((a + b - side) // 2, 0, max(0, n - side))) for a, b, n in zip(low, high, mask.shape, strict=True)
    ]
    first, second = (slice(start, min(n, start + side)) for start, n in zip(starts, mask.shape, strict=True))
    return first, second


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    """One element without prologue, metadata or fixed size, and without ids that another picture has."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", text[: text.index(">")])
    label = title.replace("&", "and").replace('"', "").replace("<", "")
    return f'{head} role="img" aria-label="{label}"{text[text.index(">") :]}'.replace(_INK, "currentColor")


_METADATA: Iterable[str] = ("Creator", "Date", "Format", "Type")
