# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks tune`: times tiles beside those of `secl_ops/tiles.py`, and says which rows should change.

It edits nothing: the table stays pinned until a person, who reads the numbers, changes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import gate
from benchmarks.budget import assert_within_budget
from benchmarks.compile import CAPABILITIES, DTYPES, KERNELS, Build, Built, compile_apart, faults
from benchmarks.gpu import demand_gpu
from benchmarks.measure import Clock, Work, milliseconds, percentiles
from benchmarks.neighbours import candidates
from benchmarks.provenance import ORIGIN, Row, origin, read_rows, shown, write_rows
from secl_ops import tiles
from secl_ops.engines import reference, triton
from secl_ops.spec import Flag, Pairs
from secl_ops.tiles import Tile

FIELDS = (
    "purpose", "dtype", "width", "rows", *Tile._fields, "in_table", "p20_ms", "p50_ms", "p80_ms", "registers",
    "shared_bytes", "note", "rounds", *ORIGIN,
)  # fmt: skip
PURPOSES = ("gradient", "value", "scan", "positive")  # in order of the time they take in a step
WIDTHS = (128, 64, 256, 512)
SORTS = (8192, 16_384, 32_768, 65_536)  # rows on each side of `tiles.sorts`
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

    def pick(width: int, dtype: torch.dtype, wanted: str) -> Tile:
        return tile if wanted == purpose else true(width, dtype, wanted)

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
    pairs = Pairs(labels, labels, None, None, None, 0, rows)
    forward, backward = module.contrast_forward, module.contrast_backward  # type: ignore[attr-defined]  # a backend
    unit = Flag.UNIT | Flag.ORDERED
    lse = torch.full((rows,), 8.0, device=device, dtype=torch.float64 if wide else torch.float32)
    factors = tuple(torch.full_like(lse, value / rows) for value in (rows, 0.5, 0.1))
    if group.purpose == "scan":
        return [lambda: forward(anchors, keys, pairs, SCALE, unit | Flag.SCAN).lse]
    if group.purpose == "value":
        return [lambda: forward(anchors, keys, pairs, SCALE, unit | Flag.SCAN | Flag.ANCHOR_GRADIENT).grad_anchors]
    if group.purpose == "positive":
        flags = unit | Flag.NEGATIVES | Flag.ANCHOR_GRADIENT
        return [lambda: forward(anchors, keys, pairs, SCALE, flags, lse).grad_anchors]
    both = Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT
    return [
        lambda: backward(factors, anchors, keys, pairs, lse, SCALE, unit | Flag.KEY_GRADIENT)[1],
        lambda: backward(factors, anchors, anchors, pairs, lse, SCALE, unit | both | Flag.SELF)[0],
    ]


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
    table = tiles.pick(group.width, DTYPES[group.dtype], group.purpose)
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
    groups = dict.fromkeys(Group(row["purpose"], row["dtype"], int(row["width"])) for row in rows)
    for group in groups:
        own = {}
        for row in rows:
            if (row["purpose"], row["dtype"], int(row["width"])) == group and row["p50_ms"] and row["block_n"]:
                own[Tile(*(int(row[name]) for name in Tile._fields))] = row
        table = next((row for row in own.values() if row["in_table"]), None)
        if table is None:
            continue
        tile, best = min(own.items(), key=lambda item: float(item[1]["p50_ms"]))
        if float(best["p80_ms"]) < float(table["p20_ms"]):
            found.append((group, tile, f"{best['p50_ms']} ms against {table['p50_ms']} ms"))
    return found


def elsewhere(group: Group, tile: Tile, report: Compiler = compiled) -> list[str]:
    """What speaks against a tile on the other cards that the one table serves."""
    notes = (report(group, [tile], capability)[tile][1] for capability in CAPABILITIES)
    return [note for note in notes if note]


def second_pass(rows: int, width: int, device: str, sorts: bool) -> Work:
    """The pass over the positives of rows in random order, which are sorted first or not."""
    random = torch.Generator().manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(rows, width, generator=random), dim=1)
    anchors = anchors.to(device, torch.bfloat16)
    labels = torch.randint(0, CLASSES, (rows,), generator=random).int().to(device)
    pairs = Pairs(labels, labels, None, None, None, 0, rows)
    lse = torch.full((rows,), 8.0, device=device)

    def run() -> None:
        with patch.object(tiles, "sorts", lambda *_: sorts):
            flags = Flag.NEGATIVES | Flag.UNIT | Flag.ANCHOR_GRADIENT
            triton.contrast_forward(anchors, anchors, pairs, SCALE, flags, lse)

    return run


def crossover(sizes: Sequence[int], rounds: int, device: str, width: int = 128) -> list[tuple[object, ...]]:
    """Times of the second pass over rows in random order, as they lie and sorted: what `tiles.sorts` decides."""
    found: list[tuple[object, ...]] = []
    for rows in sizes:
        steps = {name: second_pass(rows, width, device, name == "sorted") for name in ("unsorted", "sorted")}
        for name, values in milliseconds(steps, rounds, Clock(device), PATIENCE).items():
            spread = [f"{value:.4g}" for value in percentiles(values)]
            found.append((name, "bf16", width, rows, *[""] * 7, *spread, "", "", "", len(values)))
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
    end, source, capability = time.monotonic() + seconds, origin(1, "cuda"), capability_here()
    groups = [Group(purpose, dtype, width) for dtype in dtypes for width in widths for purpose in PURPOSES]
    first = len(read_rows(out))
    write_rows(out, FIELDS, [(*row, *source) for row in crossover(SORTS, rounds, "cuda")], append=True)
    for group in groups:
        if time.monotonic() > end:
            print(f"{'-'.join(map(str, group))}: left out, {seconds:g} s are over; --seconds gives more", flush=True)
            continue
        wanted = candidates(group.width, DTYPES[group.dtype], group.purpose)
        rows = survey(group, ROWS[group.dtype], rounds, "cuda", capability, wanted, compiled)
        write_rows(out, FIELDS, [(*row, *source) for row in rows], append=True)
        for line in advice(read_rows(out)[first:], group):
            print(line, flush=True)
    print(f"written to {shown(out)}")
    print("\n".join(sorting_advice(read_rows(out)[first:])))


def advice(rows: Sequence[Row], group: Group, report: Compiler = compiled) -> list[str]:
    """What a person should change in the table for one group, as its row would read."""
    name = {"fp32": "_FULL", "fp16": "_FP16"}.get(group.dtype, "_HALF")
    lines = [
        f'{name}["{group.purpose}"], width {group.width}: Tile{tuple(tile)},  # {gain}'
        + "".join(f"\n    but {note}" for note in elsewhere(group, tile, report))
        for wanted, tile, gain in proposals(rows) if wanted == group
    ]  # fmt: skip
    return lines or [f'{name}["{group.purpose}"], width {group.width}: the table stays']


def sorting_advice(rows: Sequence[Row]) -> list[str]:
    """Beside each other: the work from which sorting was seen to pay, and what the table decides."""
    lines = []
    times = {(row["purpose"], int(row["rows"])): row for row in rows if row["purpose"] in ("sorted", "unsorted")}
    for count, width in dict.fromkeys((int(row["rows"]), int(row["width"])) for row in rows if not row["block_n"]):
        as_is, ordered = (float(times[name, count]["p50_ms"]) for name in ("unsorted", "sorted"))
        decided = tiles.sorts(count, count, width, torch.bfloat16)
        verdict = "right" if decided == (ordered < as_is) else "WRONG: change _SORTED_WORK_HALF"
        lines.append(
            f"second pass, {count} random rows: {as_is:g} ms as they lie, {ordered:g} ms sorted; "
            f"tiles.sorts says {'sort' if decided else 'leave'}: {verdict}"
        )
    return lines
