# SPDX-License-Identifier: Apache-2.0
"""Keeping the largest connected part of every structure: of a finished prediction, and of a step's pseudo-labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage import measure
from torch import Tensor
from torch.nn import functional

from secl_models.data.labels import IGNORED

label_parts: Any = measure.label  # skimage types it in part
ONE_PART = 0.99  # share of its voxels from which the largest part is all of a structure but stray voxels


def one_part_structures(labels: Iterable[npt.NDArray[Any]], classes: int) -> tuple[int, ...]:
    """Structures that are one part wherever they are shown: the largest holds at least `ONE_PART` of the voxels.

    Args:
        labels: Class index [*spatial] of each case; one that holds -1, of which nothing is said, is passed over.
        classes: Structures K.

    Returns:
        Class indices; one that no case shows is none of them.

    Example:
        >>> one_part_structures([np.array([[1, 0, 2], [1, 0, 0], [0, 0, 2]])], classes=3)
        (1,)
    """
    one, shown = set(range(1, classes + 1)), set()
    for label in labels:
        if (label == IGNORED).any():
            continue
        kept = label.clip(0)
        whole = np.bincount(kept.ravel(), minlength=classes + 1)
        keep_largest(kept)
        largest = np.bincount(kept.ravel(), minlength=classes + 1)
        shown |= set(np.flatnonzero(whole))
        one -= set(np.flatnonzero(largest < ONE_PART * whole))
    return tuple(sorted(int(index) for index in one & shown))


def keep_largest(label: npt.NDArray[Any], only: Collection[int] | None = None) -> None:
    """Make all but the largest part of each structure background, in place.

    Voxels belong together where they touch by a face, an edge or a corner: 26 neighbours in a volume, 8 in a slice.
    Of equally large parts the first in voxel order is kept.

    Args:
        label: Class index [*spatial].
        only: Structures that are made one part; None: all.

    Example:
        >>> label = np.array([[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 1]])
        >>> keep_largest(label)
        >>> label.tolist()
        [[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 0]]
    """
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None or (only is not None and index not in only):
            continue
        view = label[box]
        parts: npt.NDArray[np.int32] = label_parts(view == index, connectivity=view.ndim)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        view[(parts > 0) & (parts != sizes.argmax())] = 0


def largest_parts(label: Tensor, classes: int) -> Tensor:
    """Make all but the largest part of each structure background, image by image, without waiting for a device.

    Args:
        label: Class index [B, *spatial], two or three spatial axes; -1 stays.
        classes: K + 1.

    Returns:
        A new map: that of `keep_largest` on a CPU, that of `exchange_numbers` elsewhere.

    Example:
        >>> largest_parts(torch.tensor([[[1, 0, 2, 2], [1, 0, 0, 0], [0, 0, -1, 1]]]), 3).tolist()
        [[[1, 0, 2, 2], [1, 0, 0, 0], [0, 0, -1, 0]]]
    """
    if label.device.type != "cpu":
        return exchange_numbers(label, classes)
    kept = label.clone()
    for image in kept.numpy():
        keep_largest(image)
    return kept


def exchange_numbers(label: Tensor, classes: int, rounds: int = 20) -> Tensor:
    """The same in a fixed count of steps, none of which needs the host.

    In each round a voxel takes the highest number among its neighbours, tells it the voxel whose number it had, and
    then takes the number that the voxel of the new number holds, so that numbers cross a part in leaps. A piece of a
    part that needs more rounds counts as a part of its own. After the hooking and pointer jumping of Shiloach and
    Vishkin, An O(log n) Parallel Connectivity Algorithm, Journal of Algorithms 1982.

    Args:
        label: Class index [B, *spatial], below 2^24 voxels an image; -1 stays.
        classes: K + 1.
        rounds: Of exchange.

    Returns:
        A new map; of equally large parts the one that ends first in voxel order is kept.

    Example:
        >>> exchange_numbers(torch.tensor([[[1, 0, 2, 2], [1, 0, 0, 0], [0, 0, -1, 1]]]), 3).tolist()
        [[[1, 0, 2, 2], [1, 0, 0, 0], [0, 0, -1, 0]]]
    """
    spatial = tuple(label.shape[1:])
    index = torch.arange(1, classes, device=label.device).view(-1, *[1] * len(spatial))
    mask = label.unsqueeze(1) == index  # [B, K, *spatial]
    pool = functional.max_pool2d if len(spatial) == 2 else functional.max_pool3d
    number = torch.arange(1.0, label[0].numel() + 1.0, device=label.device).view(spatial) * mask  # exact in float32
    for _ in range(rounds):
        highest = (pool(number, 3, stride=1, padding=1) * mask).flatten(2)
        held = (number.flatten(2).to(torch.int64) - 1).clamp_min_(0)
        highest = highest.scatter_reduce(2, held, highest, "amax")
        holder = (highest.to(torch.int64) - 1).clamp_min_(0)
        number = highest.gather(2, holder).view_as(number) * mask
    part = number.flatten(2).to(torch.int64)  # [B, K, voxels], 0 outside
    size = torch.zeros(*part.shape[:2], label[0].numel() + 1, device=label.device)
    size = size.scatter_add_(2, part, mask.flatten(2).float())
    dropped = mask.flatten(2) & (part != size.argmax(2, keepdim=True))
    return torch.where(dropped.any(1).view_as(label), 0, label)
