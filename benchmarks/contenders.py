# SPDX-License-Identifier: Apache-2.0
"""Who is timed: the loss by our backends and by its rivals, and the bare matrix products as a yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import secl_ops
from benchmarks import packages, rivals
from benchmarks.cases import SIGMOID, Answer, Case, Problem, loss_of
from benchmarks.rivals import Loss

PRODUCT_ROWS = 1024
NATIVE, TRITON = "secl_ops native", "secl_ops triton"
COMPILED = "torch.compile"
BY_ROWS, BY_KEYS = "products, 1024 rows", "products, 1024 keys"
YARDSTICKS = (BY_ROWS, BY_KEYS)
PAIRS = {"KeOps": 1 << 24}  # above these, minutes a step on a CPU
Step = Callable[[], Answer]


class LeftOutError(Exception):
    """A contender that could run and is not asked to; the message says what was too large."""


def _ours(backend: str) -> Callable[[Problem], Loss]:
    def build(problem: Problem) -> Loss:
        anchors, keys, labels, key_labels, temperature, denominator = problem
        reasons = secl_ops.backends()[backend]
        if reasons:
            raise RuntimeError("; ".join(reasons))
        given: dict[str, Any] = {"anchor_labels": labels, "key_labels": key_labels, "backend": backend}
        return lambda: loss_of(denominator, temperature, anchors, keys, **given)

    return build


LOSSES: dict[str, Callable[[Problem], Loss]] = {
    NATIVE: _ours("native"),
    TRITON: _ours("triton"),
    COMPILED: rivals.compiled,
    "chunked + checkpoint": rivals.chunked,
    "eager torch": rivals.eager,
    "F.linear_cross_entropy": packages.linear_cross_entropy,
    "pytorch-metric-learning": packages.metric_learning,
    "KeOps": packages.keops,
    "cut-cross-entropy": packages.cut_cross_entropy,
    "Inf-CL": packages.inf_cl,
    "memeff": packages.memeff,
}
SOFTMAX_ONLY = (
    "F.linear_cross_entropy", "pytorch-metric-learning", "KeOps", "cut-cross-entropy", "Inf-CL", "memeff",
)  # fmt: skip
GPU_ONLY = (TRITON, "cut-cross-entropy", "Inf-CL", "memeff")


def ours(device: str) -> tuple[str, ...]:
    """Our own names on this kind of device."""
    return (NATIVE,) if device == "cpu" else (TRITON, NATIVE)


def names(case: Case) -> tuple[str, ...]:
    """The contenders of a case: the symmetric products of self-contrast, and those of two sides, have one form only."""
    known = tuple(name for name in LOSSES if case.device != "cpu" or name not in GPU_ONLY)
    if case.denominator == SIGMOID:
        known = tuple(name for name in known if name not in SOFTMAX_ONLY)
    return (*known, *(YARDSTICKS if case.kind == "frozen" else (BY_ROWS,)))


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


def both_products(anchors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """6 N M D operations: the least that the gradients of both sides take where a block's similarities are kept."""
    first, second = torch.empty_like(anchors), torch.zeros_like(keys)
    for start in range(0, len(anchors), PRODUCT_ROWS):
        block = slice(start, start + PRODUCT_ROWS)
        similarity = anchors[block] @ keys.T
        first[block] = similarity @ keys
        second.addmm_(similarity.T, anchors[block])
    return first, second


def _yardstick(case: Case, name: str) -> Step:
    problem = case.problem()
    anchors, keys = problem.anchors.detach(), problem.keys
    if keys is None:
        return lambda: Answer(None, (self_products(anchors),))
    others = keys.detach()
    if case.both:
        return lambda: Answer(None, both_products(anchors, others))
    products = row_products if name == BY_ROWS else key_products
    return lambda: Answer(None, (products(anchors, others),))


def refuse_too_many(case: Case, name: str) -> None:
    """Spare a slow contender the cases that it would take minutes for.

    Raises:
        LeftOutError: The case has more pairs than `PAIRS` gives this contender on a CPU.
    """
    limit = PAIRS.get(name)
    if case.device == "cpu" and limit is not None and case.pairs > limit:
        raise LeftOutError(f"left out: {case.pairs / 1e6:,.0f} M pairs; {name} gets {limit / 1e6:,.0f} M on a CPU")


def contender(case: Case, name: str) -> Step:
    """One way to do the work of a case, forward and backward.

    Raises:
        Exception: Whatever keeps it from running here, such as a package that is not installed.
    """
    if name in YARDSTICKS:
        return _yardstick(case, name)
    problem = case.problem()
    evaluate = LOSSES[name](problem)

    def step() -> Answer:
        loss = evaluate()
        return Answer(loss.detach(), torch.autograd.grad(loss, problem.leaves))

    return step
