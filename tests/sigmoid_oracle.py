# SPDX-License-Identifier: Apache-2.0
"""Two independent statements of the sigmoid loss: scalar loops from its definition, and dense autograd in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from tests import cases, oracle
from tests.oracle import Call, present

CASES = {name: make for name, make in cases.CASES.items() if make().key_weights is None}
LEARNABLE = ("anchors", "keys", "positives", "scale", "bias", "weights")


@dataclass(frozen=True)
class SigmoidCall(Call):
    """Arguments of one `sigmoid_contrast` call."""

    scale: float | Tensor = 10.0
    bias: float | Tensor = -10.0

    def to(self, dtype: torch.dtype) -> Self:
        """The same call with all that is learnable in another dtype."""
        given = {name: getattr(self, name) for name in LEARNABLE}
        moved: dict[str, Any] = {name: value.to(dtype) for name, value in given.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def leaves(self, names: Sequence[str] = LEARNABLE) -> tuple[Self, list[Tensor]]:
        return super().leaves(names)

    def arguments(self) -> dict[str, Any]:
        """Keywords of `secl_ops.sigmoid_contrast`."""
        others = ("temperature", "denominator", "key_weights")
        return {name: value for name, value in self.__dict__.items() if name not in others}


def sigmoid(call: Call, **options: Any) -> SigmoidCall:
    """The same rows, labels and options for the sigmoid loss."""
    return SigmoidCall(**{**call.__dict__, **options})


def case(name: str, **options: Any) -> SigmoidCall:
    """A shared case, in which scale and bias learn and no pair is far from undecided."""
    numbers = {"scale": torch.tensor(3.0), "bias": torch.tensor([-1.5])}
    return sigmoid(CASES[name](), **{**numbers, **options})


def scalar_sigmoid(call: SigmoidCall, arithmetic: Any, number: Any) -> list[Any]:
    """Loss of every anchor by its definition, one pair at a time, in a kind of number and its functions."""
    scale, bias = number(float(call.scale)), number(float(call.bias))

    def softplus(x: Any) -> Any:
        return arithmetic.log1p(arithmetic.exp(x))

    found = []
    for positive, negative in oracle.scalar_pairs(replace(call, temperature=1.0), arithmetic, number):
        gaps = [-(scale * s + bias) for s, _ in positive] + [scale * s + bias for s, _ in negative]
        found.append(sum(map(softplus, gaps), number(0)))
    return found


def dense(call: SigmoidCall, names: Sequence[str] = LEARNABLE) -> tuple[Tensor, list[Tensor]]:
    """The dense loss and its gradients."""
    call, leaves = call.leaves(names)
    loss = dense_sigmoid(call)
    if not leaves:
        return loss, []
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradients)


def dense_sigmoid(call: SigmoidCall) -> Tensor:
    """The loss as plain torch writes it in the dtype of its rows, differentiated by autograd."""
    logits = [_logits(call, call.anchors if call.keys is None else call.keys)]
    signs = [_signs(call)]
    if call.positives is not None:
        own = (call.anchor_labels >= 0)[:, None] & (call.anchor_labels[:, None] == present(call.positive_labels))
        if call.positive_groups is not None:
            own &= present(call.anchor_groups)[:, None] == call.positive_groups
        logits.append(_logits(call, call.positives))
        signs = [torch.where(signs[0] > 0, 0, signs[0]), own.long()]
    logit, sign = torch.cat(logits, dim=1), torch.cat(signs, dim=1)
    gap = torch.where(sign > 0, -logit, logit)
    loss = torch.where(sign != 0, torch.logaddexp(gap, torch.zeros_like(gap)), 0).sum(dim=1)
    return oracle._reduce(loss, (sign != 0).any(dim=1), call)


def _logits(call: SigmoidCall, columns: Tensor) -> Tensor:
    rows, others = (oracle._unit(each) if call.normalize else each for each in (call.anchors, columns))
    return call.scale * (rows @ others.T) + call.bias


def _signs(call: SigmoidCall) -> Tensor:
    """1 for a positive pair, -1 for a negative one, 0 for one that does not count."""
    columns = call.columns()
    labels, groups = columns.labels, columns.groups
    counted = (call.anchor_labels >= 0)[:, None] & (labels >= 0)[None, :]
    numbers = torch.arange(len(labels))
    if call.keys is None:
        counted &= numbers[:, None] != numbers
    if call.exclude is not None:
        counted &= call.exclude[:, None] != numbers
    if call.anchor_groups is not None and groups is not None:
        counted &= call.anchor_groups[:, None] == groups
    return torch.where(call.anchor_labels[:, None] == labels, 1, -1) * counted
