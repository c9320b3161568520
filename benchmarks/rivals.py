# SPDX-License-Identifier: Apache-2.0
"""The same loss as a careful user of plain torch writes it: dense, compiled, in checkpointed blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import SIGMOID, Problem

BLOCK_ROWS = 256  # as small as keeps the products fast: 64 MiB a matrix against 65,536 keys
Loss = Callable[[], Tensor]


def anchor_losses(
    anchors: Tensor,  # [N, D] unit rows
    keys: Tensor,  # [M, D] unit rows
    labels: Tensor,  # [N]
    key_labels: Tensor,  # [M]
    denominator: str,
    temperature: float,
    own: Tensor | None,  # [N]: the anchor's own place among the keys
) -> Tensor:
    """Loss of each anchor from one N x M matrix and boolean masks; products in the rows' dtype, the rest in fp32."""
    similarity = (anchors @ keys.T).float() / temperature
    same = labels[:, None] == key_labels[None, :]
    others = torch.ones_like(same) if own is None else own[:, None] != torch.arange(len(keys), device=keys.device)
    positive, negative = same & others, ~same
    if denominator == SIGMOID:
        logit = similarity - 1 / temperature
        return torch.where(others, softplus(torch.where(same, -logit, logit)), 0.0).sum(dim=1)
    count = positive.sum(dim=1)
    if denominator == "all":
        lse = similarity.masked_fill(~others, -torch.inf).logsumexp(dim=1)
        return lse - torch.where(positive, similarity, 0.0).sum(dim=1) / count
    lse = similarity.masked_fill(~negative, -torch.inf).logsumexp(dim=1)
    gap = softplus(lse[:, None] - similarity)
    return torch.where(positive, gap, 0.0).sum(dim=1) / count


def dense(problem: Problem) -> Tensor:
    """The mean loss from one N x M matrix."""
    anchors, keys, labels, key_labels, temperature, denominator = problem
    unit = normalize(anchors, dim=1)
    if keys is None or key_labels is None:
        place = torch.arange(len(unit), device=unit.device)
        return anchor_losses(unit, unit, labels, labels, denominator, temperature, place).mean()
    others = normalize(keys, dim=1)
    return anchor_losses(unit, others, labels, key_labels, denominator, temperature, None).mean()


def checkpointed(problem: Problem) -> Tensor:
    """The mean loss in blocks of anchors, each forgotten and computed again in the backward pass."""
    anchors, keys, labels, key_labels, temperature, denominator = problem
    unit = normalize(anchors, dim=1)
    others = unit if keys is None else normalize(keys, dim=1)
    other_labels = labels if key_labels is None else key_labels
    total = torch.zeros((), device=unit.device)
    for start in range(0, len(unit), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        own = torch.arange(len(unit), device=unit.device)[block] if keys is None else None
        part = checkpoint(
            anchor_losses, unit[block], others, labels[block], other_labels, denominator, temperature, own,
            use_reentrant=False,
        )  # fmt: skip
        total = total + part.sum()
    return total / len(unit)


def eager(problem: Problem) -> Loss:
    """The dense form as it stands."""
    return lambda: dense(problem)


def chunked(problem: Problem) -> Loss:
    """The checkpointed form."""
    return lambda: checkpointed(problem)


def compiled(problem: Problem) -> Loss:
    """The dense form through torch.compile, its shapes fixed."""
    torch.compiler.reset()  # another case's shapes would count against the limit of recompilations
    function = torch.compile(dense, dynamic=False)
    return lambda: function(problem)
