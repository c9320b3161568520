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
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return HERE
    return torch.cuda.device(tensor.device)


HERE = nullcontext()
PIXEL_AXES = 3  # that the kernels know; a map of fewer has some of one pixel


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


def multiprocessors(device: torch.device) -> int:
    """Of this GPU."""
    return (_card(device.index) if device.type == "cuda" else INTERPRETED).multiprocessors


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


class Launch:
    """One kernel on one grid, whose last arguments, numbers and switches, are those of every call.

    What Triton compiles at the first call is kept and started without its looking through the arguments again. So each
    call gives tensors of the dtypes of the first, absent where they were, on one device and at multiples of 16 bytes;
    numbers before the last arguments are such that the kernel does not specialise on.
    """

    __slots__ = ("grid", "kernel", "options", "start", "tail")

    def __init__(self, kernel: Any, grid: tuple[int, ...], *tail: object, **options: int) -> None:
        self.kernel, self.grid, self.tail, self.options = kernel, (*grid, 1, 1)[:3], tail, options
        self.start: Callable[..., None] | None = None

    def __call__(self, *given: Tensor | int | None) -> None:
        """Launch."""
        if self.start is not None:
            self.start(*given, *self.tail)
            return
        compiled = self._ask(given)
        if compiled is not None:  # the interpreter compiles nothing
            self.start = compiled[self.grid]

    def anywhere(self, *given: Tensor | int | None) -> None:
        """Launch on memory that may lie at any address: where it is no multiple of 16 Triton is asked again."""
        if any(isinstance(one, Tensor) and not is_aligned(one) for one in given):
            self._ask(given)
        else:
            self(*given)

    def _ask(self, given: tuple[Tensor | int | None, ...]) -> Any:
        return self.kernel[self.grid](*given, *self.tail, **self.options)


def is_aligned(tensor: Tensor) -> bool:
    """Whether it lies where Triton may read 16 bytes at once."""
    return tensor.data_ptr() & 15 == 0


def laid_out(tensor: Tensor | None) -> Tensor | None:
    """The tensor as a launch reads it, contiguous and at a multiple of 16 bytes; a copy where it is neither."""
    if tensor is None:
        return None
    dense = tensor.contiguous()
    return dense if is_aligned(dense) else dense.clone()


def kinds(*tensors: Tensor | None) -> tuple[torch.dtype | None, ...]:
    """What a kernel is compiled for, of its tensors."""
    return tuple(None if tensor is None else tensor.dtype for tensor in tensors)


def cells(count: int, block: int) -> int:
    """Blocks of this size that cover `count`."""
    return -(-count // block)


def copy_width(width: int) -> int:
    """Columns that a kernel which only moves memory takes at once."""
    return min(tiles.COPY_COLUMNS, max(16, tiles.next_power_of_two(width)))


def widths_of(rows: Tensor, width: int) -> dict[str, int]:
    """Width of arranged rows, and of those that they were arranged from."""
    return {"WIDTH": rows.shape[1], "OUT": width}


def grid_of(count: int, columns: int, parts: int = 1) -> Callable[[Tile], tuple[int, int, int]]:
    """Programs over rows, columns of the output (0: there is none) and parts of the other side."""
    return lambda tile: (cells(count, tile.block_n), max(1, cells(columns, tile.block_out)), parts)


def pick(rows: Tensor, width: int, purpose: str, count: int, others: int) -> Tile:
    """The tile for arranged rows on the card where they lie; half of one where these, or the others, are few."""
    here = card(rows)
    return tiles.shrunk(tiles.pick(width, rows.dtype, purpose, here.capability), count, others, here.multiprocessors)


def parts_of(rows: Tensor, tile: Tile, count: int, columns: int, others: int) -> int:
    """Into how many parts the other side is cut to fill the card."""
    programs = cells(count, tile.block_n) * max(1, cells(columns, tile.block_out))
    return tiles.parts(programs, cells(others, tile.block_m), card(rows).multiprocessors)
