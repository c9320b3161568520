# SPDX-License-Identifier: Apache-2.0
"""The launches of few rows: planned once for each signature of a call, then only started.

A plan holds no tensor of a call. What it starts is decided by shapes, dtypes and options alone, which stand in its
request; whoever asks for a plan has checked them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.reference import Origin
from secl_ops.engines.triton.few import few_gradient_kernel, few_reduce_kernel, few_value_kernel
from secl_ops.engines.triton.grids import PIXEL_AXES, Launch, cells, kinds, on
from secl_ops.engines.triton.launch import BOUNDED_SCALE, LOG2E
from secl_ops.engines.triton.launch_rows import on_map, on_rows
from secl_ops.engines.triton.launch_sample import Maps, Request, halves, sampler
from secl_ops.engines.triton.pixels import gather_kernel, gather_unit_kernel, nearest_kernel, scatter_kernel
from secl_ops.engines.triton.rows import unit_rows_backward_kernel, unit_rows_kernel
from secl_ops.small_call import Back, Found, Kept, Pixels, Wanted
from secl_ops.spec import ContrastSpec, SampleSpec


class Beside(NamedTuple):
    """What stands beside the rows: contiguous tensors, None where there is none."""

    labels: Tensor  # [N]
    key_labels: Tensor  # [M]
    groups: Tensor | None = None  # [N]
    key_groups: Tensor | None = None  # [M]
    exclude: Tensor | None = None  # [N]
    weights: Tensor | None = None  # [N]


class Contrasted(NamedTuple):
    """The reduced loss and its gradients with respect to the rows that were compared."""

    value: Tensor  # []
    anchors: Tensor | None  # [N, D] fp32; of shared rows, in both roles
    keys: Tensor | None  # [M, D] fp32


class ContrastRequest(NamedTuple):
    """What decides the launches of the contrast of rows [N, D] and [M, D]."""

    rows: int
    keys: int | None  # None: the anchors are the keys
    width: int
    dtype: torch.dtype
    beside: tuple[torch.dtype | None, ...]
    device: torch.device
    denominator: str
    reduction: str
    scale: float
    clean: bool  # an ignored row is zero, whatever it was
    unit: bool  # every row has norm 1 or 0


class Contrast:
    """The launches of the contrast of few rows."""

    def __init__(self, request: ContrastRequest) -> None:
        self.request, self.shared = request, request.keys is None
        count, others = request.rows, request.rows if request.keys is None else request.keys
        negatives, mean = request.denominator == "negatives", request.reduction == "mean"
        scale2, tile = request.scale * LOG2E, tiles.pick_few(request.width)
        blocks = (tile.block_n, tile.block_m, tile.block_d)
        options = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tiles.MOST_REGISTERS}
        rules = (request.width, self.shared, negatives, request.clean)

        def gradient(rows: int, streamed: int, *, anchors: bool, keys: bool) -> Launch:
            grid = (cells(rows, tile.block_n), cells(request.width, tile.block_out))
            return Launch(
                few_gradient_kernel, grid, rows, streamed, request.scale, scale2, *rules, mean, anchors, keys,
                *blocks, tile.block_out, tiles.REDUCE_ROWS, **options,
            )  # fmt: skip

        rows, bounded = (cells(count, tile.block_n),), request.unit and request.scale <= BOUNDED_SCALE
        self.find = Launch(few_value_kernel, rows, count, others, scale2, *rules, bounded, *blocks, **options)
        self.of_anchors = gradient(count, others, anchors=True, keys=self.shared)
        self.of_keys = gradient(others, count, anchors=False, keys=True)
        self.reduce = Launch(few_reduce_kernel, (1,), count, mean, tiles.REDUCE_ROWS, num_warps=8)

    def __call__(self, anchors: Tensor, keys: Tensor, beside: Beside, wanted: Wanted) -> Contrasted:
        """The loss of unit rows, or of rows as they are, and the gradients that are wanted."""
        labels, key_labels, groups, key_groups, exclude, weights = beside
        state = anchors.new_empty((4, self.request.rows), dtype=torch.float32)
        value, of_anchors, of_keys = anchors.new_empty((), dtype=torch.float32), None, None
        self.find(anchors, keys, labels, key_labels, groups, key_groups, exclude, state)
        if wanted.anchors:
            of_anchors = torch.empty_like(anchors, dtype=torch.float32)
            names = (labels, key_labels, groups, key_groups)
            self.of_anchors(anchors, keys, *names, exclude, state, weights, value, of_anchors)
        if wanted.keys:
            of_keys = torch.empty_like(keys, dtype=torch.float32)
            names = (key_labels, labels, key_groups, groups)
            self.of_keys(keys, anchors, *names, exclude, state, weights, value, of_keys)
        if of_anchors is None and of_keys is None:
            self.reduce(state, weights, value)
        return Contrasted(value, of_anchors, of_keys)


contrast = lru_cache(512)(Contrast)
"""The launches of a contrast, those of earlier calls where they were alike."""


class RowsSide(NamedTuple):
    """One side of `info_nce`."""

    size: torch.Size  # [n, D]
    stride: tuple[int, ...]
    dtype: torch.dtype
    labels: torch.dtype


class RowsRequest(NamedTuple):
    """What decides the launches of `info_nce` on few rows."""

    sides: tuple[RowsSide, ...]  # one where the anchors are the keys
    beside: tuple[torch.dtype | None, ...]
    device: torch.device
    denominator: str
    reduction: str
    scale: float
    normalize: bool

    @classmethod
    def of(cls, rows: Sequence[Tensor], beside: Beside, options: ContrastSpec) -> RowsRequest:
        """What decides on a call on these rows."""
        labels = (beside.labels, beside.key_labels)
        sides = tuple(
            RowsSide(side.shape, side.stride(), side.dtype, names.dtype)
            for side, names in zip(rows, labels, strict=False)
        )
        rules = (options.denominator, options.reduction, options.scale, options.normalize)
        return cls(sides, kinds(*beside), rows[0].device, *rules)


class RowsPlan:
    """The launches of `info_nce` on few rows: normalise, contrast; then back through the norm."""

    def __init__(self, request: RowsRequest) -> None:
        side, device = _Normalized if request.normalize else _AsTheyAre, request.device
        self.sides: list[_Normalized | _AsTheyAre] = [side(layout, device) for layout in request.sides]
        self.back: tuple[Back, Back] = self.sides[0].back, self.sides[-1].back
        anchors = request.sides[0]
        self.contrast = contrast(
            ContrastRequest(
                anchors.size[0], request.sides[1].size[0] if len(self.sides) > 1 else None, anchors.size[1],
                anchors.dtype, request.beside, device, request.denominator, request.reduction, request.scale,
                request.normalize, request.normalize,
            )
        )  # fmt: skip

    def find(self, rows: Sequence[Tensor], beside: Beside, wanted: Wanted) -> Found:
        """The loss and its gradients with respect to the unit rows."""
        labels = (beside.labels, beside.key_labels)
        with on(rows[0]):
            given = zip(self.sides, rows, labels, strict=False)
            units = [launches.unit(side, names) for launches, side, names in given]
            found = self.contrast(units[0][0], units[-1][0], beside, wanted)
        return Found(found.value, _kept(found.anchors, *units[0]), _kept(found.keys, *units[-1]))


def _kept(gradient: Tensor | None, rows: Tensor, inverse: Tensor | None, pixels: Tensor | None = None) -> Kept | None:
    if gradient is None:
        return None
    return Kept(gradient, None if inverse is None else rows, inverse, pixels)


class _Normalized:
    """The launches that bring rows [n, D] to their unit rows, and a gradient back."""

    def __init__(self, rows: RowsSide, device: torch.device) -> None:
        wide = torch.float32
        self.normalize = on_rows(unit_rows_kernel, rows.size, rows.stride, device, (*rows[2:], rows.dtype, wide))
        backward = (wide, None, wide, rows.dtype, wide, rows.dtype)
        self.project = on_rows(unit_rows_backward_kernel, rows.size, (rows.size[1], 1, 0), device, backward)

    def unit(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        unit, inverse = rows.new_empty(rows.shape), rows.new_empty(rows.shape[0], dtype=torch.float32)
        self.normalize(rows, labels, unit, inverse)
        return unit, inverse

    def back(self, kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
        found = upstream.new_empty(origin.size, dtype=origin.dtype)
        self.project(kept.rows, None, upstream, kept.unit, kept.inverse, found)
        return found


class _AsTheyAre:
    """Rows [n, D] that are compared as they are."""

    def __init__(self, rows: RowsSide, device: torch.device) -> None:
        """There is nothing to launch."""

    def unit(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return rows.contiguous(), None

    def back(self, kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
        return torch.where(kept.rows == 0, 0.0, kept.rows * upstream).to(origin.dtype)


class MapRequest(NamedTuple):
    """One side of a pixel step."""

    size: torch.Size  # of the feature map [B, D, *spatial]
    stride: tuple[int, ...]
    dtype: torch.dtype
    labels: torch.Size  # [B, *any]
    kinds: tuple[torch.dtype | None, ...]  # of labels, eligible, scores and seed
    strategy: str

    @classmethod
    def of(cls, side: Pixels, maps: Maps, strategy: str) -> MapRequest:
        """What decides on the draw from this side."""
        features = side.features
        return cls(features.shape, features.stride(), features.dtype, side.labels.shape, kinds(*maps), strategy)


class StepRequest(NamedTuple):
    """What decides the launches of a pixel step."""

    sides: tuple[MapRequest, ...]  # one where the anchors are the keys
    device: torch.device
    sampling: SampleSpec
    options: ContrastSpec


class StepPlan:
    """The launches of a pixel step: draw, gather, contrast; then back to the map."""

    def __init__(self, request: StepRequest) -> None:
        options, anchors = request.options, request.sides[0]
        self.sides = [_Drawn(side, request) for side in request.sides]
        draws, *key_draws = (side.draws for side in self.sides)
        beside = (torch.int32, torch.int32, None, None, None, None)
        self.contrast = contrast(
            ContrastRequest(
                draws, key_draws[0] if key_draws else None, anchors.size[1], anchors.dtype, beside, request.device,
                options.denominator, options.reduction, options.scale, True, options.normalize,
            )
        )  # fmt: skip
        self.back: tuple[Back, Back] = self.sides[0].back, self.sides[-1].back

    def find(self, sides: Sequence[Pixels], maps: Sequence[Maps], wanted: Wanted) -> Found:
        """The loss of the pixels drawn from each side, and its gradients."""
        with on(sides[0].features):
            given = zip(self.sides, sides, maps, strict=True)
            drawn = [launches.draw(side, beside) for launches, side, beside in given]
            anchors, keys = drawn[0], drawn[-1]
            found = self.contrast(anchors.rows, keys.rows, Beside(anchors.label, keys.label), wanted)
        of_anchors = _kept(found.anchors, anchors.rows, anchors.inverse, anchors.place)
        return Found(found.value, of_anchors, _kept(found.keys, keys.rows, keys.inverse, keys.place))


class _Pixels(NamedTuple):
    """The pixels that were drawn."""

    place: Tensor  # [n] int64 into the pixels of the map
    label: Tensor  # [n] int32
    rows: Tensor  # [n, D]
    inverse: Tensor | None  # [n] 1 / norm; None: as they were


class _Drawn:
    """The launches that draw the pixels of one side and gather their rows, and bring a gradient back to the map."""

    def __init__(self, side: MapRequest, request: StepRequest) -> None:
        (images, width, *spatial), device, sampling = side.size, request.device, request.sampling
        self.normalize, self.dtype, size = request.options.normalize, side.dtype, torch.Size((images, *spatial))
        self.nearest = _Nearest(side.labels, size) if side.labels != size else None
        rules = (sampling.per_class, sampling.num_classes, sampling.ignore_index, side.strategy)
        draw = Request(size, side.kinds, device, *rules)
        self.draws, self.sampler = draw.draws, sampler(draw)
        self.width, self.size, wide, index = width, side.size, torch.float32, torch.int64
        norm = (side.dtype, wide) if self.normalize else (None, None)
        kernel, made = (gather_unit_kernel, norm) if self.normalize else (gather_kernel, (side.dtype,))
        self.gather = on_map(kernel, side.size, side.stride, device, self.draws, (side.dtype, index, *made))
        like = torch.empty_strided(side.size, side.stride, dtype=side.dtype, device="meta")
        self.stride = torch.empty_like(like).stride()  # dense: a stride of 0 has no gradient of its own
        back = (wide, None, wide, *norm, index, side.dtype)
        self.scatter = on_map(scatter_kernel, side.size, self.stride, device, self.draws, back, 0)

    def draw(self, side: Pixels, maps: Maps) -> _Pixels:
        """Pixels drawn by the seed, and their rows."""
        features, seed = side.features, side.seed
        place = features.new_empty(self.draws, dtype=torch.int64)
        label = features.new_empty(self.draws, dtype=torch.int32)
        rows = features.new_empty((self.draws, self.width))
        number = side.stream if isinstance(seed, Tensor) else seed ^ side.stream
        self.sampler(maps if self.nearest is None else self.nearest(maps), halves(number), place, label)
        if not self.normalize:
            self.gather(features, place, rows)
            return _Pixels(place, label, rows, None)
        inverse = features.new_empty(self.draws, dtype=torch.float32)
        self.gather(features, place, rows, inverse)
        return _Pixels(place, label, rows, inverse)

    def back(self, kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
        """Gradient of the map from that of its drawn rows."""
        found = upstream.new_empty_strided(self.size, self.stride, dtype=self.dtype).zero_()
        self.scatter(kept.rows, None, upstream, kept.unit, kept.inverse, kept.pixels, found)
        return found


class _Nearest:
    """The launch that brings what stands beside a map to its size, by nearest neighbour."""

    def __init__(self, size: torch.Size, wanted: torch.Size) -> None:
        self.size, pixels = wanted, math.prod(wanted)
        old, new = ((1,) * (PIXEL_AXES + 1 - len(each)) + tuple(each[1:]) for each in (size, wanted))
        self.launch = Launch(
            nearest_kernel, (cells(pixels, tiles.SAMPLE_PIXELS),), pixels, *old, *new, tiles.SAMPLE_PIXELS
        )

    def __call__(self, maps: Maps) -> Maps:
        found = [None if one is None else one.new_empty(self.size) for one in maps[:3]]
        self.launch(*maps[:3], *found)
        labels, eligible, scores = found
        return Maps(labels, eligible, scores, maps.seed)  # type: ignore[arg-type]  # labels are always there
