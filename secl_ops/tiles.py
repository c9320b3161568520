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


PURPOSES = ("scan", "value", "positive", "both")
WIDEST = 4096

_HALF: dict[str, tuple[tuple[int, Tile], ...]] = {
    "scan": (
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 3)),
        (256, Tile(64, 64, 256, 256, 4, 2)),
        (WIDEST, Tile(64, 64, 128, 128, 4, 2)),
    ),
    "value": (
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(64, 64, 256, 256, 8, 2)),
        (WIDEST, Tile(64, 64, 128, 256, 8, 2)),
    ),
    "positive": (
        (64, Tile(128, 64, 64, 64, 8, 2)),
        (128, Tile(128, 32, 128, 128, 8, 2)),
        (256, Tile(64, 32, 256, 256, 8, 2)),
        (WIDEST, Tile(64, 32, 128, 256, 8, 2)),
    ),
    "both": (
        (64, Tile(128, 32, 64, 64, 8, 3)),
        (128, Tile(128, 32, 128, 128, 8, 2)),
        (256, Tile(64, 32, 256, 256, 8, 2)),
        (WIDEST, Tile(64, 32, 128, 256, 8, 2)),
    ),
}
_FULL: dict[str, tuple[tuple[int, Tile], ...]] = {
    "scan": ((WIDEST, Tile(64, 64, 32, 32, 8, 2)),),
    "value": ((64, Tile(64, 32, 32, 64, 8, 2)), (WIDEST, Tile(64, 32, 32, 128, 8, 2))),
    "positive": ((64, Tile(64, 32, 32, 64, 8, 2)), (WIDEST, Tile(64, 32, 32, 128, 8, 2))),
    "both": ((64, Tile(64, 32, 32, 64, 8, 2)), (WIDEST, Tile(64, 32, 32, 128, 8, 2))),
}


def next_power_of_two(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def pick(width: int, dtype: torch.dtype, purpose: str) -> Tile:
    """The tile for rows of this width and dtype; a narrow row shrinks the table's columns to its own.

    Example:
        >>> pick(24, torch.bfloat16, "scan").block_d
        32
    """
    table = (_FULL if dtype == torch.float32 else _HALF)[purpose]
    tile = next((tile for widest, tile in table if width <= widest), table[-1][1])
    padded = max(16, next_power_of_two(width))  # a tensor-core product is at least 16 deep
    return tile._replace(block_d=min(tile.block_d, padded), block_out=min(tile.block_out, padded))
