# SPDX-License-Identifier: Apache-2.0
"""The comparison of suggested with random patients: means over draws, and differences paired by draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secl_models.inference.suggest import WAYS
from secl_models.report.spread import Spread, bootstrap
from secl_models.study.labelling_rows import FIRST, RANDOM, LabellingRow

COLUMNS = (
    "data", "method", "suggested by", "draws", "first, Dice %", "random, Dice %", "suggested, Dice %", "gain",
    "95 %, paired t", "95 %, bootstrap", "draws won",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One method and one way of suggesting on one data set, over the draws of which all three runs are finished.

    Attributes:
        data: Name of the data set.
        method: As in `secl train --method`.
        options: Preset and overrides.
        way: In which the patients were suggested.
        dice: Over the draws, by choice, percent.
        gain: Suggested minus random, Dice points, paired by draw.
        resampled: 95 % interval of the mean gain by resampling draws; None for fewer than three.
        won: Draws in which the suggested patients gave more.
    """

    data: str
    method: str
    options: str
    way: str
    dice: dict[str, Spread]
    gain: Spread
    resampled: tuple[float, float] | None
    won: int


def compare(rows: Sequence[LabellingRow]) -> list[Comparison]:
    """One comparison for each data set, method, set of options and way, in the order in which they first occur.

    Args:
        rows: Rows of such a study; draws of which a run is missing do not enter.
    """
    draws: dict[tuple[str, str, str], dict[int, dict[str, float]]] = {}
    for row in rows:
        by_seed = draws.setdefault((row.data, row.method, row.options), {})
        by_seed.setdefault(row.seed, {})[row.choice] = row.dice
    found = []
    for (data, method, options), by_seed in draws.items():
        for way in WAYS:
            whole = [dice for dice in by_seed.values() if {FIRST, RANDOM, way} <= set(dice)]
            gains = [dice[way] - dice[RANDOM] for dice in whole]
            spreads = {choice: Spread.of([dice[choice] for dice in whole]) for choice in (FIRST, RANDOM, way)}
            gain, dice = Spread.of(gains), {choice: spread for choice, spread in spreads.items() if spread}
            if gain is not None:
                won = sum(each > 0 for each in gains)
                found.append(Comparison(data, method, options, way, dice, gain, bootstrap(gains), won))
    return found


def labelling_markdown(rows: Sequence[LabellingRow]) -> str:
    """The comparison as a Markdown table.

    Args:
        rows: Rows of such a study.

    Returns:
        Lines with a trailing newline.
    """
    rule = ["---" if name in ("data", "method", "suggested by") else "---:" for name in COLUMNS]
    lines = [COLUMNS, rule, *((each.data, each.method, each.way, *_figures(each)) for each in compare(rows))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def labelling_table(rows: Sequence[LabellingRow]) -> Table:
    """The comparison for the terminal.

    Args:
        rows: Rows of such a study.

    Returns:
        A rich table.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = "test patients, last checkpoint, mean Dice % over n draws; gain: suggested - random, paired by draw"
    for name in ("method", "by", "n", "first", "random", "suggested", "gain", "95 %, t", "won"):
        table.add_column(name, justify="left" if name in ("method", "by") else "right", no_wrap=name != "method")
    found = compare(rows)
    for each in found:
        title = each.method if len({other.data for other in found}) == 1 else f"{each.method} ({each.data})"
        means = (f"{each.dice[choice].mean:.1f}" for choice in (FIRST, RANDOM, each.way))
        gain, (*_, by_t, _, won) = f"{each.gain.mean:+.1f}", _figures(each)
        table.add_row(escape(title), each.way, str(each.gain.count), *means, gain, by_t, won)
    return table


def _figures(each: Comparison) -> tuple[str, ...]:
    """The cells of `COLUMNS` behind data, method and way."""
    return (
        str(each.gain.count),
        *(each.dice[choice].text() for choice in (FIRST, RANDOM, each.way)),
        each.gain.text(sign=True),
        _interval(each.gain.interval()),
        _interval(each.resampled),
        f"{each.won} of {each.gain.count}",
    )


def _interval(bounds: tuple[float, float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:+.1f} to {bounds[1]:+.1f}"
