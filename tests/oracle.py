# SPDX-License-Identifier: Apache-2.0
"""Two independent statements of the loss: scalar loops from its definition, and dense autograd in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
DIFFERENTIABLE = ("anchors", "keys", "positives", "temperature", "weights")


def present(value: T | None) -> T:
    """What the caller knows to be there: an option that its case gives, the gradient of a leaf."""
    assert value is not None
    return value


class Columns(NamedTuple):
    """What the anchors are compared with: the keys, or the anchors themselves."""

    rows: Tensor
    labels: Tensor
    groups: Tensor | None
    copies: list[float]  # how often each counts


@dataclass(frozen=True)
class Call:
    """Arguments of one `info_nce` call, so that every statement of it gets the same ones."""

    anchors: Tensor
    anchor_labels: Tensor
    keys: Tensor | None = None
    key_labels: Tensor | None = None
    temperature: float | Tensor = 0.1
    denominator: str = "negatives"
    normalize: bool = True
    weights: Tensor | None = None
    positives: Tensor | None = None
    positive_labels: Tensor | None = None
    positive_groups: Tensor | None = None
    anchor_groups: Tensor | None = None
    key_groups: Tensor | None = None
    exclude: Tensor | None = None
    key_weights: Tensor | None = None
    reduction: str = "mean"

    @property
    def degree(self) -> float:
        """The temperature as a number."""
        return float(self.temperature)

    def to(self, dtype: torch.dtype) -> Self:
        """The same call with its rows, weights and a temperature tensor in another dtype."""
        given = {name: getattr(self, name) for name in (*DIFFERENTIABLE, "key_weights")}
        moved: dict[str, Any] = {name: value.to(dtype) for name, value in given.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def leaves(self, names: Sequence[str] = DIFFERENTIABLE) -> tuple[Self, list[Tensor]]:
        """The same call with those of its tensors as fresh leaves that require gradients, and those leaves."""
        names = [name for name in names if isinstance(getattr(self, name), Tensor)]
        fresh = {name: getattr(self, name).detach().clone().requires_grad_() for name in names}
        return replace(self, **fresh), list(fresh.values())

    def columns(self) -> Columns:
        """The keys, or in self-contrast the anchors."""
        rows, labels, groups = self.anchors, self.anchor_labels, self.anchor_groups
        if self.keys is not None and self.key_labels is not None:
            rows, labels, groups = self.keys, self.key_labels, self.key_groups
        copies = [1.0] * len(rows) if self.key_weights is None else self.key_weights.tolist()
        return Columns(rows, labels, groups, copies)

    def arguments(self) -> dict[str, Any]:
        """Keywords of `secl_ops.info_nce`."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Separate(Call):
    """A call whose keys are not its anchors."""

    keys: Tensor
    key_labels: Tensor


def scalar_loss(call: Call, arithmetic: Any, number: Any) -> list[Any]:
    """Loss of every anchor by its definition, one pair at a time, in a kind of number and its functions."""
    pairs = scalar_pairs(call, arithmetic, number)
    return [one_loss(*similarities, call.denominator, arithmetic) for similarities in pairs]


def scalar_pairs(call: Call, arithmetic: Any, number: Any) -> list[tuple[list[Any], list[Any]]]:
    """Of every anchor's positives and of its negatives: similarity, and how often it counts."""
    columns, temperature = call.columns(), number(float(call.temperature))
    rows, keys = (_rows(each, call.normalize, arithmetic, number) for each in (call.anchors, columns.rows))
    prototypes = [] if call.positives is None else _rows(call.positives, call.normalize, arithmetic, number)
    labels, found = columns.labels.tolist(), []
    for i, (row, label) in enumerate(zip(rows, call.anchor_labels.tolist(), strict=True)):
        positive, negative = [], []
        for j, (key, other) in enumerate(zip(keys, labels, strict=True)):
            if label < 0 or other < 0 or not comparable(call, i, j):
                continue
            pair = _dot(row, key) / temperature, number(columns.copies[j])
            if other != label:
                negative.append(pair)
            elif call.positives is None:
                positive.append(pair)
        positive += [(_dot(row, unit) / temperature, 1) for p, unit in enumerate(prototypes) if owns(call, i, p)]
        found.append((positive, negative))
    return found


def _rows(rows: Tensor, normalize: bool, arithmetic: Any, number: Any) -> list[list[Any]]:
    found = []
    for row in rows.tolist():
        values = [number(value) for value in row]
        norm = arithmetic.sqrt(_dot(values, values))
        found.append(values if not normalize else [value / norm if norm else number(0) for value in values])
    return found


def _dot(left: Sequence[Any], right: Sequence[Any]) -> Any:
    return sum(a * b for a, b in zip(left, right, strict=True))


def comparable(call: Call, i: int, j: int) -> bool:
    """Whether anchor i may be compared with key j, whatever their labels."""
    if (call.keys is None and i == j) or call.columns().copies[j] == 0:
        return False
    if call.exclude is not None and int(call.exclude[i]) == j:
        return False
    groups = call.columns().groups
    return call.anchor_groups is None or groups is None or int(call.anchor_groups[i]) == int(groups[j])


def owns(call: Call, i: int, p: int) -> bool:
    """Whether prototype p is a positive of anchor i."""
    if call.positive_labels is None or int(call.anchor_labels[i]) < 0:
        return False
    groups = (call.anchor_groups, call.positive_groups)
    seen = groups[0] is None or groups[1] is None or int(groups[0][i]) == int(groups[1][p])
    return seen and int(call.anchor_labels[i]) == int(call.positive_labels[p])


def one_loss(positive: list[Any], negative: list[Any], denominator: str, arithmetic: Any) -> Any:
    """Loss of one anchor from its pairs; 0 without a positive."""
    if not positive:
        return 0
    count = sum(copies for _, copies in positive)
    if denominator == "all":
        every = sum(copies * arithmetic.exp(s) for s, copies in positive + negative)
        return arithmetic.log(every) - sum(copies * s for s, copies in positive) / count
    push = sum(copies * arithmetic.exp(s) for s, copies in negative)
    return sum(copies * arithmetic.log1p(push * arithmetic.exp(-s)) for s, copies in positive) / count


def dense(call: Call, names: Sequence[str] = DIFFERENTIABLE) -> tuple[Tensor, list[Tensor]]:
    """The dense loss and its gradients; without anchors or without keys nothing is left to differentiate."""
    call, leaves = call.leaves(names)
    keyless = call.keys is not None and call.keys.numel() == 0 and call.positives is None
    if call.anchors.numel() == 0 or keyless:
        size = call.anchors.shape[0] if call.reduction == "none" else ()
        return torch.zeros(size, dtype=call.anchors.dtype), [torch.zeros_like(leaf) for leaf in leaves]
    loss = dense_loss(call)
    if not leaves:
        return loss, []
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradients)


def dense_loss(call: Call) -> Tensor:
    """The loss as plain torch writes it in the dtype of its rows, differentiated by autograd."""
    anchors = _unit(call.anchors) if call.normalize else call.anchors
    keys, key_labels, groups = call.keys, call.key_labels, call.key_groups
    if keys is None:
        keys, key_labels, groups = call.anchors, call.anchor_labels, call.anchor_groups
    keys = _unit(keys) if call.normalize else keys
    key_labels = present(key_labels)
    comparable = (call.anchor_labels >= 0)[:, None] & (key_labels >= 0)[None, :]
    if call.keys is None:
        comparable &= ~torch.eye(len(anchors), dtype=torch.bool)
    if call.exclude is not None:
        comparable &= call.exclude[:, None] != torch.arange(len(keys))[None, :]
    if groups is not None:
        comparable &= present(call.anchor_groups)[:, None] == groups[None, :]
    copies = torch.ones_like(keys[:, 0]) if call.key_weights is None else call.key_weights
    comparable &= copies > 0
    same = call.anchor_labels[:, None] == key_labels[None, :]
    positive, negative = comparable & same, comparable & ~same
    similarity = anchors @ keys.T / call.temperature
    if call.positives is not None:
        prototypes = _unit(call.positives) if call.normalize else call.positives
        own = (call.anchor_labels[:, None] == present(call.positive_labels)[None, :]) & (call.anchor_labels >= 0)[
            :, None
        ]
        if call.positive_groups is not None:
            own &= present(call.anchor_groups)[:, None] == call.positive_groups[None, :]
        similarity = torch.cat([similarity, anchors @ prototypes.T / call.temperature], dim=1)
        copies = torch.cat([copies, torch.ones_like(prototypes[:, 0])])
        positive = torch.cat([torch.zeros_like(positive), own], dim=1)
        negative = torch.cat([negative, torch.zeros_like(own)], dim=1)
    return _reduce(_per_anchor(similarity, positive, negative, copies, call.denominator), positive.any(dim=1), call)


def _unit(rows: Tensor) -> Tensor:
    norm = rows.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, rows / torch.where(norm > 0, norm, 1), 0 * rows)


def _per_anchor(similarity: Tensor, positive: Tensor, negative: Tensor, copies: Tensor, denominator: str) -> Tensor:
    share = torch.where(positive, copies, 0)
    share = share / torch.where(positive.any(dim=1), share.sum(dim=1), 1)[:, None]
    lowest = torch.finfo(similarity.dtype).min
    inside = negative if denominator == "negatives" else positive | negative
    lse = torch.logsumexp(torch.where(inside, similarity + copies.log(), lowest), dim=1)
    if denominator == "all":
        return lse - torch.where(positive, share * similarity, 0).sum(dim=1)
    gap = torch.where(inside.any(dim=1)[:, None], lse[:, None] - similarity, lowest)
    return torch.where(positive, share * torch.logaddexp(gap, torch.zeros_like(gap)), 0).sum(dim=1)


def _reduce(loss: Tensor, valid: Tensor, call: Call) -> Tensor:
    weights = torch.ones_like(loss) if call.weights is None else call.weights.to(loss.dtype)
    loss, weights = torch.where(valid, loss * weights, 0), torch.where(valid, weights, 0)
    if call.reduction == "none":
        return loss
    total = weights.sum()
    return loss.sum() if call.reduction == "sum" else loss.sum() / torch.where(total > 0, total, 1)
