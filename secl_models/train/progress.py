# SPDX-License-Identifier: Apache-2.0
"""The bar of a training run: what fits a terminal of 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


def training_bar(console: Console) -> Progress:
    """Bar with step, times and one field `shown`, such as loss and Dice.

    Args:
        console: Where it is drawn.

    Returns:
        The bar, not started; its only task is `add_task(method, total=steps, completed=done, shown="")`.
    """
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
    )


def shown(loss: float, dice: float | None, images_per_second: float, memory_mib: float) -> str:
    """Loss, validation Dice in percent, speed and memory in 32 columns."""
    score = "Dice -" if dice is None else f"Dice {100 * dice:.1f}"
    return f"loss {loss:.3f} {score} {images_per_second:.0f}/s {memory_mib / 1024:.1f}G"
