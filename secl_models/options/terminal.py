# SPDX-License-Identifier: Apache-2.0
"""Tables on terminals of any width: where one does not fit, its rows are written below each other."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

ENDLESS = 10_000  # columns
FOLDED = 12  # columns that are enough where a word may go on in the next line


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table, or, where the terminal is too narrow for its longest words, a block of lines for each row.

    Args:
        table: Its cells are text.
        console: Where; None: standard output.
    """
    console = console or Console()
    console.print(table if _least_width(table, console) <= console.width else _stacked(table))


def _least_width(table: Table, console: Console) -> int:
    """Below it a word would be cut: rich takes columns that may not wrap for as narrow as their longest word."""
    texts = [[Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)] for column in table.columns]
    whole = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    words = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in texts]
    options = console.options.update(width=ENDLESS, max_width=ENDLESS)
    around = Measurement.get(console, options, table).maximum - sum(whole)
    return around + sum(map(_least, table.columns, whole, words))


def _least(column: Column, line: int, word: int) -> int:
    if column.no_wrap:
        return line
    return min(word, FOLDED) if column.overflow == "fold" else word


def _stacked(table: Table) -> Table:
    """A line for each cell that is not empty: the name of its column, and the cell."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.title, grid.title_justify = table.title, "left"
    grid.caption, grid.caption_justify = table.caption, "left"
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    names = [str(column.header).replace("\n", " ") for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for name, cell in zip(names, cells, strict=True):
            if cell:
                grid.add_row(name, cell)
        grid.add_row("", "")
    return grid
