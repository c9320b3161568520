# SPDX-License-Identifier: Apache-2.0
"""The sampler by Triton kernels: small images are read by the program that draws, large ones listed first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.draws import CELLS_PER_AXIS
from secl_ops.engines.triton.grids import PIXEL_AXES, Launch, cells, kinds, laid_out, on
from secl_ops.engines.triton.listing import count_kernel, list_kernel
from secl_ops.engines.triton.sampling import aim_kernel, sample_kernel


class Maps(NamedTuple):
    """What a draw reads."""

    labels: Tensor  # [B, *spatial]
    eligible: Tensor | None
    scores: Tensor | None
    seed: Tensor | None  # [1]; None: the number of the call is all there is


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


class Request(NamedTuple):
    """What decides the launches of a draw: sizes, dtypes and options."""

    size: torch.Size  # of the labels [B, *spatial]
    kinds: tuple[torch.dtype | None, ...]  # of the maps
    device: torch.device
    per_class: int
    num_classes: int
    ignore_index: int
    strategy: str

    @property
    def draws(self) -> int:
        """Places of the draw."""
        return self.size[0] * self.num_classes * self.per_class


def halves(number: int) -> tuple[int, int]:
    """The low and the high 32 bits of a number of 64, each as one below 2^31.

    Example:
        >>> halves(-1), halves(2**32 + 5)
        ((-1, -1), (5, 1))
    """
    low = (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)
    return low, ((number >> 32) & 0xFFFFFFFF) - ((number >> 31) & 0x100000000)


class Sampler:
    """The launches of a draw, made once for each request."""

    def __init__(self, request: Request) -> None:
        images, pixels = request.size[0], math.prod(request.size[1:])
        if pixels > tiles.MOST_PIXELS:
            raise ValueError(f"labels must have at most {tiles.MOST_PIXELS} pixels an image; got {pixels}")
        self.plan = split(images, request.size[1:], request.num_classes, stratified=request.strategy == "stratified")
        self.lists = Lists(request, self.plan) if self.plan.chunks else None
        self.draw = Launch(
            sample_kernel, (images * request.num_classes, self.plan.cells),
            request.per_class, request.ignore_index, images, self.plan.chunks, pixels,
            request.strategy == "hard", self.plan.levels, self.plan.cells, self.plan.classes, tiles.SAMPLE_GROUPS[0][1],
            tiles.SAMPLE_PIXELS, num_warps=8,
        )  # fmt: skip

    def __call__(self, maps: Maps, number: tuple[int, int], index: Tensor, label: Tensor) -> None:
        """Draw into index and label; the number joins the seed."""
        lists = (None, None, None) if self.lists is None else self.lists(maps, number)
        self.draw(*maps, *lists, index, label, *number)


class Lists:
    """The launches that list the pixels that may be drawn from large images."""

    def __init__(self, request: Request, plan: Split) -> None:
        (images, *spatial), classes, hard = request.size, request.num_classes, request.strategy == "hard"
        pixels, kinds, units = math.prod(spatial), 2 if hard else 1, plan.cells * plan.chunks
        self.sizes = (
            (kinds, images, classes, plan.levels, units),
            (kinds, images, pixels),
            (kinds, images, cells(classes, plan.classes), plan.cells, 2),
        )
        self.aim = (images, classes) if hard else None
        self.find_aim = Launch(
            aim_kernel, (images * classes,),
            request.ignore_index, images, aimed(request.per_class // 2, pixels), pixels,
            tiles.SAMPLE_SPOTS, tiles.SAMPLE_PIXELS, num_warps=8,
        )  # fmt: skip
        common = (request.ignore_index, classes, plan.chunks, *(1,) * (PIXEL_AXES - len(spatial)), *spatial)
        switches = (hard, plan.levels, *plan.grid, plan.classes)
        grid, block = (images * units, kinds), tiles.SAMPLE_PIXELS
        self.count = Launch(count_kernel, grid, *common, *switches, block, num_warps=8)
        self.list = Launch(list_kernel, grid, request.per_class, *common, *switches, plan.most, block, num_warps=8)

    def __call__(self, maps: Maps, number: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, lists of the pixels that may be drawn, and where in them each cell and group of classes begins."""
        labels, aim = maps[0], None
        counts, lists, spans = (labels.new_empty(size, dtype=torch.int32) for size in self.sizes)
        if self.aim is not None:
            aim = labels.new_empty(self.aim, dtype=torch.int64)
            self.find_aim(*maps, aim, *number)
        self.count(*maps, aim, counts, *number)
        self.list(*maps, aim, counts, lists, spans, *number)
        return counts, lists, spans


sampler = lru_cache(512)(Sampler)
"""The launches of a draw, those of earlier calls where they were alike."""


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
    index = labels.new_empty(labels.shape[0] * num_classes * per_class, dtype=torch.int64)
    label = torch.empty_like(index, dtype=torch.int32)
    if labels.numel() == 0 or index.numel() == 0:
        return index.fill_(-1), label.fill_(-1)
    if strategy != "hard" or scores is None:
        strategy, scores = "uniform" if strategy == "hard" else strategy, None
    maps = Maps(*map(laid_out, (labels, eligible, scores, seed)))  # type: ignore[arg-type]  # labels are there
    request = Request(labels.shape, kinds(*maps), labels.device, per_class, num_classes, ignore_index, strategy)
    with on(labels):
        sampler(request)(maps, halves(stream), index, label)
    return index, label
