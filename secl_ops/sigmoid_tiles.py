# SPDX-License-Identifier: Apache-2.0
"""The pinned tiles of the sigmoid loss with its anchors' gradient, and where either alone needs one of its own.

As in `tile_table`: none spills on a chip of its family, with groups and exclusions. A loss and a slope of every pair
take more registers than an exponential does, so that these are smaller than those of "value_running".
"""

from __future__ import annotations

Row = tuple[int, int, int, int, int, int]
Widths = tuple[tuple[int, Row], ...]  # the widest row that each serves; the last serves all others

# fmt: off
ANCHORS: dict[str, dict[str, Widths]] = {
    "ampere": {
        "bf16": (
            (64, (128, 64, 64, 64, 8, 3)), (128, (128, 32, 128, 128, 8, 3)),
            (256, (64, 64, 256, 256, 8, 3)), (512, (64, 32, 128, 128, 8, 2)),
        ),
        "fp16": ((64, (64, 32, 64, 64, 4, 2)), (512, (64, 32, 128, 128, 8, 2))),
        "fp32": ((512, (64, 16, 32, 64, 8, 2)),),
    },
    "small": {
        "bf16": (
            (64, (64, 64, 64, 64, 4, 3)), (128, (64, 32, 128, 128, 8, 3)), (512, (64, 32, 64, 128, 8, 2)),
        ),
        "fp16": ((64, (64, 32, 64, 64, 4, 2)), (512, (64, 32, 64, 128, 8, 2))),
        "fp32": ((128, (32, 32, 32, 64, 4, 2)), (512, (64, 16, 32, 64, 8, 2))),
    },
    "hopper": {
        "bf16": (
            (64, (128, 64, 64, 64, 8, 3)), (128, (128, 64, 128, 128, 8, 3)),
            (256, (64, 32, 256, 256, 8, 3)), (512, (128, 16, 128, 256, 8, 3)),
        ),
        "fp16": (
            (64, (128, 64, 64, 64, 8, 3)), (128, (128, 32, 128, 128, 8, 3)),
            (256, (64, 32, 256, 128, 8, 3)), (512, (128, 16, 128, 256, 8, 3)),
        ),
        "fp32": (
            (128, (128, 32, 64, 64, 8, 2)), (256, (128, 32, 32, 64, 8, 3)), (512, (64, 32, 32, 64, 8, 2)),
        ),
    },
    "blackwell": {
        "bf16": (
            (64, (64, 32, 64, 64, 8, 2)), (128, (64, 32, 128, 128, 8, 3)),
            (256, (64, 32, 256, 128, 8, 2)), (512, (64, 32, 64, 128, 8, 2)),
        ),
        "fp16": (
            (64, (64, 32, 64, 64, 4, 2)), (256, (64, 32, 128, 128, 8, 2)), (512, (64, 32, 64, 128, 8, 2)),
        ),
        "fp32": ((128, (64, 32, 32, 64, 4, 2)), (512, (64, 32, 32, 64, 8, 2))),
    },
}
# A warp multiplies 16 rows of a product alone: of tiles of fewer rows two warps take the same ones. fp32 rows pay
# three products for that.
LOSS: dict[tuple[str, str], Widths] = {
    ("ampere", "fp32"): (
        (128, (64, 16, 64, 64, 4, 2)), (256, (64, 16, 32, 64, 4, 2)), (512, (64, 32, 64, 64, 4, 2)),
    ),
    ("small", "fp32"): (
        (64, (64, 16, 64, 64, 4, 2)), (256, (64, 16, 32, 64, 4, 2)), (512, (64, 32, 64, 64, 4, 2)),
    ),
    ("blackwell", "bf16"): (
        (64, (64, 32, 64, 64, 8, 2)), (128, (64, 32, 128, 128, 8, 3)),
        (256, (64, 32, 256, 128, 4, 2)), (512, (64, 32, 64, 128, 8, 2)),
    ),
}
KEYS: dict[tuple[str, str, int], Row] = {
    ("small", "fp16", 512): (64, 32, 64, 256, 8, 2),  # twice the keys in flight spill 16 bytes
}
