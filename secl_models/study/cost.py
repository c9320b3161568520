# SPDX-License-Identifier: Apache-2.0
"""What each method costs: the stages of its training step, timed in turn with the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from rich.table import Table

from secl_models.data.cases import DataSet
from secl_models.data.files import write_text
from secl_models.data.preprocess import resolve
from secl_models.data.splits import Split
from secl_models.data.volumes import Volume, load_volumes
from secl_models.method.device import choose_device, keep_freed_memory, machine
from secl_models.method.learner import Learner, make_learner
from secl_models.method.origin import commit
from secl_models.method.processes import Processes, start_fabric
from secl_models.method.profiler import STEP, Stages
from secl_models.options.errors import InputError
from secl_models.options.events import tell
from secl_models.options.methods import BASELINE, METHODS
from secl_models.options.schema import RunConfig

ROUNDS = 5  # the first warms up
STAGES = ("batch", "augment", "teacher", "student forward", "loss", "backward", "optimiser", "average")
CAPTION = (
    "Medians over rounds in which the methods take turns. The loss holds the supervised terms, the drawing and\n"
    "gathering of pixels, and the terms that listen to the teacher; augment holds what mixes images."
)
Cost = Mapping[str, float]  # stage -> milliseconds of a step; `STEP` is the whole


def measure_cost(config: RunConfig, data: DataSet, split: Split, methods: Sequence[str], steps: int) -> dict[str, Cost]:
    """Time steps that listen to the teacher, method after method in each of several rounds.

    Every pixel may be drawn, as late in a run: the teacher of a fresh network is sure of nothing.

    Args:
        config: Options that the methods share.
        data: The data set.
        split: Its labelled and unlabelled cases.
        methods: What is timed.
        steps: Of each method in a round.

    Returns:
        Method -> stage -> milliseconds: medians over the rounds.

    Raises:
        InputError: A method listens to the teacher and there is no unlabelled case.
    """
    listening = [method for method in methods if METHODS[method].listens]
    if listening and not split.unlabeled:
        cure = f"name fewer --labeled, or --methods {BASELINE}"
        raise InputError("--methods", rule="unlabelled cases for what listens to a teacher", got="none", cure=cure)
    device = choose_device(config.train.device)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    labeled, unlabeled = (load_volumes(data, part) for part in (split.labeled, split.unlabeled))
    settled = {method: resolve(_listening(config, method), data, labeled) for method in methods}
    classes = len(data.classes)
    learners = {method: _learner(own, labeled, unlabeled, device, classes) for method, own in settled.items()}
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for number in range(ROUNDS):
        for method, learner in learners.items():
            stages = Stages(device)
            learner.stages = stages
            for _ in range(steps):
                learner.step(1.0 if METHODS[method].listens else 0.0)
            if number:
                found[method].append(_milliseconds(stages))
            tell("timed", f"round {number + 1}/{ROUNDS}: {steps} steps of {method}", round=number + 1, method=method)
    return {
        method: {stage: median(each.get(stage, 0.0) for each in rounds) for stage in (*STAGES, STEP)}
        for method, rounds in found.items()
    }


def _milliseconds(stages: Stages) -> dict[str, float]:
    return {stage: 1e3 * spent / calls for stage, (spent, calls) in stages.seconds().items()}


def _listening(config: RunConfig, method: str) -> RunConfig:
    """The options of a method that listens to its teacher from the first step, whatever that is sure of."""
    options = replace(config.train, method=method, warm_start=0.0)
    return replace(config, train=options, contrast=replace(config.contrast, confidence=0.0))


def _learner(
    config: RunConfig, labeled: list[Volume], unlabeled: list[Volume], device: torch.device, classes: int
) -> Learner:
    processes = Processes()
    fabric = start_fabric(device, config.train.precision, processes.share)
    return make_learner(config, labeled, unlabeled, classes, device, fabric, processes)


def cost_rows(costs: Mapping[str, Cost]) -> list[tuple[str, ...]]:
    """A line per method: the stages and the whole in milliseconds, and the whole beside that of the first method.

    Args:
        costs: From `measure_cost`.
    """
    first = next(iter(costs.values()))[STEP]
    return [
        (method, *(f"{cost[stage]:.1f}" for stage in STAGES), f"{cost[STEP]:.1f}", f"{cost[STEP] / first:.2f}")
        for method, cost in costs.items()
    ]


def cost_table(costs: Mapping[str, Cost]) -> Table:
    """The same for the terminal.

    Args:
        costs: From `measure_cost`.
    """
    table = Table(title="Milliseconds of a training step", title_justify="left", caption_justify="left")
    table.box, table.padding = None, (0, 1, 0, 0)
    for name in ("method", *STAGES, "step", "ratio"):
        table.add_column(name.replace(" ", "\n"), justify="left" if name == "method" else "right")
    for cells in cost_rows(costs):
        table.add_row(*cells)
    table.caption = CAPTION
    return table


def cost_markdown(costs: Mapping[str, Cost]) -> str:
    """The same for a README.

    Args:
        costs: From `measure_cost`.
    """
    head = ("method", *STAGES, "step", "ratio")
    rule = ("---", *["---:"] * (len(head) - 1))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *cost_rows(costs)))


def write_cost(file: Path, costs: Mapping[str, Cost], device: torch.device) -> None:
    """Write a line per method with the milliseconds of every stage, machine and commit, whole or not at all.

    Args:
        file: The CSV file.
        costs: From `measure_cost`.
        device: Where they were measured.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", *(stage.replace(" ", "_") for stage in STAGES), STEP, "machine", "commit"))
    origin = machine(device), commit() or ""
    for method, cost in costs.items():
        writer.writerow((method, *(f"{cost[stage]:.3f}" for stage in (*STAGES, STEP)), *origin))
    write_text(file, text.getvalue())
