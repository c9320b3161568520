# SPDX-License-Identifier: Apache-2.0
"""What a call must take on an H200 by its machine code: predicted, so that the first measurement can refute it.

A tile costs what its busiest unit needs, or what one group of warps needs from end to end where that is more:

    time = max(matrix, exponentials, issue, L2 of all groups,  matrix + max(exponentials, issue) of one group)

Assumed: units overlap between the groups of a multiprocessor and not within one; copies in flight hide their latency;
each launch costs 3 us; programs of one round end together; the card runs at 1.755 GHz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from benchmarks.compile import Build, Built, shape_of, tile_of
from benchmarks.kernel_table import KERNELS
from benchmarks.sass import LANES, WARPS_OF_A_GROUP, Loop
from secl_ops import tiles
from secl_ops.tiles import Tile

CLASSES = 19
LAUNCH = 3e-6  # seconds
CLOCK = 1.755e9
MULTIPROCESSORS = 132
REGISTERS, SHARED = 65536, 227 << 10  # of a multiprocessor
MATRIX = 790e12 / MULTIPROCESSORS / CLOCK  # floating-point operations a clock and multiprocessor; 790 were measured
SPECIAL, ISSUE = 16.0, 4.0 * LANES  # lanes a clock
L2_BYTES = 5.5e12 / MULTIPROCESSORS / CLOCK
SORT = 60e-6  # seconds of a radix sort of 65,536 ranks and of the searches after it


@dataclass(frozen=True)
class Kinds:
    """How many tiles of each kind a whole pass visits."""

    far: int
    near: int

    def share(self, tile: Tile, rows: int, others: int) -> tuple[float, float]:
        """Pairs in far and in near tiles, of all pairs of the two sides."""
        pairs = tile.block_n * tile.block_m / (rows * others)
        return self.far * pairs, self.near * pairs


def kinds(rows: int, others: int, classes: int, tile: Tile, *, hole: bool, positive: bool, shared: bool) -> Kinds:
    """Tiles of a pass over sides that lie class by class, each class of equal size; see `engines/triton/plan.py`.

    Args:
        rows: That stay.
        others: That stream past.
        classes: On both sides.
        tile: Its rows.
        hole: Keys of the own class are not in the denominator.
        positive: Keys of the own class are looked at pair by pair.
        shared: Both sides are the same, and a row does not meet itself.

    Example:
        >>> kinds(256, 256, 2, Tile(64, 64, 64, 64, 4, 2), hole=False, positive=False, shared=True)
        Kinds(far=12, near=4)
    """
    far = near = 0
    label = np.arange(rows) * classes // rows
    edges = np.array([ceil(each * others / classes) for each in range(classes + 1)])
    last = others // tile.block_m
    total = -(-others // tile.block_m)
    for start in range(0, rows, tile.block_n):
        block = label[start : start + tile.block_n]
        zone = (start, min(start + tile.block_n, rows)) if shared else (others, 0)
        if hole or positive:
            zone = min(zone[0], int(edges[block[0]])), max(zone[1], int(edges[block[-1] + 1]))
        first = min(zone[0] // tile.block_m, last)
        stop = min(max(-(-zone[1] // tile.block_m), first), last)
        core = 0
        if hole and not positive:
            core_first = min(max(-(-int(edges[block[-1]]) // tile.block_m), first), stop)
            core = min(max(int(edges[block[0] + 1]) // tile.block_m, core_first), stop) - core_first
        far += first + last - stop
        near += stop - first - core + total - last
    return Kinds(far, near)


def visited(rows: int, others: int, classes: int, tile: Tile) -> int:
    """Tiles that the pass over the positives of sides that lie class by class visits."""
    found = 0
    label = np.arange(rows) * classes // rows
    for start in range(0, rows, tile.block_n):
        block = label[start : start + tile.block_n]
        first, stop = (ceil(each * others / classes) for each in (block[0], block[-1] + 1))
        found += -(-stop // tile.block_m) - first // tile.block_m
    return found


def passes_of(build: Build, tile: Tile, rows: int, others: int, classes: int = CLASSES) -> Kinds:
    """The tiles that a compiled kernel visits on sides of this many rows."""
    kernel = KERNELS[build.kernel]
    if kernel.purpose.startswith("positive"):
        return Kinds(0, visited(rows, others, classes, tile))
    positive = kernel.purpose.startswith(("gradient", "sigmoid"))
    return kinds(
        rows, others, classes, tile, hole=build.negatives or positive, positive=positive,
        shared=bool(kernel.switches.get("SELF")) or build.kernel in ("scan",),
    )  # fmt: skip


def weighted(build: Build, built: Built, rows: int = 65_536) -> float | None:
    """Instructions of a kernel over all pairs of two sides, each loop as often as its tiles come; None: not read.

    A pass over the positives is weighted by its own visits alone.
    """
    if built.far is None or built.near is None:
        return None
    if KERNELS[build.kernel].purpose.startswith("positive"):
        return built.near.per_pair(built.near.instructions)
    tile = tile_of(build)
    far, near = passes_of(build, tile, rows, rows).share(tile, rows, rows)
    return far * built.far.per_pair(built.far.instructions) + near * built.near.per_pair(built.near.instructions)


def clocks(loop: Loop, build: Build, tile: Tile, residents: int) -> float:
    """Clocks of a tile on a multiprocessor that this many programs share; a smaller one costs its part of the loop."""
    groups, whole = tile.warps / WARPS_OF_A_GROUP, tile_of(build)
    part = tile.block_n * tile.block_m / loop.pairs
    flop = max(loop.matrix_flop, loop.pairs * shape_of(build, whole).pair_flop)
    matrix = part * flop / MATRIX * (2 if build.dtype == "fp32" else 1)
    special = part * loop.special * loop.warps * LANES / SPECIAL
    issue = part * loop.instructions * loop.warps * LANES / ISSUE
    fetched = tile.block_m * tiles.padded_width(build.width) * (4 if build.dtype == "fp32" else 2) / L2_BYTES
    busiest = max(matrix, special, issue, fetched)
    alone = (matrix + max(special, issue)) / groups
    return max(busiest, alone / residents)


def seconds(build: Build, built: Built, rows: int, others: int) -> float:
    """Time of one kernel over two sides that lie class by class."""
    if built.far is None or built.near is None:
        raise ValueError(f"{build} has no loops that could be read: {built.unread}")
    tile = tiles.shrunk(tile_of(build), rows, others, MULTIPROCESSORS)
    met, threads = passes_of(build, tile, rows, others), tile.warps * LANES
    room = min(REGISTERS // (max(built.registers, 1) * threads), SHARED // max(built.shared, 1), 2048 // threads)
    residents = max(1, room)
    columns = -(-tiles.padded_width(build.width) // tile.block_out) if KERNELS[build.kernel].products > 1 else 1
    blocks = -(-rows // tile.block_n) * columns
    programs = blocks * tiles.parts(blocks, -(-others // tile.block_m), MULTIPROCESSORS)
    work = columns * sum(
        count * clocks(loop, build, tile, residents) for count, loop in ((met.far, built.far), (met.near, built.near))
    )
    rounds = -(-programs // (MULTIPROCESSORS * residents)) * residents
    return rounds * work / programs / CLOCK + LAUNCH


@dataclass(frozen=True)
class Call:
    """A call of the loss: the kernels of its passes, and how many small launches go with them."""

    name: str
    rows: int
    others: int
    kernels: Sequence[str]
    small: int  # launches that only order, arrange, merge or reduce
    sorts: int
    most: float | None  # ms: what the prediction should not pass


CALLS = (
    Call("both sides, 65,536 x 65,536", 65_536, 65_536, ("mean", "keys"), 8, 4, 8.0),
    Call("frozen keys, 65,536 x 65,536", 65_536, 65_536, ("mean",), 5, 2, 4.0),
    Call("self-contrast, 65,536", 65_536, 65_536, ("scan", "self"), 6, 1, 6.5),
    Call("self-contrast, 4,096", 4096, 4096, ("scan", "self"), 7, 0, None),
    Call("self-contrast, 912, by the kernels for many rows", 912, 912, ("scan", "self"), 11, 0, None),
)


def predicted(call: Call, made: Mapping[tuple[str, bool], tuple[Build, Built]], *, negatives: bool) -> float:
    """Milliseconds of a call whose kernels were compiled for sm_90, bf16."""
    names = [*call.kernels, *(["positive"] if negatives else [])]
    total = sum(seconds(*made[name, negatives], call.rows, call.others) for name in names)
    moved = 6 * (call.rows + call.others) * 128 * 2 / 3.5e12  # rows copied once a pass, read and written
    return 1e3 * (total + call.small * LAUNCH + call.sorts * SORT + moved)
