# SPDX-License-Identifier: Apache-2.0
"""Label maps of a step: of confident pixels, at a feature map's size, of grid cells, and what they let match."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

import secl_ops
from secl_models.data.labels import IGNORED


def pseudo_labels(logits: Tensor, confidence: float) -> Tensor:
    """The teacher's class where its probability reaches `confidence`, -1 elsewhere.

    Args:
        logits: [B, K + 1, *spatial] of the teacher.
        confidence: Smallest probability that counts, in [0, 1].

    Returns:
        [B, *spatial] class index.

    Example:
        >>> pseudo_labels(torch.tensor([[[9.0, 0.1], [0.0, 0.0]]]), 0.95)
        tensor([[ 0, -1]])
    """
    probability, label = logits.float().softmax(1).max(1)
    return torch.where(probability >= confidence, label, IGNORED)


def resize_labels(label: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring a label map [B, *spatial] to [B, *shape] by nearest neighbour."""
    if label.shape[1:] == shape:
        return label
    # Class indices are small integers: float32 holds them exactly.
    return functional.interpolate(label.unsqueeze(1).float(), shape, mode="nearest-exact").squeeze(1).to(label.dtype)


def near_another(label: Tensor, reach: int) -> Tensor:
    """Whether a pixel of another class lies within `reach` pixels along every axis; one that is unknown is none.

    Args:
        label: [B, *spatial] class index, -1 unknown; two or three spatial axes.
        reach: Pixels, at least 1.

    Returns:
        [B, *spatial] bool.

    Example:
        >>> near_another(torch.tensor([[[0, 0, 1, 1, 1, -1]]]), 1).tolist()
        [[[False, True, True, False, False, False]]]
    """
    pool = functional.max_pool2d if label.ndim == 3 else functional.max_pool3d
    unknown = (label == IGNORED).unsqueeze(1)
    number = label.unsqueeze(1).float()  # class indices are small integers: exact
    highest, lowest = (
        pool((sign * number).masked_fill(unknown, -torch.inf), 2 * reach + 1, stride=1, padding=reach)
        for sign in (1.0, -1.0)
    )
    return ((highest != number) | (lowest != -number)).squeeze(1) & (label != IGNORED)


def region_labels(image: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Index of every cell of every image, -1 where a cell shows nothing (all padding, or one intensity).

    Args:
        image: [B, C, *spatial], before noise.
        grid: Cells along each spatial axis.

    Returns:
        [B, R] int64, R = product of `grid`.
    """
    # Wide accumulation keeps the variance of a constant cell from drowning in rounding.
    image = image.double()
    mean = secl_ops.pool_regions(image, grid)
    variance = (secl_ops.pool_regions(image * image, grid) - mean * mean).amax(-1)  # [B, R]
    index = torch.arange(variance.shape[1], device=image.device).expand_as(variance)
    return torch.where(variance > 1e-6, index, IGNORED)


def draw_counts(label: Tensor, per_class: int, classes: int) -> Tensor:
    """How many pixels of each class a draw takes, which is what there is, up to a number; waits for no device.

    Args:
        label: [B, *any], -1 ignored.
        per_class: Pixels of each class and image, at most.
        classes: K + 1.

    Returns:
        [K + 1] int64.

    Example:
        >>> draw_counts(torch.tensor([[0, 1, 1, -1], [1, 1, 1, 1]]), 3, classes=3).tolist()
        [1, 5, 0]
    """
    there = torch.stack([(label == index).flatten(1).sum(1) for index in range(classes)])  # [K + 1, B]
    return there.clamp_max(per_class).sum(1)
