# SPDX-License-Identifier: Apache-2.0
"""The operations on rows and maps by Triton kernels: outputs allocated, maps brought to three axes, grids launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import reference
from secl_ops.engines.reference import Origin
from secl_ops.engines.triton import pixels
from secl_ops.engines.triton.grids import cells, copy_width, on
from secl_ops.engines.triton.rows import unit_rows_backward_kernel, unit_rows_kernel

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
