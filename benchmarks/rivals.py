# SPDX-License-Identifier: Apache-2.0
"""The same loss as others write it: plain torch, compiled, in checkpointed blocks, and pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import TEMPERATURE, Problem

BLOCK_ROWS = 256  # as small as keeps the products fast: 64 MiB a matrix against 65,536 keys
Loss = Callable[[], Tensor]


def anchor_losses(
    anchors: Tensor,  # [N, D] unit rows
    keys: Tensor,  # [M, D] unit rows
    labels: Tensor,  # [N]
    key_labels: Tensor,  # [M]
    denominator: str,
    own: Tensor | None,  # [N]: the anchor's own place among the keys
) -> Tensor:
    """Loss of each anchor as a careful user of plain torch writes it: one N x M matrix and boolean masks."""
    similarity = anchors @ keys.T / TEMPERATURE
    same = labels[:, None] == key_labels[None, :]
    others = torch.ones_like(same) if own is None else own[:, None] != torch.arange(len(keys))
    positive, negative = same & others, ~same
    count = positive.sum(dim=1)
    if denominator == "all":
        lse = similarity.masked_fill(~others, -torch.inf).logsumexp(dim=1)
        return lse - torch.where(positive, similarity, 0.0).sum(dim=1) / count
    lse = similarity.masked_fill(~negative, -torch.inf).logsumexp(dim=1)
    gap = torch.nn.functional.softplus(lse[:, None] - similarity)
    return torch.where(positive, gap, 0.0).sum(dim=1) / count


def dense(problem: Problem, denominator: str) -> Tensor:
    """The mean loss from one N x M matrix."""
    anchors, keys, labels, key_labels = problem
    unit = torch.nn.functional.normalize(anchors, dim=1)
    if keys is None or key_labels is None:
        return anchor_losses(unit, unit, labels, labels, denominator, torch.arange(len(unit))).mean()
    return anchor_losses(unit, torch.nn.functional.normalize(keys, dim=1), labels, key_labels, denominator, None).mean()


def checkpointed(problem: Problem, denominator: str) -> Tensor:
    """The mean loss in blocks of anchors, each forgotten and computed again in the backward pass."""
    anchors, keys, labels, key_labels = problem
    unit = torch.nn.functional.normalize(anchors, dim=1)
    others = unit if keys is None else torch.nn.functional.normalize(keys, dim=1)
    other_labels = labels if key_labels is None else key_labels
    total = unit.new_zeros(())
    for start in range(0, len(unit), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        own = torch.arange(len(unit))[block] if keys is None else None
        total = (
            total
            + checkpoint(
                anchor_losses, unit[block], others, labels[block], other_labels, denominator, own, use_reentrant=False
            ).sum()
        )
    return total / len(unit)


def compiled(problem: Problem, denominator: str) -> Loss:
    """The dense form through torch.compile, its shapes fixed."""
    torch.compiler.reset()  # another case's shapes would count against the limit of recompilations
    function = torch.compile(dense, dynamic=False)
    return lambda: function(problem, denominator)


def metric_learning(problem: Problem, denominator: str) -> Loss:
    """SupConLoss for "all"; NTXentLoss for "negatives", which pairs every positive with every negative."""
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    criterion = (SupConLoss if denominator == "all" else NTXentLoss)(temperature=TEMPERATURE)
    anchors, keys, labels, key_labels = problem
    options = {} if keys is None else {"ref_emb": keys, "ref_labels": key_labels}
    return lambda: criterion(anchors, labels, **options)
