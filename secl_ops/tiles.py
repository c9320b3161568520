# SPDX-License-Identifier: Apache-2.0
"""The pinned table of Triton tile sizes: no tuning at run time, so that the same call always runs the same kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from math import gcd
from typing import NamedTuple

import torch

from secl_ops.sigmoid_tiles import ANCHORS, KEYS, LOSS
from secl_ops.tile_table import TABLE, Widths
from secl_ops.weighted_tiles import WEIGHTED


class Tile(NamedTuple):
    """The shape of one program's work."""

    block_n: int  # rows that stay
    block_m: int  # rows of the other side in flight
    block_d: int  # columns of one similarity product; below the width, the product runs in chunks
    block_out: int  # columns of the output that one program owns
    warps: int
    stages: int

    def blocks(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        sides = {"BLOCK_N": self.block_n, "BLOCK_M": self.block_m}
        return {**sides, "BLOCK_D": self.block_d, "BLOCK_OUT": self.block_out}

    def options(self) -> dict[str, int]:
        """What a kernel is launched with."""
        return {**self.blocks(), "num_warps": self.warps, "num_stages": self.stages}


FP32_PRODUCTS = ("tf32x3", "exact")


def fp32_products(wanted: str) -> str:
    """How fp32 rows are multiplied on a GPU: in three products of tf32, 22 binary digits, or exactly and far slower.

    Raises:
        ValueError: It is neither.

    Example:
        >>> fp32_products("exact")
        'exact'
    """
    if wanted not in FP32_PRODUCTS:
        raise ValueError(f"SECL_FP32 must be {' or '.join(FP32_PRODUCTS)}; got {wanted!r}; unset it for the former")
    return wanted


EXACT_FP32 = fp32_products(os.environ.get("SECL_FP32", "tf32x3")) == "exact"  # once: kernels are compiled for it
SAMPLE_PIXELS = 1024  # labels that one program of the sampler reads at a time; twice as many spill 16 bytes on sm_80
SAMPLE_WHOLE = 4096  # pixels of an image that one program draws from alone: reading more costs as much as two launches
SAMPLE_LEVELS = 16  # of keys that are counted apart: the deepest holds 2^-15 of all pixels
SAMPLE_GROUPS = ((4, 256), (32, 128))  # classes of one scan, chunks of an image at most; 8 and 16 classes spill
SAMPLE_PROGRAMS = 1024  # of a pass: enough to fill a GPU, and each adds the counts of its image up
SAMPLE_SPOTS = 4096  # pixels among which a low score is looked for, to aim at
MOST_PIXELS = 1 << 28  # of one image: the sampler counts them in 32 bits
REDUCE_ROWS = 1024  # losses that the one program of a reduction adds at a time
WIDEST = 1 << 30
MOST_UNROLLED = 4  # chunks of a similarity; of more, a loop runs, and no copy is in flight from one tile to the next
MOST_ROWS = 128  # of a tile of either side: arranged rows come in multiples of it
SUM_ROWS = 64  # whose sum is kept when rows are arranged
WEIGHED_ROWS = 32  # whose positives one program weighs: 96 registers; 64 rows take 218, 128 spill
LIVE_BATCH = 64  # tiles whose mark, whether an anchor of theirs counts, is read at once
ORDER_ROWS, ORDER_OTHERS = 32, 64  # of one program that orders by counting, and how many it compares them with at once
_MOST_COUNTED = 1 << 27  # comparisons, about 15 us on an H200; sorting takes some thirty launches
MOST_PARTS = 64  # that the other side is cut into: each leaves a partial result
COPY_ROWS, COPY_COLUMNS = 16, 64  # of kernels that only move memory; 32 rows spill where duplicate pixels are summed

_DTYPES = {torch.float32: "fp32", torch.float16: "fp16"}


def family(capability: int) -> str:
    """GPUs that multiply alike and have as much shared memory for a program; 90 is compute capability 9.0.

    Example:
        >>> family(80), family(89), family(90), family(103), family(120)
        ('ampere', 'small', 'hopper', 'blackwell', 'small')
    """
    if capability in (80, 87):
        return "ampere"
    if capability < 90 or capability >= 120:
        return "small"
    return "hopper" if capability < 100 else "blackwell"


# Multiply-adds N * M * D of a second pass above which the native CUDA path sorts rows by class first. Unsorted, each
# tile is visited: 4 N M D FLOP with the gradient, at about 400 TFLOP/s (half the H200's measured peak) 1e-14 s each.
# Sorted, 1 / C of it stays. Two radix sorts of up to 2^17 ranks cost about ten launches each, 120 us in all. Two
# classes break even at 2.4e10: the next power of two. An estimate: launch-bound problems stay far below.
_SORTED_WORK = {torch.float32: 1 << 32}
_SORTED_WORK_HALF = 1 << 35


def sorts(rows: int, columns: int, width: int, dtype: torch.dtype) -> bool:
    """Whether sorting both sides pays for itself in the pass over the positives, decided by sizes alone.

    Example:
        >>> sorts(65536, 65536, 128, torch.bfloat16), sorts(8192, 8192, 256, torch.bfloat16)
        (True, False)
    """
    return rows * columns * width >= _SORTED_WORK.get(dtype, _SORTED_WORK_HALF)


MOST_REGISTERS = 255  # of a thread: left to itself the assembler spills 8 bytes to stay at 128
FEW_ROWS = 2048  # of either side whose contrast is a launch or two: one program streams all rows of the other side
MERGED_ANCHORS = 128  # of a program that merges what parts of the keys add to few anchors
MERGE_TILE = Tile(16, 16, 64, 64, 4, 1)  # of the kernels that add parts up


def counts(rows: int, others: int) -> bool:
    """Whether comparing every row with every other is the quicker way to order both sides.

    Example:
        >>> counts(4096, 4096), counts(65536, 65536)
        (True, False)
    """
    return (rows + others) ** 2 <= _MOST_COUNTED


def met_places(rows: int, others: int | None, zoned: bool) -> int:
    """Integers that the order of two sides takes, and where each row of the first meets the second, by place.

    Args:
        rows: Of the first side.
        others: Of the second; None: they are the same.
        zoned: Whether rows of the first exclude some of the second.

    Example:
        >>> met_places(5, None, False), met_places(4, 8, True)
        (28, 36)
    """
    return whole(rows) + whole(4 * rows) + (0 if others is None else whole(others)) + (2 * rows if zoned else 0)


def whole(places: int) -> int:
    """Up to the next address that is a multiple of 16 bytes, of four."""
    return -(-places // 4) * 4


@cache
def parts(programs: int, tiles_of_other: int, multiprocessors: int) -> int:
    """Into how many parts the other side is cut: two programs or more for each multiprocessor, the last round full.

    Example:
        >>> parts(32, 32, 132), parts(512, 512, 132), parts(15, 15, 132)
        (12, 1, 15)
    """
    least = -(-2 * multiprocessors // max(programs, 1))
    most = min(tiles_of_other, MOST_PARTS)
    if least == 1 or least >= most:
        return max(1, min(least, most))
    rounds = {cut: -(-cut * programs // multiprocessors) / cut for cut in range(least, min(2 * least, most) + 1)}
    return min(rounds, key=rounds.__getitem__)


@cache
def shrunk(tile: Tile, rows: int, others: int, multiprocessors: int) -> Tile:
    """The tile, or half of it on either side with half the warps where whole ones would leave the GPU idle.

    Example:
        >>> whole = Tile(128, 128, 64, 64, 8, 3)
        >>> shrunk(whole, 912, 912, 132)[:2], shrunk(whole, 4096, 4096, 132)[:2]
        ((64, 64), (128, 128))
    """
    if -(-rows // tile.block_n) * -(-others // tile.block_m) >= 4 * multiprocessors or tile.block_n < 128:
        return tile
    warps = max(4, tile.warps // 2)
    return tile._replace(block_n=tile.block_n // 2, block_m=max(32, tile.block_m // 2), warps=warps)


def smaller(tile: Tile) -> Iterator[Tile]:
    """Tiles that need less and less of a GPU: fewer copies in flight, then fewer rows of either side.

    Example:
        >>> [each[:2] + each[5:] for each in smaller(Tile(64, 32, 64, 64, 4, 2))]
        [(64, 32, 1), (64, 16, 1), (32, 16, 1), (16, 16, 1)]
    """
    while True:
        if tile.stages > 1:
            tile = tile._replace(stages=tile.stages - 1)
        elif tile.block_m > 16:
            tile = tile._replace(block_m=tile.block_m // 2)
        elif tile.block_n > 16:
            tile = tile._replace(block_n=tile.block_n // 2)
        else:
            return
        yield tile


def padded_width(width: int) -> int:
    """The width of arranged rows: a power of two, above 256 a multiple of it.

    Example:
        >>> padded_width(33), padded_width(300)
        (64, 512)
    """
    return max(16, next_power_of_two(width)) if width <= 256 else -(-width // 256) * 256


def next_power_of_two(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def pick_rows(width: int) -> tuple[int, int]:
    """Rows and columns of one program of a kernel that holds whole rows: many programs, a row read from memory once.

    Example:
        >>> pick_rows(512)
        (4, 512)
    """
    columns = min(512, max(16, next_power_of_two(width)))
    return max(4, min(8, 2048 // columns)), columns


def pick_few(width: int) -> Tile:
    """The tile of the kernels of few rows, on every GPU and in every dtype: larger ones spill.

    Example:
        >>> pick_few(24)
        Tile(block_n=16, block_m=32, block_d=32, block_out=32, warps=4, stages=3)
    """
    return fitted(Tile(16, 32, 64, 64 if width <= 256 else 32, 4, 3), width)


def few_parts(programs: int, tiles_of_other: int, multiprocessors: int) -> int:
    """The same of few rows: a part of less than four tiles is not worth the launch that merges it.

    Example:
        >>> few_parts(57, 29, 132), few_parts(16, 17, 132), few_parts(4, 4, 132)
        (7, 4, 1)
    """
    return min(parts(programs, tiles_of_other, multiprocessors), max(1, tiles_of_other // 4))


@cache
def pick(width: int, dtype: torch.dtype, purpose: str, capability: int = 90) -> Tile:
    """The tile for rows of this width and dtype on such a GPU; a narrow row shrinks the table's columns to its own.

    Purposes: "scan", the log-sum-exp alone; "value", with the softmax mean of the keys; "positive" and "classes", what
    is left of the forward pass; "gradient", the pass from the saved state; "..._running", without a known bound;
    "sigmoid", loss and gradient of anchors; "sigmoid_keys" and "sigmoid_loss", one of the two. "..._weighted" is the
    same of weighted keys.

    Example:
        >>> pick(24, torch.bfloat16, "scan").block_d
        32
    """
    rows = _rows(family(capability), _DTYPES.get(dtype, "bf16"), purpose)
    chosen = next((tile for widest, tile in rows if width <= widest), rows[-1][1])
    return fitted(Tile(*chosen), width)


def _rows(chips: str, kind: str, purpose: str) -> Widths:
    """Tiles of one purpose, by the widest row that each serves."""
    if purpose.endswith("_weighted"):
        usual = purpose.removesuffix("_weighted")
        rows = _rows(chips, kind, usual)
        return tuple((widest, WEIGHTED.get((chips, kind, usual, widest), tile)) for widest, tile in rows)
    if not purpose.startswith("sigmoid"):
        return TABLE[chips][kind][purpose]
    if purpose == "sigmoid_loss":
        return LOSS.get((chips, kind), ANCHORS[chips][kind])
    if purpose == "sigmoid":
        return ANCHORS[chips][kind]
    # The gradient of keys multiplies, sums and holds as much as that of a contrast.
    rows = TABLE[chips][kind]["gradient_running"]
    return tuple((widest, KEYS.get((chips, kind, widest), tile)) for widest, tile in rows)


def fitted(tile: Tile, width: int) -> Tile:
    """The tile with no more columns than an arranged row of this width has, and such that they divide it.

    Example:
        >>> fitted(Tile(64, 64, 128, 128, 8, 2), 24)[2:4], fitted(Tile(64, 64, 128, 512, 8, 2), 768)[2:4]
        ((32, 32), (128, 256))
    """
    padded = padded_width(width)
    return tile._replace(block_d=gcd(tile.block_d, padded), block_out=gcd(tile.block_out, padded))
