# SPDX-License-Identifier: Apache-2.0
"""What the hot loops of the Triton kernels may cost, on every family of GPUs, in every dtype and width.

The rule: instructions a pair <= 1.1 (LOOPS + BESIDE). LOOPS is what the loop over tiles without masks took when its
tile was chosen; BESIDE is what a kernel does besides, the same everywhere: the tiles with masks, and a second role. In
LOOPS the matrix instructions alone are, where a warp multiplies (sm_80 to 89, sm_120), `p (width / d + BLOCK_OUT / d')`
lanes, d and d' 64, of tf32 32: 4.0 for bf16 rows of 128 (p = 1), 6.0 for fp16 ones, whose sums are tf32, 24 for fp32
ones (p = 3 products). They are 0.3 where a group of warps multiplies (sm_90) and 0.2 where a thread does (sm_100). Some
5 are exponentials, weights and sums. The rest brings operands to the tensor cores and grows with the width: fp32 rows
are split in two, fp16 rows turned into tf32, and on sm_100 products come back from a memory of their own.
"""

from __future__ import annotations

from benchmarks.compile import Build, Built, tile_of
from benchmarks.model import weighted
from secl_ops import tiles

HOT = ("mean", "keys", "self")
WIDTHS = (64, 128, 256, 512)  # a row of the tile table each; narrower rows take the same tile with fewer columns
ROOM = 1.1

# Instructions a pair at these widths: of the forward pass, and of the gradient of keys.
LOOPS: dict[str, dict[str, dict[str, tuple[float, float, float, float]]]] = {
    "ampere": {
        "bf16": {"mean": (7.6, 10.8, 27.6, 37.4), "keys": (7.9, 11.1, 15.9, 36.0)},
        "fp16": {"mean": (14.8, 26.0, 53.5, 46.7), "keys": (15.2, 25.9, 29.7, 43.0)},
        "fp32": {"mean": (72.9, 126.4, 583.0, 794.0), "keys": (70.2, 123.5, 419.0, 794.0)},
    },
    "small": {
        "bf16": {"mean": (7.4, 11.8, 44.8, 58.4), "keys": (7.7, 12.0, 39.8, 36.8)},
        "fp16": {"mean": (14.5, 24.4, 55.5, 67.8), "keys": (14.9, 24.9, 52.3, 67.2)},
        "fp32": {"mean": (80.0, 110.0, 416.0, 786.0), "keys": (79.0, 107.0, 417.0, 787.0)},
    },
    "hopper": {
        "bf16": {"mean": (5.0, 5.4, 7.9, 30.0), "keys": (5.7, 5.9, 8.6, 32.5)},
        "fp16": {"mean": (13.1, 14.6, 21.9, 41.8), "keys": (13.4, 14.9, 22.5, 41.8)},
        "fp32": {"mean": (36.2, 61.2, 141.8, 252.0), "keys": (35.6, 62.0, 142.0, 252.0)},
    },
    "blackwell": {
        "bf16": {"mean": (5.8, 6.2, 15.3, 52.9), "keys": (6.9, 7.8, 15.1, 54.0)},
        "fp16": {"mean": (12.3, 17.8, 20.2, 63.9), "keys": (15.0, 17.6, 19.8, 65.3)},
        "fp32": {"mean": (74.4, 135.6, 296.0, 542.0), "keys": (47.3, 135.0, 296.0, 542.0)},
    },
}
# The same of the sigmoid loss at 128 columns of bf16, with its masked tiles: a softplus and a slope of every pair.
SIGMOID: dict[str, dict[str, float]] = {
    "ampere": {"sigmoid": 34.1, "sigmoid_keys": 19.9},
    "small": {"sigmoid": 81.7, "sigmoid_keys": 20.5},
    "hopper": {"sigmoid": 27.0, "sigmoid_keys": 15.9},
    "blackwell": {"sigmoid": 38.8, "sigmoid_keys": 15.7},
}
BESIDE = {("keys", False): 0.6, ("keys", True): 1.1, ("self", False): 1.9, ("self", True): 2.9}  # True: "negatives"
# Where no tile that copies ahead fits, or none at the price: secl_ops/tile_table.py has the reasons.
AWAITED = {
    ("ampere", "bf16", 512): HOT,
    ("ampere", "fp32", 256): ("keys", "self"),
    ("hopper", "fp32", 128): ("mean",),
    ("blackwell", "fp16", 64): ("keys", "self"),
    **{(family, "fp32", 512): HOT for family in LOOPS},
    **{(family, dtype, 512): HOT for family in ("small", "blackwell") for dtype in ("bf16", "fp16")},
    **{(family, "fp32", 256): HOT for family in ("small", "blackwell")},
}


def budget(build: Build) -> float:
    """The most instructions a pair may take."""
    if build.kernel in SIGMOID["hopper"]:
        return ROOM * SIGMOID[tiles.family(build.capability)][build.kernel]
    place = next(at for at, width in enumerate(WIDTHS) if build.width <= width)
    loops = LOOPS[tiles.family(build.capability)][build.dtype]["mean" if build.kernel == "mean" else "keys"]
    return ROOM * (loops[place] + BESIDE.get((build.kernel, build.negatives), 0.0))


def row_groups(build: Build) -> int:
    """Groups of copies that bring a tile's rows: its chunks, and the columns of the output where they are others."""
    tile, width = tile_of(build), tiles.padded_width(build.width)
    return width // tile.block_d + (tile.block_d < width or tile.block_out < width)


def beyond(build: Build, built: Built) -> list[str]:
    """What is wrong with a hot loop: it takes more than its budget, or waits for copies that could be in flight."""
    judged = build.kernel in SIGMOID["hopper"] and (build.dtype, build.width) == ("bf16", 128)
    if not (judged or build.kernel in HOT) or built.far is None:
        return []
    found, most = weighted(build, built), budget(build)
    wrong = [] if found is not None and found <= most else [f"takes {found:.2f} instructions a pair of {most:.2f}"]
    place = tiles.family(build.capability), build.dtype, min(width for width in WIDTHS if build.width <= width)
    in_flight, groups = min(built.waits, default=0), row_groups(build)
    if in_flight < groups and build.kernel not in AWAITED.get(place, ()):
        wrong.append(f"leaves {in_flight} groups of copies in flight, a tile's rows are {groups}")
    return wrong
