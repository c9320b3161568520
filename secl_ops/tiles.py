# SPDX-License-Identifier: Apache-2.0
"""The pinned table of Triton tile sizes: no tuning at run time, so that the same call always runs the same kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The shape of one program's work."""

    block_n: int  # rows that stay
    block_m: int  # rows of the other side in flight
    block_d: int  # columns of one similarity product; below the width, the product runs in chunks
    block_out: int  # columns of the output that one program owns
    warps: int
    stages: int


SAMPLE_PIXELS = 1024  # labels that one program of the sampler reads at a time; twice as many spill 16 bytes on sm_80
SAMPLE_WHOLE = 4096  # pixels of an image that one program draws from alone: reading more costs as much as two launches
SAMPLE_LEVELS = 16  # of keys that are counted apart: the deepest holds 2^-15 of all pixels
SAMPLE_GROUPS = ((4, 256), (32, 128))  # classes of one scan, chunks of an image at most; 8 and 16 classes spill
SAMPLE_PROGRAMS = 1024  # of a pass: enough to fill a GPU, and each adds the counts of its image up
SAMPLE_SPOTS = 4096  # pixels among which a low score is looked for, to aim at
MOST_PIXELS = 1 << 28  # of one image: the sampler counts them in 32 bits
REDUCE_ROWS = 1024  # losses that the one program of a reduction adds at a time
WIDEST = 1 << 30
COPY_ROWS, COPY_COLUMNS = 16, 64  # of kernels that only move memory; 32 rows spill where duplicate pixels are summed

# (widest row served, tile) by purpose. "scan": the log-sum-exp alone; "value": with the softmax mean of the keys;
# "positive": the pass over the positives; "gradient": the pass from the saved state.
# Every row keeps kernels of that purpose free of spills on sm_80, sm_90 and sm_100, with groups and exclusions, and
# within shared memory (99 KiB on the smallest GPUs served); tests/test_triton_compile.py holds it there.
_HALF: dict[str, tuple[tuple[int, Tile], ...]] = {
    "scan": (
        (64, Tile(128, 64, 64, 64, 8, 3)),  # 128 keys in flight spill under "all": each thread holds a label per key
        (128, Tile(128, 64, 128, 128, 8, 3)),
        (256, Tile(64, 64, 256, 256, 4, 2)),  # 128 rows of 256 would take 64 KiB before any key
        (WIDEST, Tile(64, 64, 128, 128, 8, 2)),  # in chunks: a whole row of 512 no longer fits
    ),
    "value": (
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 2)),  # 250 registers on sm_80: the output takes 64, a third stage 16 KiB
        (256, Tile(64, 64, 256, 256, 8, 2)),  # 8 warps halve the output's 128 registers a thread
        (WIDEST, Tile(64, 64, 128, 256, 8, 2)),  # 256 output columns a program; wider rows repeat the similarities
    ),
    "positive": (
        (64, Tile(64, 32, 64, 64, 4, 2)),  # 128 rows spill 40 bytes on sm_100 where rows are visited by rank
        (128, Tile(64, 16, 128, 128, 4, 2)),  # 32 keys spill 24 bytes on sm_80
        (256, Tile(64, 32, 128, 256, 8, 1)),  # two stages spill 32 bytes on sm_80
        (WIDEST, Tile(64, 32, 128, 256, 8, 2)),  # one stage spills 24 bytes on sm_80
    ),
    "gradient": (
        (64, Tile(128, 32, 64, 64, 8, 3)),  # streamed anchors bring 6 numbers each: 64 of them spill on sm_100
        (128, Tile(128, 32, 128, 128, 8, 1)),  # two stages spill 8 bytes on sm_100 where rows are keys
        (256, Tile(64, 32, 128, 256, 8, 2)),  # whole rows spill 8 bytes on sm_80 in self-contrast
        (WIDEST, Tile(64, 32, 64, 256, 8, 2)),  # chunks of 128 spill 8 bytes on sm_80 in self-contrast
    ),
}
# fp16 rows meet fp32-ranged weights in tf32, which doubles their registers: half as many output columns.
_FP16: dict[str, tuple[tuple[int, Tile], ...]] = {
    "scan": _HALF["scan"],
    "value": (
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(64, 64, 256, 128, 8, 2)),
        (WIDEST, Tile(64, 32, 128, 128, 8, 2)),
    ),
    "positive": (
        (64, Tile(64, 32, 64, 64, 4, 2)),  # 128 rows spill 16 bytes on sm_100 where rows are visited by rank
        (128, Tile(64, 32, 128, 128, 8, 2)),
        (WIDEST, Tile(64, 16, 128, 128, 8, 2)),  # 32 keys spill 8 bytes on sm_80
    ),
    "gradient": (
        (64, Tile(128, 32, 64, 64, 8, 3)),
        (128, Tile(128, 32, 128, 128, 8, 2)),
        (256, Tile(64, 32, 256, 128, 8, 2)),
        (WIDEST, Tile(64, 32, 64, 128, 8, 2)),
    ),
}
# fp32 products run on the FMA units, which hold whole operand rows in registers: short chunks, few rows.
_FULL: dict[str, tuple[tuple[int, Tile], ...]] = {
    "scan": ((WIDEST, Tile(64, 64, 32, 32, 8, 2)),),
    "value": ((64, Tile(32, 32, 16, 64, 8, 2)), (WIDEST, Tile(32, 32, 32, 128, 8, 2))),  # 64 rows spill 500 bytes
    "positive": ((WIDEST, Tile(16, 32, 16, 64, 2, 1)),),  # wider outputs, two stages or more warps spill on some GPU
    "gradient": ((64, Tile(32, 16, 16, 64, 8, 2)), (WIDEST, Tile(32, 32, 32, 128, 8, 2))),
}


# Multiply-adds N * M * D of a second pass above which rows in any order are first sorted by class. Unsorted, each tile
# is visited: 4 N M D FLOP with the gradient, at about 400 TFLOP/s (half the H200's measured peak) 1e-14 s each for
# bf16 and fp16, at about 40 TFLOP/s on the FMA units 1e-13 s for fp32. Sorted, 1 / C of it stays. Two radix sorts of up
# to 2^17 ranks cost about ten launches each, 120 us in all. Two classes break even at 2.4e10 and 2.4e9: the next powers
# of two. An estimate: `python -m benchmarks tune` measures both sides of it. Launch-bound problems stay far below.
_SORTED_WORK = {torch.float32: 1 << 32}
_SORTED_WORK_HALF = 1 << 35


def sorts(rows: int, columns: int, width: int, dtype: torch.dtype) -> bool:
    """Whether sorting both sides pays for itself in the pass over the positives, decided by sizes alone.

    Example:
        >>> sorts(65536, 65536, 128, torch.bfloat16), sorts(8192, 8192, 256, torch.bfloat16)
        (True, False)
    """
    return rows * columns * width >= _SORTED_WORK.get(dtype, _SORTED_WORK_HALF)


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


def pick(width: int, dtype: torch.dtype, purpose: str) -> Tile:
    """The tile for rows of this width and dtype; a narrow row shrinks the table's columns to its own.

    Example:
        >>> pick(24, torch.bfloat16, "scan").block_d
        32
    """
    table = {torch.float32: _FULL, torch.float16: _FP16}.get(dtype, _HALF)[purpose]
    tile = next(tile for widest, tile in table if width <= widest)
    return fitted(tile, width)


def fitted(tile: Tile, width: int) -> Tile:
    """The tile with no more columns than a row of this width has.

    Example:
        >>> fitted(Tile(64, 64, 128, 128, 8, 2), 24)[2:4]
        (32, 32)
    """
    padded = max(16, next_power_of_two(width))  # a tensor-core product is at least 16 deep
    return tile._replace(block_d=min(tile.block_d, padded), block_out=min(tile.block_out, padded))
