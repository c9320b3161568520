# SPDX-License-Identifier: Apache-2.0
"""The pictures of the long study; `python -m tests.models.long_study_picture` draws them.

What each ingredient gives, and the Dice score of validation patients against the minutes of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secl_models.data.files import whole_file
from secl_models.inference.palette import COLOURS, GREY
from secl_models.report.spread import Spread
from secl_models.study.pictures import STYLE, accuracy_figure
from tests.models.committed import RESULTS
from tests.models.long_study import Gains, curves, differences

INGREDIENTS, MINUTES = RESULTS / "study" / "ingredients.png", RESULTS / "study" / "minutes.png"
PANELS = (("contrast", ("contrast on top of mixing", "contrast without mixing", "contrast, 96 x 96",
                          "fewer whole images mixed")),
          ("mixing", ("mixing, equal steps", "mixing, equal time", "both, equal steps", "both, equal time",
                      "both, labels in patches", "both, 96 x 96")))  # fmt: skip
LIMITS = {"contrast": (-4.0, 4.0), "mixing": (-4.0, 28.0)}  # Dice points; intervals of two pairs reach further


def ingredients_figure(found: Sequence[Gains]) -> Figure:
    """Dice points of each difference: a dot for a seed, a line for the mean, a band for its 95 % interval.

    Args:
        found: The differences of every data set and number of labels.
    """
    settings = list(dict.fromkeys((each.data, each.labeled) for each in found))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 1.4 * len(settings)), layout="constrained")
        panels = figure.subplots(len(settings), len(PANELS), squeeze=False, width_ratios=(3, 2))
        for line, (data, labeled) in zip(panels, settings, strict=True):
            for axes, (name, ingredients) in zip(line, PANELS, strict=True):
                own = {each.name: each.values for each in found if (each.data, each.labeled) == (data, labeled)}
                lines = [(each, own[each]) for each in ingredients if each in own]
                _forest(axes, lines, _limits(name, [value for _, values in lines for value in values]))
            line[0].set_title(f"{data}, {labeled} labelled")
        for axes in panels[-1]:
            axes.set_xlabel("Dice points, test patients")
    return figure


def _limits(panel: str, values: Sequence[float]) -> tuple[float, float]:
    """Those of the panel, further where a seed lies outside."""
    low, high = LIMITS[panel]
    return min(low, *(value - 1 for value in values)), max(high, *(value + 1 for value in values))


def _forest(axes: Axes, lines: Sequence[tuple[str, Sequence[float]]], limits: tuple[float, float]) -> None:
    for place, (_, values) in enumerate(lines):
        spread = Spread.of(values)
        assert spread is not None, "an ingredient without a pair is left out"
        interval = spread.interval()
        shade = COLOURS[0] if interval and (interval[0] > 0 or interval[1] < 0) else GREY
        if interval is not None:
            axes.plot(interval, [place, place], color=shade, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot([spread.mean] * 2, [place - 0.25, place + 0.25], color="black", linewidth=1.5, zorder=3)
        axes.scatter(values, [place] * len(values), s=14, color=shade, zorder=4, linewidth=0)
        axes.annotate(
            f"n = {spread.count}", (1.0, place - 0.2), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            color=GREY, fontsize=8,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(limits)
    axes.tick_params(axis="y", length=0)


def draw() -> None:
    """Write the pictures."""
    for file, figure in (
        (INGREDIENTS, ingredients_figure(differences())),
        (MINUTES, accuracy_figure(curves(), one_thread=True)),
    ):
        with whole_file(file) as stream:
            figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw()
