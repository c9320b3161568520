# SPDX-License-Identifier: Apache-2.0
"""The operations on rows and maps by Triton kernels: outputs allocated, maps brought to three axes, grids launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import reference
from secl_ops.engines.reference import Origin
from secl_ops.engines.triton import pixels as pixel_kernels
from secl_ops.engines.triton.grids import PIXEL_AXES, Launch, cells, copy_width, kinds, on
from secl_ops.engines.triton.rows import unit_rows_backward_kernel, unit_rows_kernel


def unit_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, D] over their norms, and 1 / norm [n]; a zero row and an ignored row give zeros."""
    unit = rows.new_empty(rows.shape)
    return unit, _normalize(rows, labels, unit)


def row_inverse(rows: Tensor, labels: Tensor) -> Tensor:
    """1 / norm [n] of rows [n, D]; 0 for a zero row and an ignored row."""
    return _normalize(rows, labels, None)


def _normalize(rows: Tensor, labels: Tensor, unit: Tensor | None) -> Tensor:
    inverse = rows.new_empty(rows.shape[0], dtype=torch.float32)
    if inverse.numel():
        given = (rows, labels.contiguous(), unit, inverse)
        with on(rows):
            on_rows(unit_rows_kernel, rows.shape, rows.stride(), rows.device, kinds(*given)).anywhere(*given)
    return inverse


def unit_rows_backward(
    grad: Tensor, factors: tuple[Tensor, Tensor] | None, unit: Tensor, inverse: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """(g - u <u, g>) / norm for each row g of the scaled gradient; by default in the dtype of `unit`."""
    unit = unit.contiguous()
    result = torch.empty_like(unit, dtype=dtype)
    factor, upstream = (None, None) if factors is None else factors
    stride = 0 if upstream is None or not upstream.ndim else upstream.stride(0)
    given = (grad, factor, upstream, unit, inverse.contiguous(), result)
    if unit.shape[0]:
        with on(unit):
            strides = (*grad.stride(), stride)
            on_rows(unit_rows_backward_kernel, unit.shape, strides, unit.device, kinds(*given)).anywhere(*given)
    return result


@lru_cache(1024)
def on_rows(
    kernel: Any, size: torch.Size, strides: tuple[int, ...], device: torch.device,
    dtypes: tuple[torch.dtype | None, ...],
) -> Launch:  # fmt: skip
    """A kernel on rows [n, D] of these strides."""
    count, width = size
    return Launch(kernel, (cells(count, tiles.COPY_ROWS),), count, *strides, width, tiles.COPY_ROWS, copy_width(width))


def _map_layout(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Spatial sizes and the strides of image, channel and the three spatial axes of a map [B, D, *spatial]."""
    missing = PIXEL_AXES - (len(size) - 2)
    spatial = (1,) * missing + tuple(size[2:])
    strides = (0,) * missing + tuple(stride[2:])
    return (*spatial, stride[0], stride[1], *strides)


@lru_cache(1024)
def on_map(
    kernel: Any, size: torch.Size, stride: tuple[int, ...], device: torch.device, count: int,
    dtypes: tuple[torch.dtype | None, ...], *before: int,
) -> Launch:  # fmt: skip
    """A kernel on `count` pixels of a map of this layout; what moves whole rows has one column of programs."""
    width, pixels = size[1], math.prod(size) // size[1]
    whole = kernel in (pixel_kernels.gather_unit_kernel, pixel_kernels.scatter_kernel)
    rows, columns = tiles.pick_rows(width) if whole else (tiles.COPY_ROWS, copy_width(width))
    grid = (cells(count, rows), 1 if whole else cells(width, columns))
    return Launch(kernel, grid, *before, count, pixels, *_map_layout(size, stride), width, rows, columns)


def _on(kernel: Any, features: Tensor, count: int, given: Sequence[Tensor | None], *before: int) -> None:
    layout = (features.shape, features.stride(), features.device)
    with on(features):
        on_map(kernel, *layout, count, kinds(*given), *before).anywhere(*given)


def gather(features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [n, D] of a map [B, D, *spatial] at index [n] into B * prod(spatial), and 1 / norm where normalised."""
    count, width = index.shape[0], features.shape[1]
    rows = features.new_empty((count, width), dtype=dtype)
    inverse = features.new_empty(count if normalize else 0, dtype=torch.float32)
    if features.numel() == 0:
        return rows.zero_(), inverse.zero_()
    if count and normalize:
        _on(pixel_kernels.gather_unit_kernel, features, count, (features, index.contiguous(), rows, inverse))
    elif count:
        _on(pixel_kernels.gather_kernel, features, count, (features, index.contiguous(), rows))
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
    count = grad.shape[0]
    if not result.numel() or not count:
        return result
    factor, upstream = (None, None) if factors is None else factors
    unit, inverse = (None, None) if norm is None else norm
    if unique:
        stride = 0 if upstream is None or not upstream.ndim else upstream.stride(0)
        given = (grad.contiguous(), factor, upstream, unit, inverse, index.contiguous(), result)
        _on(pixel_kernels.scatter_kernel, result, count, given, stride)
        return result
    if norm is None:
        grad = reference.scaled(grad, factors)
    else:
        grad = unit_rows_backward(grad, factors, *norm, dtype=torch.float32)
    ordered, order = torch.sort(index, stable=True)
    _on(pixel_kernels.gather_backward_kernel, result, count, (grad.contiguous(), ordered, order, result))
    return result
