# SPDX-License-Identifier: Apache-2.0
"""The sampler by Triton kernels: small images are read by the program that draws, large ones listed first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.draws import CELLS_PER_AXIS
from secl_ops.engines.triton.grids import cells, on
from secl_ops.engines.triton.listing import count_kernel, list_kernel
from secl_ops.engines.triton.sampling import aim_kernel, sample_kernel

PIXEL_AXES = 3
Maps = tuple[Tensor, Tensor | None, Tensor | None, Tensor]  # labels, eligible, scores, seed


class Split(NamedTuple):
    """How the images of a batch are spread over programs."""

    grid: tuple[int, int, int]  # cells along the axes
    chunks: int  # of each cell; 0 where one program reads the whole image
    levels: int  # of keys that are counted apart
    classes: int  # that one scan serves
    most: int  # chunks of an image whose counts a program of the second pass adds up

    @property
    def cells(self) -> int:
        """Cells of an image."""
        return math.prod(self.grid)


def split(images: int, spatial: Sequence[int], num_classes: int, *, stratified: bool) -> Split:
    """Cells, chunks and levels for images of these spatial sizes, decided by sizes alone.

    Example:
        >>> split(2, (128, 128, 128), 4, stratified=False)
        Split(grid=(1, 1, 1), chunks=256, levels=16, classes=4, most=256)
    """
    size = (1,) * (PIXEL_AXES - len(spatial)) + tuple(spatial)
    axes = [CELLS_PER_AXIS if stratified and axis >= PIXEL_AXES - len(spatial) else 1 for axis in range(PIXEL_AXES)]
    groups = tiles.SAMPLE_GROUPS
    classes, units = next((group for group in groups if num_classes <= group[0]), groups[-1])
    plan = Split((axes[0], axes[1], axes[2]), 0, 1, classes, units)
    if not stratified and math.prod(size) <= tiles.SAMPLE_WHOLE:
        return plan
    cell = math.prod(map(cells, size, axes))  # pixels
    least = max(tiles.SAMPLE_PIXELS, tiles.SAMPLE_LEVELS * num_classes)  # pixels of a chunk: no fewer than its counts
    most = min(units // plan.cells, cells(tiles.SAMPLE_PROGRAMS, images * plan.cells))
    plan = plan._replace(chunks=min(most, cells(cell, least)))
    if cell <= tiles.SAMPLE_PIXELS:  # a list of all of them is as short
        return plan._replace(most=CELLS_PER_AXIS**PIXEL_AXES)
    return plan._replace(levels=tiles.SAMPLE_LEVELS)


def aimed(need: int, pixels: int) -> int:
    """Which lowest score of some pixels is almost surely not among the `need` lowest of the whole image.

    So many of them as are expected among those, and five standard deviations more.

    Example:
        >>> aimed(128, 128**3)
        8
    """
    expected = need * tiles.SAMPLE_SPOTS / pixels
    return math.ceil(expected + 5 * math.sqrt(expected) + 5)


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
    """Index and label [num_classes * B * per_class] of pixels drawn from labels [B, *spatial]; padding is -1."""
    images, spatial = labels.shape[0], tuple(labels.shape[1:])
    index = labels.new_empty(images * num_classes * per_class, dtype=torch.int64)
    label = torch.empty_like(index, dtype=torch.int32)
    if labels.numel() == 0 or index.numel() == 0:
        return index.fill_(-1), label.fill_(-1)
    pixels = math.prod(spatial)
    if pixels > tiles.MOST_PIXELS:
        raise ValueError(f"labels must have at most {tiles.MOST_PIXELS} pixels an image; got {pixels}")
    hard = strategy == "hard" and scores is not None
    plan = split(images, spatial, num_classes, stratified=strategy == "stratified")
    read = (
        labels.contiguous(),
        None if eligible is None else eligible.contiguous(),
        scores.contiguous() if scores is not None and hard else None,
        seed.contiguous(),
    )
    with on(labels):
        lists = _lists(read, plan, per_class, num_classes, ignore_index, stream) if plan.chunks else (None, None, None)
        sample_kernel[(images * num_classes, plan.cells)](
            *read, *lists, index, label,
            per_class, ignore_index, stream, images, plan.chunks, pixels,
            HARD=hard, LEVELS=plan.levels, CELLS=plan.cells, CLASSES=plan.classes, UNITS=tiles.SAMPLE_GROUPS[0][1],
            BLOCK=tiles.SAMPLE_PIXELS, num_warps=8,
        )  # fmt: skip
    return index, label


def _lists(
    read: Maps, plan: Split, per_class: int, num_classes: int, ignore_index: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, lists of the pixels that may be drawn, and where in them each cell and group of classes begins."""
    labels, scores = read[0], read[2]
    images, spatial, pixels = labels.shape[0], tuple(labels.shape[1:]), labels[0].numel()
    kinds, units = 1 if scores is None else 2, plan.cells * plan.chunks
    missing = (1,) * (PIXEL_AXES - len(spatial))

    def scratch(*size: int) -> Tensor:
        return labels.new_empty(size, dtype=torch.int32)

    counts = scratch(kinds, images, num_classes, plan.levels, units)
    lists = scratch(kinds, images, pixels)
    spans = scratch(kinds, images, cells(num_classes, plan.classes), plan.cells, 2)
    aim = None if scores is None else labels.new_empty((images, num_classes), dtype=torch.int64)
    if aim is not None:
        aim_kernel[(images * num_classes,)](
            *read, aim, ignore_index, stream, images, aimed(per_class // 2, pixels), pixels,
            LENGTH=tiles.SAMPLE_SPOTS, BLOCK=tiles.SAMPLE_PIXELS, num_warps=8,
        )  # fmt: skip
    common = (ignore_index, stream, num_classes, plan.chunks, *missing, *spatial)
    switches = {
        "HARD": scores is not None, "LEVELS": plan.levels, "CLASSES": plan.classes,
        **dict(zip(("CELLS_Z", "CELLS_Y", "CELLS_X"), plan.grid, strict=True)),
        "BLOCK": tiles.SAMPLE_PIXELS, "num_warps": 8,
    }  # fmt: skip
    grid = (images * units, kinds)
    count_kernel[grid](*read, aim, counts, *common, **switches)
    list_kernel[grid](*read, aim, counts, lists, spans, per_class, *common, **switches, UNITS=plan.most)
    return counts, lists, spans
