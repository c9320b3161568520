# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks tune`: which tiles are timed, which are not, and what the table is told to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import load, provenance, tune
from benchmarks.compile import DTYPES, Built
from benchmarks.kernel_table import KERNELS
from benchmarks.neighbours import candidates
from benchmarks.tune import FIELDS, PURPOSES, Group, advice, order_advice, proposals, survey
from secl_ops import tiles
from secl_ops.engines import triton
from secl_ops.engines.triton import sides
from secl_ops.engines.triton.sides import Side
from secl_ops.tiles import Tile
from tests.conftest import skip_or_fail

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL, OTHER, SPILLS = Tile(16, 16, 16, 16, 4, 2), Tile(32, 16, 16, 16, 4, 2), Tile(16, 32, 16, 16, 4, 2)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where no Triton kernel can run; a small table where one can."""
    reasons = triton.objections(DEVICE, torch.float32, "info_nce")
    if reasons:
        skip_or_fail("triton", "; ".join(reasons))
    monkeypatch.setattr(tiles, "pick", lambda *_: SMALL)


def compiled(group: Group, wanted: Sequence[Tile], capability: int) -> dict[Tile, tuple[Built, str]]:
    """A compile report in which one tile spills."""
    return {tile: (Built(99, shared=1024), "spills 8 bytes" if tile == SPILLS else "") for tile in wanted}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("width", [24, 64, 128, 256, 512])
def test_candidates_surround_the_table(width: int, purpose: str, dtype: str) -> None:
    found = candidates(width, DTYPES[dtype], purpose)
    start = tiles.pick(width, DTYPES[dtype], purpose)
    assert found[0] == start
    assert len(set(found)) == len(found) > 5
    for tile in found:
        assert all(value >= 16 and value & (value - 1) == 0 for value in tile[:4])
        assert max(tile.block_d, tile.block_out) <= max(16, tiles.next_power_of_two(width))
        assert tile.warps in (2, 4, 8)
        assert 1 <= tile.stages <= 4
    for name in ("block_n", "warps", "stages"):
        assert len({getattr(tile, name) for tile in found}) > 1, name


def test_every_purpose_of_the_table_is_tuned() -> None:
    assert {kernel.purpose for kernel in KERNELS.values()} - {""} == set(PURPOSES)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_survey_times_what_is_right_and_fits(purpose: str) -> None:
    rows = survey(Group(purpose, "fp32", 16), 40, 1, DEVICE, 90, [SMALL, OTHER, SPILLS], compiled)
    named = [dict(zip(FIELDS, row, strict=False)) for row in rows]
    assert [row["in_table"] for row in named] == ["yes", "", ""]
    assert [bool(row["p50_ms"]) for row in named] == [True, True, False]
    assert [row["note"] for row in named] == ["", "", "spills 8 bytes"]
    assert [row["rounds"] for row in named] == [1, 1, 0]
    assert len(rows[0]) + len(provenance.ORIGIN) == len(FIELDS)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_wrong_kernel_is_not_timed(purpose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from secl_ops.engines.triton import launch, launch_sigmoid

    true = sides.arrange

    def longer(*arguments: Any, **options: Any) -> Side:
        side = true(*arguments, **options)
        return side._replace(rows=1.1 * side.rows)

    for module in (launch, launch_sigmoid):
        monkeypatch.setattr(module, "arrange", longer)
    (row,) = survey(Group(purpose, "fp32", 16), 40, 1, DEVICE, 90, [SMALL], compiled)
    named = dict(zip(FIELDS, row, strict=False))
    assert not named["p50_ms"]
    assert "above its budget" in str(named["note"])


@pytest.mark.usefixtures("runs")
def test_a_tile_is_pinned_for_its_purpose_alone() -> None:
    with tune.pinned("scan", OTHER):
        assert tiles.pick(16, torch.float32, "scan") == OTHER
        assert tiles.pick(16, torch.float32, "value") == SMALL
    assert tiles.pick(16, torch.float32, "scan") == SMALL


@pytest.mark.usefixtures("runs")
def test_a_tile_that_does_not_launch_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(tune, "hold", fail)
    rows = survey(Group("scan", "fp32", 16), 40, 1, DEVICE, 90, [SMALL], compiled)
    assert "out of resource" in str(rows[0][FIELDS.index("note")])


def timed(tile: Tile, low: float, middle: float, high: float, *, table: bool = False, **other: str) -> dict[str, str]:
    values = ("value", "bf16", "128", "16384", *map(str, tile), "yes" if table else "", low, middle, high)
    return dict(zip(FIELDS, map(str, values), strict=False)) | other


def test_a_row_changes_where_every_round_was_faster() -> None:
    rows = [timed(SMALL, 1.0, 1.1, 1.2, table=True), timed(OTHER, 0.7, 0.8, 0.9), timed(SPILLS, 0.1, 0.2, 9.9)]
    assert proposals(rows[:2]) == [(Group("value", "bf16", 128), OTHER, "0.8 ms against 1.1 ms")]
    assert proposals(rows) == []  # the best median is too unsteady to displace anything


def test_noise_changes_nothing() -> None:
    assert proposals([timed(SMALL, 1.0, 1.1, 1.2, table=True), timed(OTHER, 0.9, 1.0, 1.05)]) == []
    assert proposals([timed(SMALL, 1.0, 1.1, 1.2, table=True)]) == []
    assert proposals([timed(OTHER, 0.9, 1.0, 1.05)]) == []  # the table's own tile was not timed
    assert proposals([timed(SMALL, 1.0, 1.1, 1.2, table=True), timed(OTHER, 0.1, 0.1, 0.1) | {"p50_ms": ""}]) == []


def test_advice_reads_as_the_table_and_says_what_fails_on_other_cards() -> None:
    rows = [timed(SPILLS, 1.0, 1.1, 1.2, table=True), timed(OTHER, 0.7, 0.8, 0.9)]
    group = Group("value", "bf16", 128)

    def older(_: Group, wanted: Sequence[Tile], capability: int) -> Mapping[Tile, tuple[Built, str]]:
        return {tile: (Built(), "sm_120 spills" if capability == 120 else "") for tile in wanted}

    (line,) = advice(rows, group, 89, older)
    assert line == (
        'TABLE["small"]["bf16"]["value"], width 128: (32, 16, 16, 16, 4, 2),  # 0.8 ms against 1.1 ms'
        "\n    but sm_120 spills"
    )
    assert advice(rows, group, 90, older)[0].endswith("1.1 ms")
    (stays,) = advice(rows, Group("classes_weighted", "fp16", 256), 80, older)
    assert stays == 'WEIGHTED["ampere", "fp16", "classes", 256]: the table stays'
    place = 'TABLE["hopper"]["fp32"]["scan"], width 64'
    assert advice(rows, Group("scan", "fp32", 64), 90, older) == [f"{place}: the table stays"]


def test_ordering_is_judged_on_both_sides_of_the_rule() -> None:
    none = dict.fromkeys(Tile._fields, "")
    rows = [
        {**timed(SMALL, 0, time, 0), **none, "purpose": name, "dtype": "", "width": "", "rows": rows}
        for rows, name, time in (
            ("4096", "counting", 1.0), ("4096", "sorting", 2.0), ("16384", "counting", 4.0), ("16384", "sorting", 5.0)
        )
    ]  # fmt: skip
    first, second = order_advice(rows)
    assert "says count: right" in first
    assert "says sort: WRONG" in second
    assert proposals(rows) == []  # they are no tiles


def test_each_row_has_the_load_before_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter((0.5, 1.5, 2.5))
    cells = ("",) * (len(FIELDS) - len(provenance.ORIGIN))
    monkeypatch.setattr(load, "others", lambda _: next(looks))
    for name in ("demand_gpu", "advice", "order_advice", "candidates"):
        monkeypatch.setattr(tune, name, lambda *_: [])
    monkeypatch.setattr(tune, "capability_here", lambda: 90)
    monkeypatch.setattr(tune, "origin", lambda *_: provenance.origin(1))
    monkeypatch.setattr(triton, "objections", lambda *_: [])
    for name in ("crossover", "survey"):
        monkeypatch.setattr(tune, name, lambda *_: [cells])
    monkeypatch.setattr(tune, "PURPOSES", PURPOSES[:2])
    tune.tune(tmp_path / "tune.csv", ["bf16"], [128], 1, 60.0)
    assert [row["load"] for row in provenance.read_rows(tmp_path / "tune.csv")] == ["0.50", "1.50", "2.50"]


@pytest.mark.usefixtures("runs")
def test_both_orders_are_timed() -> None:
    rows = tune.crossover([48], 1, DEVICE)
    assert [row[0] for row in rows] == ["counting", "sorting"]
    assert all(len(row) + len(provenance.ORIGIN) == len(FIELDS) for row in rows)
