# SPDX-License-Identifier: Apache-2.0
"""One problem of the loss on rows: its shape, its tensors, and the truth about it in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

import secl_ops

SIGMOID = (
    "sigmoid"  # in the place of a denominator: the loss that has none, its scale 1 / temperature, its bias minus that
)
TRUTH_PAIRS = 1 << 24  # anchors times keys at a time, so that a float64 matrix stays at 128 MiB


class Problem(NamedTuple):
    """The tensors of one case, and who of them learns."""

    anchors: Tensor  # [N, D], requires a gradient
    keys: Tensor | None  # [M, D]; None: the anchors themselves; requires a gradient where both sides learn
    labels: Tensor  # [N]
    key_labels: Tensor | None  # [M]
    temperature: float
    denominator: str

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What the gradient is taken of: the anchors, and the keys where they learn."""
        learns = self.keys is not None and self.keys.requires_grad
        return (self.anchors, self.keys) if learns and self.keys is not None else (self.anchors,)


class Answer(NamedTuple):
    """What a contender computes; the yardsticks have no loss."""

    loss: Tensor | None  # scalar
    gradients: tuple[Tensor, ...]  # [N, D] of the anchors; [M, D] of the keys where both sides learn


@dataclass(frozen=True)
class Case:
    """A contrast of N rows of width D with themselves, with M frozen keys, or with M keys that learn too.

    Labels are laid out as "classes" (equally many rows of each), "pairs" (key i is anchor i's one positive, every other
    key its negative) or "prototype" (key 0 is the one positive of all anchors).
    """

    name: str
    rows: int
    width: int
    keys: int = 0  # 0: self-contrast
    both: bool = False  # the keys learn as well
    denominator: str = "all"
    temperature: float = 0.1
    layout: str = "classes"
    classes: int = 8
    title: str = ""
    source: str = ""
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def kind(self) -> str:
        """One of "self", "frozen" and "both"."""
        return "both" if self.both else "frozen" if self.keys else "self"

    @property
    def pairs(self) -> int:
        """Similarities, N x M."""
        return self.rows * (self.keys or self.rows)

    @property
    def flop(self) -> int:
        """Operations of the matrix products of loss and gradient: 6 N^2 D, 4 N M D, or 8 N M D where both learn."""
        return {"self": 6, "frozen": 4, "both": 8}[self.kind] * self.pairs * self.width

    def on(self, device: str, dtype: str) -> Self:
        """The same case elsewhere."""
        return replace(self, device=device, dtype=dtype)

    def small(self) -> Self:
        """A case of the same kind that takes no time: it loads libraries and starts threads."""
        rows = min(self.rows, 256)
        return replace(self, rows=rows, keys=min(self.keys, max(rows, 1024)))

    def problem(self) -> Problem:
        """The tensors, the same at every call on every device."""
        random = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)
        anchors = torch.randn(self.rows, self.width, generator=random).to(self.device, dtype).requires_grad_()
        labels = self._labels(self.rows)
        if not self.keys:
            return Problem(anchors, None, labels, None, self.temperature, self.denominator)
        keys = torch.randn(self.keys, self.width, generator=random).to(self.device, dtype).requires_grad_(self.both)
        return Problem(anchors, keys, labels, self._labels(self.keys, key=True), self.temperature, self.denominator)

    def _labels(self, count: int, key: bool = False) -> Tensor:
        place = torch.arange(count, device=self.device)
        if self.layout == "prototype":
            return (place > 0).long() if key else torch.zeros_like(place)
        return place if self.layout == "pairs" else place % self.classes


def loss_of(denominator: str, temperature: float, anchors: Tensor, keys: Tensor | None, **given: Any) -> Tensor:
    """Our loss of this denominator, or the one that has none."""
    if denominator == SIGMOID:
        return secl_ops.sigmoid_contrast(anchors, keys, scale=1 / temperature, bias=-1 / temperature, **given)
    return secl_ops.info_nce(anchors, keys, temperature=temperature, denominator=denominator, **given)


@lru_cache(maxsize=2)
def truth(case: Case, dtype: torch.dtype = torch.float64) -> Answer:
    """Loss and gradients by the reference backend, a block of anchors at a time; in fp32 this is plain torch."""
    problem = case.problem()
    keys = problem.keys
    total = torch.zeros((), dtype=dtype, device=case.device)
    gradients = tuple(torch.zeros_like(leaf, dtype=dtype) for leaf in problem.leaves)
    block_rows = max(1, TRUTH_PAIRS // (case.keys or case.rows))
    for start in range(0, case.rows, block_rows):
        block = slice(start, start + block_rows)
        leaves = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in problem.leaves)
        others = leaves[-1] if keys is None or case.both else keys.to(dtype)
        place = torch.arange(case.rows, device=case.device)[block] if keys is None else None
        loss = loss_of(
            case.denominator, case.temperature, leaves[0][block], others, anchor_labels=problem.labels[block],
            key_labels=problem.labels if problem.key_labels is None else problem.key_labels, exclude=place,
            reduction="sum", backend="reference",
        )  # fmt: skip
        for sum_of, part in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
            sum_of += part / case.rows
        total += loss.detach() / case.rows
    return Answer(total, gradients)
