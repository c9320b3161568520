# SPDX-License-Identifier: Apache-2.0
"""How far a training run is: a bar that fits a terminal of 80 columns, and the same as events."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from secl_models.data.cases import DataSet
from secl_models.data.splits import PARTS, Split
from secl_models.method.device import machine
from secl_models.method.profiler import Stages, Watch
from secl_models.options.events import NOTE, Pace, bars, for_programs, tell
from secl_models.options.methods import short_name
from secl_models.options.schema import RunConfig, TrainConfig
from secl_models.options.terminal import print_table
from secl_models.train.live_plot import LivePlot

_WORDS = ("labelled", "unlabelled", "validation", "test")  # for a person, in the order of PARTS


class _BarWithPlot(Progress):
    """A bar, and below it what is plotted."""

    plot: LivePlot | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.plot is not None:
            yield self.plot


def training_bar(console: Console, plot: LivePlot | None = None) -> Progress:
    """Bar with step, times and one field `shown`, such as loss and Dice.

    Args:
        console: Where it is drawn.
        plot: Drawn below it.

    Returns:
        The bar, not started; its only task is `add_task(method, total=steps, completed=done, shown="")`.
    """
    bar = _BarWithPlot(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
    )
    bar.plot = plot
    return bar


def shown(loss: float, dice: float | None, images_per_second: float, memory_mib: float) -> str:
    """Loss, validation Dice in percent, speed and memory in 32 columns."""
    score = "Dice -" if dice is None else f"Dice {100 * dice:.1f}"
    return f"loss {loss:.3f} {score} {images_per_second:.0f}/s {memory_mib / 1024:.1f}G"


class TrainingProgress:
    """Bar and events of one run, inside a `with` block.

    Args:
        method: Of the run.
        steps: Of the whole run.
        done: Of an earlier call.
        spoken: Say anything at all; of several processes one does.
        bar: Draw the bar where bars are drawn.
    """

    def __init__(self, method: str, steps: int, done: int, *, spoken: bool, bar: bool) -> None:
        self._steps, self._spoken = steps, spoken
        self._plot = LivePlot(steps)
        self._bar = training_bar(Console(stderr=True, quiet=not (spoken and bar and bars())), self._plot)
        self._task = self._bar.add_task(short_name(method), total=steps, completed=done, shown="")
        self._pace = Pace(steps, done)
        self._first = True

    def __enter__(self) -> TrainingProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def looked(
        self, done: int, values: Mapping[str, float], dice: float | None, structures: Mapping[str, float]
    ) -> None:
        """Show what a step came to; a line after a validation, after the first look and after a minute of silence.

        Args:
            done: Steps done.
            values: Columns of the history.
            dice: Of the last validation.
            structures: Dice of each structure, if this step was validated.
        """
        speed, memory = values["images_per_second"], values["memory_mib"]
        self._plot.add(done, values["loss"], dice if structures else None)
        self._bar.update(self._task, completed=done, shown=shown(values["loss"], dice, speed, memory))
        if not self._spoken or not (structures or self._first or self._pace.due()):
            return
        self._first = False
        self._pace.said()
        loss, left = values["loss"], self._pace.left(done)
        scores = f", Dice % {_in_percent(dice)} ({_listed(structures)})" if structures else ""
        pace = f"{speed:.0f} images/s, {memory:.0f} MiB, {left} left"
        sentence = f"step {done}/{self._steps}: loss {loss:.3f}{scores}, {pace}"
        found: dict[str, Any] = {"dice": dice, "structures": dict(structures)} if structures else {}
        tell(
            "validation" if structures else "step", sentence, step=done, steps=self._steps, loss=loss, **found,
            images_per_second=speed, memory_mib=memory, seconds_left=self._pace.seconds_left(done),
        )  # fmt: skip

    def kept(self, done: int, file: Path) -> None:
        """Say that a checkpoint is on the disk."""
        self._bar.update(self._task, completed=done)
        if self._spoken:
            tell("checkpoint", f"step {done}/{self._steps}: kept {file}", step=done, steps=self._steps, file=str(file))


def _in_percent(dice: float | None) -> str:
    return "-" if dice is None or math.isnan(dice) else f"{100 * dice:.1f}"


def _listed(structures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_in_percent(value)}" for name, value in structures.items())


def tell_start(
    config: RunConfig,
    notes: Iterable[str],
    data_set: DataSet,
    split: Split,
    out: Path,
    device: torch.device,
    done: int,
) -> None:
    """Say what a run is about to do.

    Args:
        config: Its options.
        notes: What its user should know.
        data_set: Where the cases come from.
        split: Who they are.
        out: Run folder.
        device: Where it runs.
        done: Steps of an earlier call.
    """
    for note in notes:
        tell("note", note, level=logging.WARNING)
    if hidden := _hidden_labels(data_set, split):
        used = len({case.patient for case in split.labeled})
        sentence = (
            f"The labels of {used} of {used + hidden} labelled training patients are used; --labeled sets how many."
        )
        tell("note", sentence, level=NOTE, labeled=used, hidden=hidden)
    options, counts = config.train, {name: len(getattr(split, name)) for name in PARTS}
    cases = ", ".join(f"{count} {word}" for word, count in zip(_WORDS, counts.values(), strict=True))
    steps = f"{options.steps} steps" + (f" from step {done}" if done else "")
    tell(
        "start",
        f"training {options.method} on {data_set.root} ({cases}): {steps} on {device} ({machine(device)}), into {out}",
        data=str(data_set.root), layout=data_set.layout, cases=counts, method=options.method, seed=config.seed,
        device=str(device), machine=machine(device), step=done, steps=options.steps, out=str(out),
    )  # fmt: skip


def _hidden_labels(data_set: DataSet, split: Split) -> int:
    """How many training patients have a label that is not used."""
    known = {case.name for case in data_set.cases if case.label is not None}
    return len({case.patient for case in split.unlabeled if case.name in known})


def tell_end(notes: Iterable[str], done: int, steps: int, **values: object) -> None:
    """Say what a run has come to.

    Args:
        notes: What its user should know by now.
        done: Steps that are done.
        steps: Of a whole run.
        **values: For a program.
    """
    for note in notes:
        tell("note", note, level=logging.WARNING if done == steps else logging.DEBUG)
    tell("end", f"trained {done} steps", level=logging.DEBUG, steps=done, **values)


def show_profile(stages: Watch, options: TrainConfig, peak_memory_mib: float) -> None:
    """Print where the time of a step went, if it was measured.

    Args:
        stages: Those of the learner.
        options: Say how many images a step had.
        peak_memory_mib: Of the run.
    """
    if not isinstance(stages, Stages) or not stages.seconds():
        return
    spent = {name: 1e3 * seconds / max(1, calls) for name, (seconds, calls) in stages.seconds().items()}
    tell("profile", "milliseconds of each stage of a step", level=logging.DEBUG, milliseconds=spent)
    if not for_programs():
        table = stages.table(options.batch, options.unlabeled_batch, peak_memory_mib)
        print_table(table, Console(stderr=True))
