# SPDX-License-Identifier: Apache-2.0
"""Tiles of weighted keys, where those of keys that count once would spill: the weight of each pair takes registers."""

from __future__ import annotations

Row = tuple[int, int, int, int, int, int]

# Family of GPUs, dtype, purpose, and the widest row that the tile serves in the table it replaces.
WEIGHTED: dict[tuple[str, str, str, int], Row] = {
    ("ampere", "bf16", "positive", 128): (64, 32, 128, 128, 8, 3),
    ("ampere", "bf16", "positive", 512): (64, 32, 64, 128, 8, 2),
    ("ampere", "fp16", "positive", 128): (64, 32, 64, 128, 8, 2),
    ("ampere", "fp16", "positive", 256): (64, 32, 64, 128, 8, 2),
    ("ampere", "fp16", "positive", 512): (64, 32, 64, 128, 8, 2),
    ("ampere", "fp32", "positive", 256): (64, 16, 32, 64, 8, 2),
    ("ampere", "fp32", "positive", 512): (64, 16, 32, 64, 8, 2),
    ("small", "fp16", "positive", 128): (64, 32, 128, 64, 8, 2),
    ("small", "fp16", "positive", 256): (64, 32, 128, 64, 8, 2),
    ("blackwell", "bf16", "positive", 64): (64, 32, 64, 64, 4, 2),
    ("ampere", "fp16", "classes", 128): (32, 64, 128, 64, 8, 2),
    ("ampere", "fp16", "classes", 256): (32, 64, 128, 64, 8, 2),
    ("ampere", "fp16", "classes", 512): (32, 64, 64, 64, 8, 2),
    ("small", "fp16", "classes", 512): (32, 64, 64, 64, 8, 2),
    **{
        (family, "fp32", "classes", 128): (16, 64, 32, 32, 8, 1)
        for family in ("ampere", "small", "hopper", "blackwell")
    },
}
