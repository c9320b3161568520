# SPDX-License-Identifier: Apache-2.0
"""The operations on rows and maps by Triton kernels: outputs allocated, maps brought to three axes, grids launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import reference
from secl_ops.engines.draws import CELLS_PER_AXIS
from secl_ops.engines.reference import Origin
from secl_ops.engines.triton import pixels
from secl_ops.engines.triton.grids import cells, copy_width, on
from secl_ops.engines.triton.rows import unit_rows_backward_kernel, unit_rows_kernel
from secl_ops.engines.triton.sampling import sample_kernel

PIXEL_AXES = 3


def unit_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, D] over their norms, and 1 / norm [n]; a zero row and an ignored row give zeros."""
    unit = rows.new_empty(rows.shape)
    return unit, _normalize(rows, labels, unit)


def row_inverse(rows: Tensor, labels: Tensor) -> Tensor:
    """1 / norm [n] of rows [n, D]; 0 for a zero row and an ignored row."""
    return _normalize(rows, labels, None)


def _normalize(rows: Tensor, labels: Tensor, unit: Tensor | None) -> Tensor:
    count, width = rows.shape
    inverse = rows.new_empty(count, dtype=torch.float32)
    if count:
        with on(rows):
            unit_rows_kernel[(cells(count, tiles.COPY_ROWS),)](
                rows, labels.contiguous(), unit, inverse, count, *rows.stride(),
                WIDTH=width, BLOCK_N=tiles.COPY_ROWS, BLOCK_D=copy_width(width),
            )  # fmt: skip
    return inverse


def unit_rows_backward(
    grad: Tensor, factors: tuple[Tensor, Tensor] | None, unit: Tensor, inverse: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """(g - u <u, g>) / norm for each row g of the scaled gradient; by default in the dtype of `unit`."""
    count, width = unit.shape
    unit = unit.contiguous()
    result = torch.empty_like(unit, dtype=dtype)
    factor, upstream = (None, None) if factors is None else factors
    if count:
        with on(unit):
            unit_rows_backward_kernel[(cells(count, tiles.COPY_ROWS),)](
                grad, factor, upstream, unit, inverse.contiguous(), result,
                count, *grad.stride(), 0 if upstream is None else upstream.stride(0),
                WIDTH=width, BLOCK_N=tiles.COPY_ROWS, BLOCK_D=copy_width(width),
            )  # fmt: skip
    return result


def _map_layout(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Spatial sizes and the strides of image, channel and the three spatial axes of a map [B, D, *spatial]."""
    missing = PIXEL_AXES - (len(size) - 2)
    spatial = (1,) * missing + tuple(size[2:])
    strides = (0,) * missing + tuple(stride[2:])
    return (*spatial, stride[0], stride[1], *strides)


def _launch(kernel: Any, arguments: Sequence[object], features: Tensor, count: int, tile: tuple[int, int]) -> None:
    """A grid over `count` rows; with one column of programs each holds the whole row."""
    width = features.shape[1]
    columns = 1 if kernel in (pixels.gather_unit_kernel, pixels.scatter_kernel) else cells(width, tile[1])
    with on(features):
        kernel[(cells(count, tile[0]), columns)](
            *arguments, count, features.numel() // width, *_map_layout(features.shape, features.stride()),
            WIDTH=width, BLOCK_N=tile[0], BLOCK_D=tile[1],
        )  # fmt: skip


def gather(features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [n, D] of a map [B, D, *spatial] at index [n] into B * prod(spatial), and 1 / norm where normalised."""
    count, width = index.shape[0], features.shape[1]
    rows = features.new_empty((count, width), dtype=dtype)
    inverse = features.new_empty(count if normalize else 0, dtype=torch.float32)
    if features.numel() == 0:
        return rows.zero_(), inverse.zero_()
    if count and normalize:
        tile = tiles.pick_rows(width)
        _launch(pixels.gather_unit_kernel, (features, index.contiguous(), rows, inverse), features, count, tile)
    elif count:
        tile = (tiles.COPY_ROWS, copy_width(width))
        _launch(pixels.gather_kernel, (features, index.contiguous(), rows), features, count, tile)
    return rows, inverse


def gather_backward(
    grad: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    index: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    unique: bool,
    like: Origin,
) -> Tensor:
    """Gradient of the map from that of its rows, through their norm where there is one; a pixel's draws are summed."""
    result = grad.new_empty_strided(list(like.size), list(like.stride), dtype=like.dtype).zero_()
    count, width = grad.shape
    if not result.numel() or not count:
        return result
    factor, upstream = (None, None) if factors is None else factors
    unit, inverse = (None, None) if norm is None else norm
    if unique:
        stride = 0 if upstream is None else upstream.stride(0)
        given = (grad.contiguous(), factor, upstream, unit, inverse, index.contiguous(), result, stride)
        _launch(pixels.scatter_kernel, given, result, count, tiles.pick_rows(width))
        return result
    if norm is None:
        grad = reference.scaled(grad, factors)
    else:
        grad = unit_rows_backward(grad, factors, *norm, dtype=torch.float32)
    ordered, order = torch.sort(index, stable=True)
    tile = (tiles.COPY_ROWS, copy_width(width))
    _launch(pixels.gather_backward_kernel, (grad.contiguous(), ordered, order, result), result, count, tile)
    return result


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
    if labels.numel() == 0:
        return index.fill_(-1), label.fill_(-1)
    if math.prod(spatial) > tiles.MOST_PIXELS:
        raise ValueError(f"labels must have at most {tiles.MOST_PIXELS} pixels an image; got {math.prod(spatial)}")
    missing = (1,) * (PIXEL_AXES - len(spatial))
    axis_cells = (CELLS_PER_AXIS if strategy == "stratified" else 1,) * len(spatial)
    maps = (None if value is None else value.contiguous() for value in (labels, eligible, scores))
    grid = (images * num_classes, math.prod(axis_cells))
    with on(labels):
        sample_kernel[grid](
            *maps, seed.contiguous(), index, label,
            per_class, ignore_index, stream, images, *missing, *spatial,
            HARD=strategy == "hard" and scores is not None,
            **dict(zip(("CELLS_Z", "CELLS_Y", "CELLS_X"), (*missing, *axis_cells), strict=True)),
            BLOCK=tiles.SAMPLE_PIXELS, num_warps=8,
        )  # fmt: skip
    return index, label
