# SPDX-License-Identifier: Apache-2.0
"""What is timed, and the truth about it in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

import secl_ops

TEMPERATURE = 0.1
TRUTH_ROWS = 512  # anchors at a time, so that the float64 matrix stays small


class Problem(NamedTuple):
    """The tensors of one case; only the anchors learn."""

    anchors: Tensor  # [N, D], requires a gradient
    keys: Tensor | None  # [M, D]; None: the anchors themselves
    labels: Tensor  # [N]
    key_labels: Tensor | None  # [M]


class Answer(NamedTuple):
    """What a contender computes; the yardsticks have no loss."""

    loss: Tensor | None  # scalar
    gradient: Tensor  # [N, D], of the anchors


@dataclass(frozen=True)
class Case:
    """A contrast of rows of width D in C classes: with themselves, or with frozen keys."""

    rows: int
    width: int
    classes: int
    denominator: str
    keys: int = 0  # 0: self-contrast

    @property
    def name(self) -> str:
        """One word for tables."""
        kind, keys = ("frozen", f"-M{self.keys}") if self.keys else ("self", "")
        return f"{kind}-{self.denominator}-N{self.rows}{keys}-D{self.width}-C{self.classes}"

    @property
    def flop(self) -> int:
        """Operations of the matrix products that the loss and its gradient need: 6 N^2 D, or 4 N M D."""
        return 4 * self.rows * self.keys * self.width if self.keys else 6 * self.rows**2 * self.width

    def problem(self) -> Problem:
        """The tensors, the same at every call; each class has equally many rows."""
        random = torch.Generator().manual_seed(0)
        anchors = torch.randn(self.rows, self.width, generator=random).requires_grad_()
        labels = torch.arange(self.rows) % self.classes
        if not self.keys:
            return Problem(anchors, None, labels, None)
        keys = torch.randn(self.keys, self.width, generator=random)
        return Problem(anchors, keys, labels, torch.arange(self.keys) % self.classes)


CASES = (
    *(Case(rows, 128, 8, denominator) for denominator in ("all", "negatives") for rows in (1024, 4096)),
    *(Case(1024, 256, 8, denominator, keys=65536) for denominator in ("all", "negatives")),
)


@cache
def truth(case: Case, dtype: torch.dtype = torch.float64) -> Answer:
    """Loss and gradient by the reference backend, a block of anchors at a time; in fp32 this is plain torch."""
    anchors, keys, labels, key_labels = case.problem()
    others = anchors if keys is None else keys
    total = torch.zeros((), dtype=dtype)
    gradient = torch.zeros_like(anchors, dtype=dtype)
    for start in range(0, case.rows, TRUTH_ROWS):
        block = slice(start, start + TRUTH_ROWS)
        loss = secl_ops.info_nce(
            anchors.to(dtype)[block], others.to(dtype), anchor_labels=labels[block],
            key_labels=labels if key_labels is None else key_labels, temperature=TEMPERATURE,
            denominator=case.denominator, exclude=torch.arange(case.rows)[block] if keys is None else None,
            reduction="sum", backend="reference",
        )  # fmt: skip
        gradient += torch.autograd.grad(loss, anchors)[0] / case.rows
        total += loss.detach() / case.rows
    return Answer(total, gradient)
