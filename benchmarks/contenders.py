# SPDX-License-Identifier: Apache-2.0
"""What is timed: the loss by each backend and by plain torch, and the bare matrix products as a yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import secl_ops

PRODUCT_ROWS = 1024


@dataclass(frozen=True)
class Case:
    """Self-contrast of N rows of width D in C classes."""

    rows: int
    width: int
    classes: int
    denominator: str

    @property
    def name(self) -> str:
        """One word for tables."""
        return f"self-{self.denominator}-N{self.rows}-D{self.width}-C{self.classes}"

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Rows [N, D] that require a gradient and labels [N], the same at every call."""
        rows = torch.randn(self.rows, self.width, generator=torch.Generator().manual_seed(0))
        return rows.requires_grad_(), torch.arange(self.rows) % self.classes


CASES = tuple(Case(rows, 128, 8, denominator) for denominator in ("all", "negatives") for rows in (1024, 4096))


def dense(rows: Tensor, labels: Tensor, denominator: str) -> Tensor:
    """The loss as a careful user of plain torch writes it: one N x N matrix and boolean masks."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    similarity = unit @ unit.T / 0.1
    others = ~torch.eye(len(rows), dtype=torch.bool)
    same = labels[:, None] == labels[None, :]
    positive, negative = same & others, ~same
    count = positive.sum(dim=1)
    if denominator == "all":
        lse = similarity.masked_fill(~others, -torch.inf).logsumexp(dim=1)
        return (lse - torch.where(positive, similarity, 0.0).sum(dim=1) / count).mean()
    lse = similarity.masked_fill(~negative, -torch.inf).logsumexp(dim=1)
    gap = torch.nn.functional.softplus(lse[:, None] - similarity)
    return (torch.where(positive, gap, 0.0).sum(dim=1) / count).mean()


def products(rows: Tensor) -> Tensor:
    """6 N^2 D floating-point operations of matrix products in blocks of rows: what the arithmetic alone costs."""
    result = torch.zeros_like(rows)
    for start in range(0, len(rows), PRODUCT_ROWS):
        block = rows[start : start + PRODUCT_ROWS]
        similarity = block @ rows.T
        result[start : start + PRODUCT_ROWS] = similarity @ rows
        result += similarity.T @ block
    return result


def contenders(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Each way to do the work of one case, forward and backward; the key is its name in tables."""
    rows, labels = case.tensors()

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(), rows)[0]

    found = {"eager torch": gradient(lambda: dense(rows, labels, case.denominator))}
    if not secl_ops.backends()["native"]:
        found["secl_ops native"] = gradient(
            lambda: secl_ops.info_nce(rows, anchor_labels=labels, denominator=case.denominator, backend="native")
        )
    found["matrix products alone"] = lambda: products(rows.detach())
    return found
