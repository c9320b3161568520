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
from secl_ops.engines.triton.few import few_draws_kernel, few_merge_kernel, few_sums_kernel, few_value_kernel
from secl_ops.engines.triton.few_gradient import few_gradient_kernel, few_reduce_kernel
from secl_ops.engines.triton.gradient import sum_parts_kernel
from secl_ops.engines.triton.grids import PIXEL_AXES, Launch, cells, kinds, multiprocessors, on
from secl_ops.engines.triton.launch import BOUNDED_SCALE, LOG2E
from secl_ops.engines.triton.launch_rows import on_map, on_rows
from secl_ops.engines.triton.launch_sample import Maps, Request, halves, sampler
from secl_ops.engines.triton.pixels import gather_kernel, gather_unit_kernel, nearest_kernel, scatter_kernel
from secl_ops.engines.triton.rows import unit_rows_backward_kernel, unit_rows_kernel
from secl_ops.small_call import Back, Found, Kept, Pixels, Wanted
from secl_ops.spec import ContrastSpec, SampleSpec
from secl_ops.tiles import Tile


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

    @property
    def shared(self) -> bool:
        """Whether the anchors are the keys."""
        return self.keys is None

    @property
    def sides(self) -> tuple[int, int]:
        """Anchors and keys."""
        return self.rows, self.rows if self.keys is None else self.keys


class _Values:
    """The launches that find the state [4, N] of the anchors: one, or a few where the keys are cut into parts."""

    def __init__(self, request: ContrastRequest) -> None:
        count, others = request.sides
        tile, negatives, shared = tiles.pick_few(request.width), request.denominator == "negatives", request.shared
        blocks, options = _blocks(tile), _options(tile)
        bounded, scale2 = request.unit and request.scale <= BOUNDED_SCALE, request.scale * LOG2E
        rows, numbers = cells(count, tile.block_n), (count, others, scale2)
        rules = (request.width, shared, negatives, request.clean, bounded)
        self.parts = tiles.few_parts(rows, cells(others, tile.block_m), multiprocessors(request.device))
        self.size = (5, self.parts, count)
        if self.parts == 1:
            self.whole = Launch(few_value_kernel, (rows,), *numbers, *rules, *blocks, **options)
            return
        grid = (rows, self.parts)
        self.sums = Launch(few_sums_kernel, grid, *numbers, *rules, *blocks, **options)
        draws = (request.width, shared, request.clean, *blocks)
        self.draws = Launch(few_draws_kernel, grid, *numbers, *draws, **options) if negatives else None
        merged = (cells(count, tiles.MERGED_ANCHORS),)
        self.merge = Launch(few_merge_kernel, merged, count, self.parts, negatives, tiles.MERGED_ANCHORS)

    def __call__(self, state: Tensor, *given: Tensor | None) -> None:
        """Write the state of anchors and keys with their names."""
        if self.parts == 1:
            self.whole(*given, state)
            return
        parts = state.new_empty(self.size)
        self.sums(*given, parts)
        if self.draws is not None:
            self.draws(*given, parts)
        self.merge(parts, state)


class _Gradient:
    """The launches that find the gradient of one side's rows: one, or two where the other side is cut into parts."""

    def __init__(self, request: ContrastRequest, *, anchors: bool, keys: bool) -> None:
        count, others = request.sides if anchors else request.sides[::-1]
        tile, width, scale = tiles.pick_few(request.width), request.width, request.scale
        rules = (width, request.shared, request.denominator == "negatives", request.clean, request.reduction == "mean")
        rows, columns = cells(count, tile.block_n), cells(width, tile.block_out)
        self.parts = tiles.few_parts(rows * columns, cells(others, tile.block_m), multiprocessors(request.device))
        self.find = Launch(
            few_gradient_kernel, (rows, columns, self.parts), count, others, scale, scale * LOG2E, *rules,
            anchors, keys, *_blocks(tile), tile.block_out, tiles.REDUCE_ROWS, **_options(tile),
        )  # fmt: skip
        merge = tiles.MERGE_TILE
        grid = (cells(count, merge.block_n), cells(width, merge.block_out))
        self.add = Launch(sum_parts_kernel, grid, count, self.parts, width, merge.block_n, merge.block_out)

    def __call__(self, rows: Tensor, *given: Tensor | None) -> Tensor:
        """The gradient of these rows, from the other side, the names of both, the state, weights and the value."""
        found = torch.empty_like(rows, dtype=torch.float32)
        if self.parts == 1:
            self.find(rows, *given, found)
            return found
        parts = found.new_empty((self.parts, *found.shape))
        self.find(rows, *given, parts)
        self.add(parts, None, found)
        return found


def _blocks(tile: Tile) -> tuple[int, int, int]:
    return tile.block_n, tile.block_m, tile.block_d


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tiles.MOST_REGISTERS}


class Contrast:
    """The launches of the contrast of few rows."""

    def __init__(self, request: ContrastRequest) -> None:
        self.size = (4, request.rows)
        self.find = _Values(request)
        self.of_anchors = _Gradient(request, anchors=True, keys=request.shared)
        self.of_keys = _Gradient(request, anchors=False, keys=True)
        mean = request.reduction == "mean"
        self.reduce = Launch(few_reduce_kernel, (1,), request.rows, mean, tiles.REDUCE_ROWS, num_warps=8)

    def __call__(self, anchors: Tensor, keys: Tensor, beside: Beside, wanted: Wanted) -> Contrasted:
        """The loss of unit rows, or of rows as they are, and the gradients that are wanted."""
        labels, key_labels, groups, key_groups, exclude, weights = beside
        state = anchors.new_empty(self.size, dtype=torch.float32)
        value, of_anchors, of_keys = anchors.new_empty((), dtype=torch.float32), None, None
        self.find(state, anchors, keys, labels, key_labels, groups, key_groups, exclude)
        if wanted.anchors:
            names = (labels, key_labels, groups, key_groups)
            of_anchors = self.of_anchors(anchors, keys, *names, exclude, state, weights, value)
        if wanted.keys:
            names = (key_labels, labels, key_groups, groups)
            of_keys = self.of_keys(keys, anchors, *names, exclude, state, weights, value)
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
