# SPDX-License-Identifier: Apache-2.0
"""The supervised loss: cross-entropy and soft Dice over the joined batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from secl_models.data.batch import IGNORED
from secl_models.method.processes import Processes

ALONE = Processes()


def supervised_loss(logits: Tensor, label: Tensor, processes: Processes = ALONE) -> Tensor:
    """0.5 (cross-entropy + 1 - mean soft Dice over the structures), pixels of label -1 left out of both.

    The soft Dice of a structure is taken over the whole batch, so that slices without it do no harm.

    Args:
        logits: [B, K + 1, *spatial].
        label: [B, *spatial] class index, -1 ignored.
        processes: Those that hold the other parts of a joined batch.

    Returns:
        A scalar; 0 with a graph where every pixel is ignored.

    Example:
        >>> label = torch.tensor([[0, 1]])
        >>> round(supervised_loss(20.0 * functional.one_hot(label).movedim(-1, 1), label).item(), 3)
        0.0
    """
    logits = logits.float()
    known = label != IGNORED
    target = label.clamp_min(0)
    entropy = functional.cross_entropy(logits, target, reduction="none")
    mask = known.unsqueeze(1)
    axes = [0, *range(2, logits.ndim)]
    probability = logits.softmax(1) * mask  # [B, K + 1, *spatial]
    truth = (label.unsqueeze(1) == _classes(logits)) * mask  # one_hot would wait on some devices
    overlap, volume = (probability * truth).sum(axes)[1:], (probability + truth).sum(axes)[1:]  # [K]
    parts = [torch.stack([(entropy * known).sum(), known.sum().float()]), overlap, volume]
    sums = processes.total(torch.cat(parts))  # [2 + 2 K]
    structures = logits.shape[1] - 1
    dice = (2.0 * sums[2 : 2 + structures] + 1.0) / (sums[2 + structures :] + 1.0)
    loss: Tensor = 0.5 * (sums[0] / sums[1].clamp_min(1) + (1.0 - dice.mean()) * (sums[1] > 0))
    return loss


def _classes(logits: Tensor) -> Tensor:
    """Every class index [K + 1, 1, ...], to be compared with a label map."""
    return torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
