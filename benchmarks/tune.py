# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks tune`: times tiles beside those of `secl_ops/tile_table.py`, and says which rows should change.

It edits nothing: the table stays pinned until a person, who reads the numbers, changes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import gate
from benchmarks.budget import assert_within_budget
from benchmarks.compile import CAPABILITIES, DTYPES, Build, Built, compile_apart, faults
from benchmarks.gpu import demand_gpu
from benchmarks.kernel_table import KERNELS
from benchmarks.load import Watch
from benchmarks.measure import Clock, Work, milliseconds, percentiles
from benchmarks.neighbours import candidates
from benchmarks.provenance import ORIGIN, Row, origin, read_rows, shown, write_rows
from secl_ops import tiles
from secl_ops.engines import reference, triton
from secl_ops.engines.triton import sides
from secl_ops.engines.triton.sides import Names
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import Flag, Pairs
from secl_ops.tiles import Tile

FIELDS = (
    "purpose", "dtype", "width", "rows", *Tile._fields, "in_table", "p20_ms", "p50_ms", "p80_ms", "registers",
    "shared_bytes", "note", "rounds", *ORIGIN,
)  # fmt: skip
# In order of the time they take in a step.
PURPOSES = (
    "gradient", "value", "scan", "positive", "classes", "gradient_running", "value_running",
    "sigmoid", "sigmoid_keys", "sigmoid_loss", "positive_weighted", "classes_weighted",
)  # fmt: skip
WIDTHS = (128, 64, 256, 512)
ORDERED = (2048, 4096, 8192, 16_384)  # rows on both sides of what `tiles.counts` decides
ROWS = {"bf16": 16_384, "fp16": 16_384, "fp32": 8192}
CLASSES, SCALE = 8, 10.0
PATIENCE = 3.0  # seconds that the rounds of one tile may take


class Group(NamedTuple):
    """Tiles that are compared with each other."""

    purpose: str
    dtype: str
    width: int


@contextmanager
def pinned(purpose: str, tile: Tile) -> Iterator[None]:
    """This tile for one purpose, the table's for the others."""
    true = tiles.pick

    def pick(width: int, dtype: torch.dtype, wanted: str, capability: int = 90) -> Tile:
        return tile if wanted == purpose else true(width, dtype, wanted, capability)

    with patch.object(tiles, "pick", pick):
        yield


def passes(group: Group, rows: int, device: str, module: object = triton, wide: bool = False) -> list[Work]:
    """The launches that a purpose serves, on rows of this dtype that lie class by class."""
    random = torch.Generator().manual_seed(0)
    sides = [torch.randn(rows, group.width, generator=random) for _ in range(2)]
    dtype = torch.float64 if wide else DTYPES[group.dtype]
    anchors, keys = (
        torch.nn.functional.normalize(side, dim=1).to(device, DTYPES[group.dtype]).to(dtype) for side in sides
    )
    labels = (torch.arange(rows, device=device) * CLASSES // rows).int()
    weights = 0.5 + torch.arange(rows, device=device) % 3 / 2.0 if group.purpose.endswith("_weighted") else None
    pairs = Pairs(labels, labels, None, None, None, 0, rows, weights)
    forward, backward = module.contrast_forward, module.contrast_backward  # type: ignore[attr-defined]  # a backend
    unit = Flag(0) if group.purpose.endswith("_running") else Flag.UNIT
    lse = torch.full((rows,), 8.0, device=device, dtype=torch.float64 if wide else torch.float32)
    factors = tuple(torch.full_like(lse, value / rows) for value in (rows, 0.5, 0.1))
    if group.purpose == "scan":
        return [lambda: forward(anchors, keys, pairs, SCALE, unit | Flag.SCAN).lse]
    if group.purpose.startswith("value"):
        return [lambda: forward(anchors, keys, pairs, SCALE, unit | Flag.SCAN | Flag.ANCHOR_GRADIENT).grad_anchors]
    if group.purpose.startswith(("positive", "classes")):
        flags = unit | Flag.ANCHOR_GRADIENT | (Flag.NEGATIVES if group.purpose.startswith("positive") else Flag(0))
        return [lambda: forward(anchors, keys, pairs, SCALE, flags, lse).grad_anchors]
    if group.purpose.startswith("sigmoid"):
        return [_sigmoid(group.purpose, module, anchors, keys, pairs, factors[1])]
    both = Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT
    return [
        lambda: backward(factors, anchors, keys, pairs, lse, SCALE, unit | Flag.KEY_GRADIENT)[1],
        lambda: backward(factors, anchors, anchors, pairs, lse, SCALE, unit | both | Flag.SELF)[0],
    ]


def _sigmoid(purpose: str, module: Any, anchors: Tensor, keys: Tensor, pairs: Pairs, weight: Tensor) -> Work:
    """The launch of the sigmoid loss that a purpose serves."""
    logit = Logit(SCALE, -SCALE)
    if purpose == "sigmoid_keys":
        return lambda: module.sigmoid_backward(weight, anchors, keys, pairs, logit, Flag(0))
    if purpose == "sigmoid_loss":
        return lambda: module.sigmoid_forward(anchors, keys, pairs, logit, Flag(0)).loss
    return lambda: module.sigmoid_forward(anchors, keys, pairs, logit, Flag.ANCHOR_GRADIENT).grad_anchors


def work(group: Group, tile: Tile, launches: Sequence[Work]) -> Work:
    """All launches of a group under one tile."""

    def run() -> None:
        with pinned(group.purpose, tile):
            for launch in launches:
                launch()

    return run


def hold(group: Group, tile: Tile, device: str, rows: int = 150) -> None:
    """Hold a tile against the truth on a few ragged rows.

    Raises:
        AssertionError: A result is outside the error budget.
    """
    with pinned(group.purpose, tile):
        found = [launch() for launch in passes(group, rows, device)]
    truth = [launch() for launch in passes(group, rows, device, reference, wide=True)]
    plain = [launch() for launch in passes(group, rows, device, reference)]
    rounding = torch.finfo(DTYPES[group.dtype]).eps / torch.finfo(torch.float32).eps  # weights take the rows' dtype
    for actual, exact, usual in zip(found, truth, plain, strict=True):
        if not (isinstance(actual, Tensor) and isinstance(exact, Tensor) and isinstance(usual, Tensor)):
            raise AssertionError(f"{group}: no tensors to compare")
        assert_within_budget(
            str(group), actual.float(), exact, usual.float(), magnitude=SCALE,
            amplification=max(4 * SCALE, rounding if exact.ndim == 2 else 1.0),
        )  # fmt: skip


def capability_here() -> int:
    """What the compile report knows that comes closest to this GPU."""
    major, minor = torch.cuda.get_device_capability()
    return max(known for known in CAPABILITIES if known <= max(10 * major + minor, min(CAPABILITIES)))


def compiled(group: Group, wanted: Sequence[Tile], capability: int) -> dict[Tile, tuple[Built, str]]:
    """What each tile's kernels come to, the most of each resource, and why a tile is out: it spills or does not fit."""
    builds = [
        Build(name, group.dtype, group.width, capability, negatives)
        for name, kernel in KERNELS.items() if kernel.purpose == group.purpose for negatives in (False, True)
    ]  # fmt: skip

    def one(tile: Tile) -> tuple[Built, str]:
        made = compile_apart(builds, tile)
        most = Built(max(each.registers for each in made), shared=max(each.shared for each in made))
        wrong = [f"{build}: {fault}" for build, each in zip(builds, made, strict=True) for fault in faults(build, each)]
        return most, wrong[0] if wrong else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


Compiler = Callable[[Group, Sequence[Tile], int], Mapping[Tile, tuple[Built, str]]]


def survey(
    group: Group, rows: int, rounds: int, device: str, capability: int, wanted: Sequence[Tile], report: Compiler
) -> list[tuple[object, ...]]:
    """One row per tile: its times, or why it has none. The tiles take turns within each round."""
    known = report(group, wanted, capability)
    launches = passes(group, rows, device)
    notes, right = {}, {}
    for tile in wanted:
        built, note = known[tile]
        if not note:
            try:
                hold(group, tile, device)
                right[tile] = work(group, tile, launches)
                right[tile]()
            except Exception as error:  # a tile may fail in any way of its own; the table says how
                right.pop(tile, None)
                note = gate.reason(error)
        notes[tile] = (built, note)
    names = {str(tuple(tile)): step for tile, step in right.items()}
    times = milliseconds(names, rounds, Clock(device), PATIENCE) if names else {}
    table = tiles.pick(group.width, DTYPES[group.dtype], group.purpose, capability)
    found: list[tuple[object, ...]] = []
    for tile, (built, note) in notes.items():
        values = times.get(str(tuple(tile)))
        spread = [f"{value:.4g}" for value in percentiles(values)] if values else [""] * 3
        found.append((
            *group, rows, *tile, "yes" if tile == table else "", *spread, built.registers, built.shared, note,
            len(values or ()),
        ))  # fmt: skip
    return found


def proposals(rows: Sequence[Row]) -> list[tuple[Group, Tile, str]]:
    """Rows of the table that should change: the best tile of a group whose slow rounds beat the table's fast ones."""
    found = []
    tiled = [(Group(row["purpose"], row["dtype"], int(row["width"])), row) for row in rows if row["block_n"]]
    for group in dict.fromkeys(each for each, _ in tiled):
        own = {
            Tile(*(int(row[name]) for name in Tile._fields)): row
            for each, row in tiled if each == group and row["p50_ms"]
        }  # fmt: skip
        table = next((row for row in own.values() if row["in_table"]), None)
        if table is None:
            continue
        tile, best = min(own.items(), key=lambda item: float(item[1]["p50_ms"]))
        if float(best["p80_ms"]) < float(table["p20_ms"]):
            found.append((group, tile, f"{best['p50_ms']} ms against {table['p50_ms']} ms"))
    return found


def elsewhere(group: Group, tile: Tile, here: int, report: Compiler = compiled) -> list[str]:
    """What speaks against a tile on the other cards of the family, which have one table."""
    family = [each for each in CAPABILITIES if tiles.family(each) == tiles.family(here)]
    notes = (report(group, [tile], capability)[tile][1] for capability in family)
    return [note for note in notes if note]


def ordered(rows: int, device: str, counting: bool) -> Work:
    """Ordering rows in random order, each against each or by sorting."""
    random = torch.Generator().manual_seed(0)
    sides_of = [Names(torch.randint(0, CLASSES, (rows,), generator=random).int().to(device), None) for _ in range(2)]

    def run() -> None:
        with patch.object(tiles, "counts", lambda *_: counting):
            sides.meet(*sides_of)

    return run


def crossover(sizes: Sequence[int], rounds: int, device: str) -> list[tuple[object, ...]]:
    """Times of ordering two sides by counting and by sorting: what `tiles.counts` decides."""
    found: list[tuple[object, ...]] = []
    for rows in sizes:
        steps = {name: ordered(rows, device, name == "counting") for name in ("counting", "sorting")}
        for name, values in milliseconds(steps, rounds, Clock(device), PATIENCE).items():
            spread = [f"{value:.4g}" for value in percentiles(values)]
            found.append((name, "", "", rows, *[""] * 7, *spread, "", "", "", len(values)))
    return found


def tune(out: Path, dtypes: Sequence[str], widths: Sequence[int], rounds: int, seconds: float) -> None:
    """Time every candidate, group by group in order of worth, until the time is over; append the rows as they come.

    Raises:
        SystemExit: There is no GPU, or Triton cannot use it.
    """
    demand_gpu("tune")
    reasons = triton.objections("cuda", torch.bfloat16, "info_nce")
    if reasons:
        raise SystemExit(f"python -m benchmarks tune needs the Triton backend: {'; '.join(reasons)}")
    end, capability = time.monotonic() + seconds, capability_here()
    source, watch = origin(1, "cuda"), Watch("cuda")
    groups = [Group(purpose, dtype, width) for dtype in dtypes for width in widths for purpose in PURPOSES]
    first = len(read_rows(out))
    load = watch.before("order")
    write_rows(out, FIELDS, [(*row, *source, load.cell) for row in crossover(ORDERED, rounds, "cuda")], append=True)
    for group in groups:
        if time.monotonic() > end:
            print(f"{'-'.join(map(str, group))}: left out, {seconds:g} s are over; --seconds gives more", flush=True)
            continue
        wanted = candidates(group.width, DTYPES[group.dtype], group.purpose, capability)
        load = watch.before("-".join(map(str, group)))
        rows = survey(group, ROWS[group.dtype], rounds, "cuda", capability, wanted, compiled)
        write_rows(out, FIELDS, [(*row, *source, load.cell) for row in rows], append=True)
        for line in advice(read_rows(out)[first:], group, capability):
            print(line, flush=True)
    print(f"written to {shown(out)}")
    print("\n".join(order_advice(read_rows(out)[first:])))


def advice(rows: Sequence[Row], group: Group, capability: int, report: Compiler = compiled) -> list[str]:
    """What a person should change in the table for one group, as its row would read."""
    family, usual = tiles.family(capability), group.purpose.removesuffix("_weighted")
    place = f'TABLE["{family}"]["{group.dtype}"]["{group.purpose}"], width {group.width}'
    if usual != group.purpose:
        place = f'WEIGHTED["{family}", "{group.dtype}", "{usual}", {group.width}]'
    lines = [
        f"{place}: {tuple(tile)},  # {gain}"
        + "".join(f"\n    but {note}" for note in elsewhere(group, tile, capability, report))
        for wanted, tile, gain in proposals(rows) if wanted == group
    ]  # fmt: skip
    return lines or [f"{place}: the table stays"]


def order_advice(rows: Sequence[Row]) -> list[str]:
    """Beside each other: up to how many rows counting was seen to pay, and what the rule decides."""
    lines = []
    times = {(row["purpose"], int(row["rows"])): row for row in rows if row["purpose"] in ("counting", "sorting")}
    for count in dict.fromkeys(size for _, size in times):
        counting, sorting = (float(times[name, count]["p50_ms"]) for name in ("counting", "sorting"))
        decided = tiles.counts(count, count)
        verdict = "right" if decided == (counting < sorting) else "WRONG: change _MOST_COUNTED"
        lines.append(
            f"order of {count} rows on either side: {counting:g} ms by counting, {sorting:g} ms by sorting; "
            f"tiles.counts says {'count' if decided else 'sort'}: {verdict}"
        )
    return lines
