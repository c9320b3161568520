# SPDX-License-Identifier: Apache-2.0
"""The supervised loss: cross-entropy and soft Dice over the joined batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from secl_models.data.labels import IGNORED, OPEN
from secl_models.method.processes import Processes

ALONE = Processes()


def supervised_loss(
    logits: Tensor, label: Tensor, processes: Processes = ALONE, class_sets: Tensor | None = None
) -> Tensor:
    """0.5 (cross-entropy + 1 - mean soft Dice over the structures), pixels of label -1 left out of both.

    The soft Dice of a structure is taken over the whole batch, so that slices without it do no harm. A pixel of label
    -2 - p, of a case that does not label all structures, is one of the p-th set: its cross-entropy is that of the set's
    summed probability, and it counts against the soft Dice of the other structures alone (Shi et al., Marginal loss and
    exclusion loss for partially supervised multi-organ segmentation, Medical Image Analysis 2021).

    Args:
        logits: [B, K + 1, *spatial].
        label: [B, *spatial] class index, -1 ignored.
        processes: Those that hold the other parts of a joined batch.
        class_sets: [P, K + 1] bool, what a pixel of label -2 - p may be; None: there are none of these.

    Returns:
        A scalar; 0 with a graph where every pixel is ignored.

    Example:
        >>> label = torch.tensor([[0, 1]])
        >>> round(supervised_loss(20.0 * functional.one_hot(label).movedim(-1, 1), label).item(), 3)
        0.0
    """
    logits = logits.float()
    known = label != IGNORED
    entropy = functional.cross_entropy(logits, label.clamp_min(0), reduction="none")
    counted = known.unsqueeze(1)
    if class_sets is not None:
        may_be = _may_be(label, class_sets)
        entropy = torch.where(label <= OPEN, _entropy_of_sets(logits, may_be), entropy)
        counted = counted & ~may_be
    axes = [0, *range(2, logits.ndim)]
    probability = logits.softmax(1) * counted  # [B, K + 1, *spatial]
    truth = (label.unsqueeze(1) == _classes(logits)) * counted  # one_hot would wait on some devices
    overlap, volume = (probability * truth).sum(axes)[1:], (probability + truth).sum(axes)[1:]  # [K]
    parts = [torch.stack([(entropy * known).sum(), known.sum().float()]), overlap, volume]
    sums = processes.total(torch.cat(parts))  # [2 + 2 K]
    structures = logits.shape[1] - 1
    dice = (2.0 * sums[2 : 2 + structures] + 1.0) / (sums[2 + structures :] + 1.0)
    loss: Tensor = 0.5 * (sums[0] / sums[1].clamp_min(1) + (1.0 - dice.mean()) * (sums[1] > 0))
    return loss


def _may_be(label: Tensor, class_sets: Tensor) -> Tensor:
    """Classes that an open pixel may be, none for the others, [B, K + 1, *spatial] bool."""
    number = (OPEN - label).clamp_min(0)
    return class_sets[number].movedim(-1, 1) & (label <= OPEN).unsqueeze(1)


def _entropy_of_sets(logits: Tensor, may_be: Tensor) -> Tensor:
    """-log of the summed probability of the classes that a pixel may be, [B, *spatial]; finite where it is open."""
    inside = logits.masked_fill(~may_be & may_be.any(1, keepdim=True), -torch.inf)
    return logits.logsumexp(1) - inside.logsumexp(1)


def _classes(logits: Tensor) -> Tensor:
    """Every class index [K + 1, 1, ...], to be compared with a label map."""
    return torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
