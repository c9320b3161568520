# SPDX-License-Identifier: Apache-2.0
"""The tiles around those of `secl_ops/tile_table.py`, which `python -m benchmarks tune` times beside them."""

from __future__ import annotations

import torch

from secl_ops import tiles
from secl_ops.tiles import Tile

# Rows and keys first: they decide how often a key crosses from L2 and how many programs there are.
_STEPS = (
    ("block_n", 2.0), ("block_n", 0.5), ("block_m", 2.0), ("block_m", 0.5), ("warps", 2.0), ("warps", 0.5),
    ("stages", 1.0), ("stages", -1.0), ("block_d", 2.0), ("block_d", 0.5), ("block_out", 2.0), ("block_out", 0.5),
)  # fmt: skip
_LIMITS = {
    "block_n": (16, 256), "block_m": (16, 128), "block_d": (16, 256), "block_out": (16, 512), "warps": (4, 8),
    "stages": (1, 4),
}  # fmt: skip


def candidates(width: int, dtype: torch.dtype, purpose: str, capability: int = 90) -> list[Tile]:
    """The table's tile, then every other one a step away in one direction, and bolder ones two such steps away.

    Where one wins and enters the table, the next call looks on from there.

    Example:
        >>> candidates(128, torch.bfloat16, "value")[0] == tiles.pick(128, torch.bfloat16, "value")
        True
    """
    start = tiles.pick(width, dtype, purpose, capability)
    near = [near for step in _STEPS if (near := _stepped(start, step)) is not None]
    far = [far for tile in near[:4] for step in _STEPS[:6] if (far := _stepped(tile, step)) is not None]
    return list(dict.fromkeys(tiles.fitted(tile, width) for tile in (start, *near, *far)))


def _stepped(tile: Tile, step: tuple[str, float]) -> Tile | None:
    """The tile after one step; None where that leaves what a program can be."""
    name, change = step
    value = getattr(tile, name)
    moved = int(value + change) if name == "stages" else int(value * change)
    low, high = _LIMITS[name]
    return tile._replace(**{name: moved}) if low <= moved <= high else None
