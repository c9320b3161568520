# SPDX-License-Identifier: Apache-2.0
"""The reference of sampling: pixels of every class of every image by random priorities, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS_PER_AXIS = 4  # "stratified": ARCO's 4 x 4 grid
INDEX_BITS = 28  # low bits of a draw's priority: the pixel, so that no two priorities tie
GOLDEN, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64, as int64


def _mix(value: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64: a counter becomes 64 random bits."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * MIX_1
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def _priorities(seed: Tensor, images: int, pixels: int) -> Tensor:
    """Distinct random int64 [images, pixels], a function of (seed, image, pixel) alone; low bits hold the pixel."""
    position = torch.arange(images * pixels, device=seed.device).view(images, pixels)
    bits = _mix(_mix(seed.view(1, 1)) + position * GOLDEN)
    random = (bits >> (INDEX_BITS + 1)) & ((1 << (63 - INDEX_BITS)) - 1)
    return (random << INDEX_BITS) | torch.arange(pixels, device=seed.device)


def _starts(seed: Tensor, images: int, label: int) -> Tensor:
    """Random 24-bit numbers [images, 1], independent of the pixels' priorities."""
    counter = label * images + torch.arange(images, device=seed.device)[:, None]
    return (_mix(_mix(seed.view(1, 1) ^ GOLDEN) + counter * GOLDEN) >> 24) & 0xFFFFFF


def _cells(shape: torch.Size, device: torch.device) -> Tensor:
    """Number of the grid cell of every pixel [prod(shape)]."""
    cell = torch.zeros(1, dtype=torch.int64, device=device)
    for size in shape:
        axis = torch.arange(size, device=device) * CELLS_PER_AXIS // size
        cell = (cell[:, None] * CELLS_PER_AXIS + axis[None, :]).flatten()
    return cell


def _first(priority: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, count] of the lowest priority inside the mask, and which of them exist."""
    never = torch.iinfo(torch.int64).max
    size = min(count, priority.shape[1])
    value, pixel = torch.where(mask, priority, never).topk(size, dim=1, largest=False, sorted=True)
    pad = (0, count - size)
    return torch.nn.functional.pad(pixel, pad), torch.nn.functional.pad(value != never, pad, value=False)


def _spread(priority: Tensor, mask: Tensor, cell: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A systematic draw: pixels in order of (cell, chance), every (available / count)-th from a random start.

    Each cell gives its share to within one pixel, every pixel is equally likely, none comes twice.
    """
    last = torch.iinfo(torch.int64).max
    in_order = (cell << (63 - INDEX_BITS)) | (priority >> INDEX_BITS)
    order = torch.where(mask, in_order, last).argsort(dim=1, stable=True)
    available = mask.sum(dim=1, keepdim=True)  # [B, 1]
    drawn = available.clamp(max=count)
    step = torch.arange(count, device=mask.device)[None, :]
    place = (step * available + (start * available >> 24)) // drawn.clamp(min=1)
    exists = step < drawn
    return order.gather(1, torch.where(exists, place, 0)), exists


def _hard(priority: Tensor, mask: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The lowest scores for half of the budget, chance for the rest."""
    half = count // 2
    ordered = torch.where(mask, scores, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(ordered)
    rank.scatter_(1, ordered, torch.arange(ordered.shape[1], device=mask.device).expand_as(ordered))
    return _first(torch.where(rank < half, rank - half, priority), mask, count)


def sample(
    labels: Tensor,
    eligible: Tensor | None,
    scores: Tensor | None,
    seed: Tensor,
    per_class: int,
    num_classes: int,
    ignore_index: int,
    strategy: str,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Index and label [num_classes * B * per_class] of pixels drawn from labels [B, *spatial]; padding is -1.

    Seeds of different streams, seed ^ stream, draw apart.
    """
    seed = seed ^ stream
    images, pixels = labels.shape[0], labels[0].numel() if labels.shape[0] else 0
    flat = labels.long().reshape(images, pixels)  # a narrow dtype would wrap the class numbers it is compared with
    usable = flat != ignore_index
    if eligible is not None:
        usable &= eligible.reshape(images, pixels)
    if images * pixels == 0:
        size = images * num_classes * per_class
        return labels.new_full((size,), -1, dtype=torch.int64), labels.new_full((size,), -1, dtype=torch.int32)
    priority = _priorities(seed, images, pixels)
    cell = _cells(labels.shape[1:], labels.device)
    chosen, exists = [], []
    for label in range(num_classes):
        mask = usable & (flat == label)
        if strategy == "hard" and scores is not None:
            found = _hard(
                priority,
                mask,
                (scores if scores.dtype == torch.float64 else scores.float()).reshape(images, pixels),
                per_class,
            )
        elif strategy == "stratified":
            start = _starts(seed, images, label)
            found = _spread(priority, mask, cell, start, per_class)
        else:
            found = _first(priority, mask, per_class)
        chosen.append(found[0])
        exists.append(found[1])
    first_pixel = torch.arange(images, device=labels.device)[None, :, None] * pixels
    valid = torch.stack(exists)  # [C, B, K]
    index = torch.where(valid, torch.stack(chosen) + first_pixel, -1)
    classes = torch.arange(num_classes, dtype=torch.int32, device=labels.device)[:, None, None]
    return index.flatten(), torch.where(valid, classes, -1).to(torch.int32).flatten()
