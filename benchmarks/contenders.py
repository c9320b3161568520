# SPDX-License-Identifier: Apache-2.0
"""Who is timed: the loss by the native backend and by its rivals, and the bare matrix products as a yardstick."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import secl_ops
from benchmarks import rivals
from benchmarks.cases import TEMPERATURE, Answer, Case, Problem

PRODUCT_ROWS = 1024
OURS = "secl_ops native"
COMPILED = "torch.compile"
BY_ROWS, BY_KEYS = "products, 1024 rows", "products, 1024 keys"
YARDSTICKS = (BY_ROWS, BY_KEYS)
Step = Callable[[], Answer]


def _native(problem: Problem, denominator: str) -> rivals.Loss:
    reasons = secl_ops.backends()["native"]
    if reasons:
        raise RuntimeError("; ".join(reasons))
    anchors, keys, labels, key_labels = problem
    return lambda: secl_ops.info_nce(
        anchors, keys, anchor_labels=labels, key_labels=key_labels, temperature=TEMPERATURE, denominator=denominator,
        backend="native",
    )  # fmt: skip


LOSSES: dict[str, Callable[[Problem, str], rivals.Loss]] = {
    OURS: _native,
    COMPILED: rivals.compiled,
    "chunked + checkpoint": lambda problem, denominator: lambda: rivals.checkpointed(problem, denominator),
    "eager torch": lambda problem, denominator: lambda: rivals.dense(problem, denominator),
    "pytorch-metric-learning": rivals.metric_learning,
}
NAMES = (*LOSSES, *YARDSTICKS)


def self_products(rows: Tensor) -> Tensor:
    """6 N^2 D floating-point operations of matrix products in blocks of rows: what the arithmetic alone costs."""
    result = torch.zeros_like(rows)
    for start in range(0, len(rows), PRODUCT_ROWS):
        block = rows[start : start + PRODUCT_ROWS]
        similarity = block @ rows.T
        result[start : start + PRODUCT_ROWS] += similarity @ rows
        result += similarity.T @ block
    return result


def row_products(anchors: Tensor, keys: Tensor) -> Tensor:
    """4 N M D operations, a block of anchors with all keys at a time."""
    result = torch.empty_like(anchors)
    for start in range(0, len(anchors), PRODUCT_ROWS):
        block = slice(start, start + PRODUCT_ROWS)
        result[block] = anchors[block] @ keys.T @ keys
    return result


def key_products(anchors: Tensor, keys: Tensor) -> Tensor:
    """4 N M D operations, all anchors with a block of keys at a time, the block's similarities still in the cache."""
    result = torch.zeros_like(anchors)
    for start in range(0, len(keys), PRODUCT_ROWS):
        block = keys[start : start + PRODUCT_ROWS]
        result.addmm_(anchors @ block.T, block)
    return result


def names(case: Case) -> tuple[str, ...]:
    """The contenders of a case: the symmetric products of self-contrast have one form only."""
    return NAMES if case.keys else tuple(name for name in NAMES if name != BY_KEYS)


def contender(case: Case, name: str) -> Step:
    """One way to do the work of a case, forward and backward.

    Raises:
        Exception: Whatever keeps it from running here, such as a package that is not installed.
    """
    problem = case.problem()
    if name in YARDSTICKS:
        anchors, keys = problem.anchors.detach(), problem.keys
        if keys is None:
            return lambda: Answer(None, self_products(anchors))
        products = row_products if name == BY_ROWS else key_products
        return lambda: Answer(None, products(anchors, keys))
    evaluate = LOSSES[name](problem, case.denominator)

    def step() -> Answer:
        loss = evaluate()
        return Answer(loss.detach(), torch.autograd.grad(loss, problem.anchors)[0])

    return step
