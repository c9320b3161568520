# SPDX-License-Identifier: Apache-2.0
"""Losses that other projects export, beside ours under the same names: the same call, another import line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks import rivals
from benchmarks.cases import Answer, Case, Problem
from benchmarks.rivals import Loss

OURS, THEIRS, EAGER = "secl_ops.compat", "original", "eager torch"
CONTENDERS = (OURS, THEIRS, EAGER)


@dataclass(frozen=True)
class OriginalCase(Case):
    """A case that a class of another project computes."""

    theirs: str = ""  # the line that imports it
    ours: str = ""  # the line that takes its place
    views: str = ""  # "stacked" or "apart", where the rows are two views of a batch


def _family(module: str, theirs: str, name: str) -> dict[str, Any]:
    return {
        "theirs": f"from {theirs} import {name}", "ours": f"from secl_ops.compat.{module} import {name}",
    }  # fmt: skip


_METRIC = ("pytorch_metric_learning", "pytorch_metric_learning.losses")
ORIGINALS = (
    OriginalCase("metric-learning-supcon", 2048, 128, classes=16, title="SupConLoss",
                 **_family(*_METRIC, "SupConLoss")),
    OriginalCase("metric-learning-ntxent", 128, 128, denominator="negatives", classes=8, title="NTXentLoss",
                 **_family(*_METRIC, "NTXentLoss")),
    OriginalCase("metric-learning-memory", 256, 128, 4096, classes=16, title="SupConLoss in a memory",
                 **_family(*_METRIC, "CrossBatchMemory, SupConLoss")),
    OriginalCase("supcontrast", 2048, 128, classes=16, views="stacked", title="two views",
                 **_family("supcontrast", "losses", "SupConLoss")),
    OriginalCase("monai", 512, 128, temperature=0.5, classes=256, views="apart", title="two views",
                 **_family("monai", "monai.losses", "ContrastiveLoss")),
    OriginalCase("lightly", 2048, 128, temperature=0.5, classes=1024, views="apart", title="two views",
                 **_family("lightly", "lightly.loss", "NTXentLoss")),
)  # fmt: skip


def imported(line: str) -> list[Callable[..., Any]]:
    """The classes that a line of the form `from module import name, other` imports."""
    module, names = line.removeprefix("from ").split(" import ")
    return [getattr(import_module(module), name) for name in names.split(", ")]


def called(case: OriginalCase, problem: Problem, line: str) -> Loss:
    """The loss by the classes of an import line, called as their project calls them."""
    *around, kind = imported(line)
    anchors, keys, labels, key_labels, temperature, _ = problem
    for memory_of in around:
        memory = memory_of(kind(temperature), case.width, memory_size=case.keys).to(case.device)
        everybody = torch.ones(case.keys, dtype=torch.bool, device=case.device)
        with torch.no_grad():
            memory(keys, key_labels, enqueue_mask=everybody)
        nobody = torch.zeros(case.rows, dtype=torch.bool, device=case.device)  # so that each call finds the same keys
        return lambda: memory(anchors, labels, enqueue_mask=nobody)
    half = case.rows // 2
    if case.views == "stacked":
        criterion = kind(temperature, base_temperature=temperature)

        def stacked() -> Any:
            return criterion(normalize(anchors, dim=1).unflatten(0, (2, half)).transpose(0, 1), labels[:half])

        return stacked
    criterion = kind(temperature)
    if case.views == "apart":
        return lambda: criterion(anchors[:half], anchors[half:])
    return lambda: criterion(anchors, labels)


def original_contender(case: OriginalCase, name: str) -> Callable[[], Answer]:
    """One way to do the work of a case, forward and backward.

    Raises:
        Exception: Whatever keeps it from running here, such as a package that is not installed.
    """
    problem = case.problem()
    if name == EAGER:
        evaluate = rivals.eager(problem)
    else:
        evaluate = called(case, problem, case.ours if name == OURS else case.theirs)

    def step() -> Answer:
        loss = evaluate()
        return Answer(loss.detach(), torch.autograd.grad(loss, problem.leaves))

    return step
