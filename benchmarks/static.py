# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks static`: what every Triton kernel was compiled to, and the bound that this predicts.

A bound is no time: it says how fast nothing can be, if every unit works all the time and nothing else ever waits.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.compile import Build, Built, common, compile_apart, every, faults, outputs, shape_of, tile_of
from benchmarks.kernel_table import KERNELS
from benchmarks.model import CALLS, predicted, weighted
from benchmarks.provenance import commit, read_rows, shown, today, write_rows
from benchmarks.sass import LANES, Loop

BATCH = 24
IDENTITY = 6  # columns that name a configuration
FIELDS = (
    "kernel", "dtype", "width", "capability", "denominator", "plain", "registers", "shared_bytes", "spill_bytes",
    "wgmma", "copies_in_flight", "far_per_pair", "near_per_pair", "weighted_per_pair", "exp2_per_pair",
    "special_per_pair", "matrix_per_1000_pairs", "repeated_work", "predicted_limit", "predicted_percent_of_790",
    "triton", "commit", "date",
)  # fmt: skip


class Card(NamedTuple):
    """The rates that bound a kernel; each is of the whole card."""

    capability: int
    matrix_flop: float  # per second, measured, bf16 rows
    special: float  # exp2 and its like, lanes per second
    issue: float  # lane instructions per second: four warps a clock on each multiprocessor
    scalar_flop: float  # per second: what fp32 rows are multiplied with


_CLOCKS = 132 * 1.755e9  # multiprocessors x Hz
H200 = Card(90, 790e12, 16 * _CLOCKS, 4 * LANES * _CLOCKS, 2 * 128 * _CLOCKS)


class Bound(NamedTuple):
    """What a kernel can reach at best."""

    limit: str
    seconds_per_pair: float
    share: float  # of the card's measured bf16 matrix rate, counting each product of the formula once


def predict(loop: Loop, card: Card, *, pair_flop: float, useful_flop: float, scalar: bool = False) -> Bound:
    """The busiest unit bounds the loop: seconds per pair = max over units of work per pair / rate.

    Args:
        loop: Counts from the machine code.
        card: Rates.
        pair_flop: Operations of the products that the tile needs, per pair; what warps repeat is added.
        useful_flop: Operations that the formula needs, per pair.
        scalar: The products run on the FMA units.

    Example:
        >>> loop = Loop(8192, 8, instructions=128, exp2=32, special=32, matrix=8, matrix_flop=8192 * 128)
        >>> bound = predict(loop, H200, pair_flop=128, useful_flop=128)
        >>> bound.limit, round(bound.share, 2)
        ('exp2', 0.6)
    """
    executed = max(pair_flop, loop.matrix_flop / loop.pairs)
    units = {
        "matrix": executed / (card.scalar_flop if scalar else card.matrix_flop),
        "exp2": loop.per_pair(loop.special) / card.special,
        "issue": loop.per_pair(loop.instructions) / card.issue,
    }
    limit = max(units, key=lambda name: units[name])
    return Bound(limit, units[limit], useful_flop / units[limit] / card.matrix_flop)


def bound_of(build: Build, built: Built, card: Card = H200) -> Bound | None:
    """The predicted bound of a compiled configuration; None on other cards and for kernels that only move memory."""
    products = KERNELS[build.kernel].products
    if built.far is None or not products or build.capability != card.capability or build.dtype == "fp32":
        return None
    tile = tile_of(build)
    needed = shape_of(build, tile).pair_flop
    useful = 2 * build.width * products / outputs(build, tile)
    return predict(built.far, card, pair_flop=needed, useful_flop=useful)


def row(build: Build, built: Built) -> tuple[object, ...]:
    """One line of the report, without its provenance."""
    denominator = build.denominator if KERNELS[build.kernel].purpose else ""
    identity = (build.kernel, build.dtype, build.width, build.capability, denominator, build.plain)
    in_flight = min(built.waits) if built.waits else ""
    resources = (built.registers, built.shared, built.stack + built.local, "yes" if built.wgmma else "", in_flight)
    bound = bound_of(build, built)
    predicted = ("", "") if bound is None else (bound.limit, f"{100 * bound.share:.1f}")
    return (*identity, *resources, *_costs(build, built), *predicted)


def _costs(build: Build, built: Built) -> tuple[str, ...]:
    """What a pair costs; the work that warps repeat is known where the machine code tells the shape of a product."""
    far, near = built.far, built.near
    if far is None or near is None:
        return ("",) * 7
    tile_flop = far.pairs * shape_of(build, tile_of(build)).pair_flop
    return (
        f"{far.per_pair(far.instructions):.2f}",
        f"{near.per_pair(near.instructions):.2f}",
        f"{weighted(build, built):.2f}",
        f"{far.per_pair(far.exp2):.2f}",
        f"{far.per_pair(far.special):.2f}",
        f"{1000 * far.matrix * far.warps / far.pairs:.2f}",
        f"{far.matrix_flop / tile_flop:.2f}" if far.matrix_flop else "",
    )


HEADER = (
    f"{'kernel':31}{'dtype':6}{'D':>4} {'sm':>4} {'denominator':12}{'regs':>5}{'shared':>9}{'spill':>6} {'in':>6}"
    f"{'instructions a pair':>25}{'exp2':>6}   predicted bound\n"
    f"{'':54}{'':9}{'KiB':>11}{'bytes':>6} {'flight':>6}{'far':>8}{'near':>8}{'weighted':>9}{'/pair':>6}"
    "   share of 790 TFLOP/s, unit"
)


def line(values: Sequence[object]) -> str:
    """The same line for the eye."""
    kernel, dtype, width, capability, denominator, _, registers, shared, spill, _, in_flight, *rest = values
    far, near, weighing, exp2, _, _, _, limit, percent = rest
    predicted = f"{percent:>7} %, {limit}" if percent else ""
    return (
        f"{kernel!s:31}{dtype!s:6}{width:>4} {capability:>4} {denominator!s:12}{registers:>5}"
        f"{int(str(shared)) / 1024:>9.1f}{spill:>6} {in_flight!s:>6}{far:>8}{near:>8}{weighing:>9}{exp2:>6}"
        f"   {predicted}"
    ).rstrip()


def predictions(made: Mapping[Build, Built]) -> list[str]:
    """What whole calls of bf16 rows, 128 wide and of 19 classes, must take on an H200 by these kernels."""
    found = []
    known = {
        (build.kernel, build.negatives): (build, built) for build, built in made.items()
        if (build.dtype, build.width, build.capability, build.plain) == ("bf16", 128, H200.capability, True)
    }  # fmt: skip
    for call in CALLS:
        for negatives in (False, True):
            wanted = {(name, negatives) for name in (*call.kernels, *(["positive"] if negatives else []))}
            if wanted <= known.keys():
                time = predicted(call, known, negatives=negatives)
                aim = "" if call.most is None else f", aim {call.most:g} ms"
                found.append(f"predicted, {call.name}, {'negatives' if negatives else 'all'}: {time:.3g} ms{aim}")
    return found


def _compiled(wanted: Sequence[Build]) -> Iterator[tuple[Build, Built]]:
    """A batch at a time, so that the report appears while it is made."""
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        yield from zip(batch, compile_apart(batch), strict=True)


def _beside(out: Path, rows: Sequence[tuple[object, ...]]) -> list[Sequence[object]]:
    """These rows in place of a table's rows of the same configurations, the others as they are."""
    fresh: dict[tuple[str, ...], Sequence[object]] = {tuple(map(str, row[:IDENTITY])): row for row in rows}
    kept = [[row.get(field, "") for field in FIELDS] for row in read_rows(out)]
    table = [fresh.pop(tuple(row[:IDENTITY]), row) for row in kept]
    return [*table, *fresh.values()]


def report(out: Path, *, full: bool, only: str = "") -> None:
    """Compile, print a line per configuration, write the table; the rows of others stay where only some are wanted.

    Raises:
        SystemExit: No configuration is named so, or one failed, spilled or lost the tensor cores; each is listed.
    """
    wanted = [build for build in (every() if full else common()) if only in str(build)]
    if not wanted:
        raise SystemExit(f"--kernel must be part of a configuration's name, such as scan-bf16-128-sm90-all; got {only}")
    print(HEADER)
    version, source, date = importlib.metadata.version("triton"), commit(), today()
    rows: list[tuple[object, ...]] = []
    wrong: list[str] = []
    unread: list[str] = []
    made: dict[Build, Built] = {}
    for build, built in _compiled(wanted):
        values = row(build, built)
        rows.append((*values, version, source, date))
        print(line(values), flush=True)
        wrong += [f"{build}: {fault}" for fault in faults(build, built)]
        unread += [f"{build}: {built.unread}"] * bool(built.unread)
        made[build] = built
    write_rows(out, FIELDS, _beside(out, rows) if only else rows, append=False)
    print(f"{len(rows)} configurations, Triton {version}; predicted, not measured: the rates are those of an H200 at")
    print(f"790 TFLOP/s (bf16, measured) and 1.755 GHz; written to {shown(out)}")
    for text in predictions(made):
        print(text)
    for note in unread:
        print(f"main loop not read: {note}")
    if wrong:
        raise SystemExit("\n".join(wrong))
