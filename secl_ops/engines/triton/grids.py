# SPDX-License-Identifier: Apache-2.0
"""What every launch needs: the tensor's device made current, and the number of programs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from secl_ops import tiles
from secl_ops.tiles import Tile


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class Card(NamedTuple):
    """What of a GPU decides on tiles and parts."""

    capability: int  # 90 is compute capability 9.0
    multiprocessors: int


INTERPRETED = Card(90, 1)  # where the kernels are interpreted


@functools.cache
def _card(index: int | None) -> Card:
    found = torch.cuda.get_device_properties(index)
    return Card(10 * found.major + found.minor, found.multi_processor_count)


def card(tensor: Tensor) -> Card:
    """The GPU that this tensor lies on."""
    return _card(tensor.device.index) if tensor.is_cuda else INTERPRETED


_SMALLER: dict[tuple[str, Tile], Tile] = {}
"""Kernels and tiles that did not fit on this GPU, and what served instead."""


def launch(
    kernel: Any, tile: Tile, grid: Callable[[Tile], tuple[int, ...]], *arguments: object, **options: object
) -> None:  # fmt: skip
    """Launch with this tile; on a GPU that has no room for it with the next smaller one, said once."""
    name, refusal = kernel.fn.__name__, ""
    start = _SMALLER.get((name, tile), tile)
    for each in (start, *tiles.smaller(start)):
        try:
            kernel[grid(each)](*arguments, **options, **each.options())
        except OutOfResources as error:
            refusal = str(error)
            continue
        if refusal:
            _SMALLER[name, tile] = each
            warnings.warn(f"{name}: {refusal} It runs with a smaller tile from now on: {each}", stacklevel=2)
        return
    raise RuntimeError(f"{name}: no tile is small enough for this GPU: {refusal}")


def cells(count: int, block: int) -> int:
    """Blocks of this size that cover `count`."""
    return -(-count // block)


def copy_width(width: int) -> int:
    """Columns that a kernel which only moves memory takes at once."""
    return min(tiles.COPY_COLUMNS, max(16, tiles.next_power_of_two(width)))
