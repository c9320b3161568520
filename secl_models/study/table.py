# SPDX-License-Identifier: Apache-2.0
"""The comparison that a study makes: mean and spread over seeds, and differences paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secl_models.options.methods import BASELINE
from secl_models.report.spread import Spread
from secl_models.study.rows import STEPS, TIME, Point, Row, by_structure, timed_against

COLUMNS = (
    "data", "labelled", "method", "seeds", "structures, Dice %", "Dice %", "against labels-only, equal steps",
    "against labels-only, equal time", "HD95", "ASSD", "steps", "minutes", "peak MiB",
)  # fmt: skip


WIDE = 96  # columns of a terminal that hold every spread


def own_options(items: Iterable[Row | Point]) -> dict[tuple[str, int, str], str]:
    """What tells studies of one data set with equally many labels apart: options that the others lack.

    Args:
        items: Rows or points.

    Returns:
        (data, labelled, options) -> those options; empty for the only study, and for one that has no more than others.
    """
    groups = dict.fromkeys((item.data, item.labeled, item.options) for item in items)
    found = {}
    for data, labeled, options in groups:
        others = [set(other.split()) for *place, other in groups if place == [data, labeled]]
        shared = set.intersection(*others)
        found[data, labeled, options] = " ".join(part for part in options.split() if part not in shared)
    return found


def comparison(rows: Sequence[Row], checkpoint: str = "last") -> list[tuple[str, ...]]:
    """One line per data set, number of labels, method and budget, with the cells of `COLUMNS`.

    A difference is method minus labels-only of the same seed, in Dice points; seeds without a partner do not
    enter.

    Args:
        rows: Rows of a study.
        checkpoint: `last` or `best`.

    Returns:
        Lines in the order in which data sets and methods first occur.
    """
    chosen = [row for row in rows if row.checkpoint == checkpoint]
    lines = []
    for group, own in own_options(chosen).items():
        data = f"{group[0]} ({own})" if own else group[0]
        members = [row for row in chosen if (row.data, row.labeled, row.options) == group]
        for method, budget in dict.fromkeys((row.method, row.budget) for row in members):
            lines.append((data, *_line(members, method, budget)))
    return lines


def _line(members: Sequence[Row], method: str, budget: str) -> tuple[str, ...]:
    own = [row for row in members if (row.method, row.budget) == (method, budget)]
    compared, labels_only = method != BASELINE, [row for row in members if row.method == BASELINE]
    return (
        str(own[0].labeled),
        f"{method}, {_time_of(own)}" if budget == TIME else method,
        str(len({row.seed for row in own})),
        _structures(own),
        _text(Spread.of([row.dice for row in own])),
        _text(paired(own, [row for row in labels_only if row.budget == STEPS]), sign=True) if compared else "",
        _text(paired(own, timed_against(labels_only, method)), sign=True) if compared else "",
        _text(Spread.of([row.hd95 for row in own])),
        _text(Spread.of([row.assd for row in own])),
        str(round(statistics.fmean(row.steps for row in own))),
        f"{statistics.fmean(row.seconds for row in own) / 60:.1f}",
        f"{max(row.peak_mib for row in own):.0f}",
    )


def _time_of(rows: Sequence[Row]) -> str:
    """Whose seconds they have, as far as they say so."""
    against = sorted({row.against for row in rows if row.against})
    return f"time of {', '.join(against)}" if against else "equal time"


def paired(rows: Sequence[Row], baseline: Sequence[Row]) -> Spread | None:
    """Mean and spread over seeds of the difference in Dice points.

    Args:
        rows: Rows of a method.
        baseline: Rows of the baseline.

    Returns:
        The spread over the seeds that both have, or None.
    """
    return Spread.of(gains(rows, baseline))


def gains(rows: Sequence[Row], baseline: Sequence[Row]) -> list[float]:
    """Dice points above the baseline, of each seed that both have."""
    partner = {row.seed: row.dice for row in baseline}
    return [row.dice - partner[row.seed] for row in rows if row.seed in partner]


def _structures(rows: Sequence[Row]) -> str:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in by_structure(row.structures).items():
            values.setdefault(name, []).append(value)
    return ", ".join(f"{name} {_text(Spread.of(dice))}" for name, dice in values.items())


def _text(spread: Spread | None, *, sign: bool = False) -> str:
    return "-" if spread is None else spread.text(sign=sign)


def as_markdown(rows: Sequence[Row], checkpoint: str = "last") -> str:
    """The comparison as a Markdown table.

    Args:
        rows: Rows of a study.
        checkpoint: `last` or `best`.

    Returns:
        Lines with a trailing newline.
    """
    right = ("seeds", "Dice %", "HD95", "ASSD", "steps", "minutes", "peak MiB")
    rule = ["---:" if name in right or name.startswith("against") else "---" for name in COLUMNS]
    lines = [COLUMNS, tuple(rule), *comparison(rows, checkpoint)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_table(rows: Sequence[Row], checkpoint: str = "last", width: int = 80) -> Table:
    """The comparison for the terminal.

    Args:
        rows: Rows of a study.
        checkpoint: `last` or `best`.
        width: Columns of the terminal; below `WIDE` the distances have no spread.

    Returns:
        A rich table.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = f"{checkpoint} checkpoint, mean ± SD over n seeds; vs: Dice points to labels-only, paired by seed"
    names = ("method", "n", "Dice %", "vs equal\nsteps", "vs equal\ntime", "HD95", "ASSD", "min")
    for name in names:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name != "method")
    shown = ""
    for data, labeled, method, seeds, _, dice, by_steps, by_time, *others, minutes, _ in comparison(rows, checkpoint):
        hd95, assd = (cell if width >= WIDE else cell.partition(" ")[0] for cell in others[:2])
        title = f"{data}, {labeled} labelled"
        if title != shown:
            table.add_row(f"[bold]{escape(title)}[/]")
            shown = title
        table.add_row(*map(escape, (method, seeds, dice, by_steps, by_time, hd95, assd, minutes)))
    return table
