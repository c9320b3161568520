# SPDX-License-Identifier: Apache-2.0
"""A time that was taken beside other work says so, and none is taken on a busy CPU unless that is asked for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gate, load, memory, plot, provenance, run, training
from benchmarks.__main__ import _options, parser
from benchmarks.cases import Case
from benchmarks.contenders import BY_ROWS, NATIVE
from benchmarks.load import Load, Watch
from benchmarks.pixel import EAGER, PixelCase
from benchmarks.provenance import BUSY, fault, read_rows

FIRST, SECOND = Case("first", 48, 16, 65), Case("second", 48, 16, 65)
FLAT = PixelCase("flat", "a title", 1, 8, (16, 16), 2, 2)
RAN, ABSENT = (NATIVE, "eager torch", BY_ROWS), "memeff"
SECOND_TICKS = os.sysconf("SC_CLK_TCK")
MARK = f"{BUSY}others kept 0.90 cores busy"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Options:
    """A short run, of which one contender has no time."""
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    monkeypatch.setattr(gate, "names", lambda case: (*RAN, ABSENT))
    return run.Options(tmp_path / "cases.csv", rounds=1, threads=1)


def given(monkeypatch: pytest.MonkeyPatch, *cores: float) -> None:
    """What the looks before the cases see, in turn."""
    seen = iter(cores)
    monkeypatch.setattr(load, "others", lambda _: next(seen))


def counted(monkeypatch: pytest.MonkeyPatch, stat: Path, after: str, own: float) -> None:
    """Half a second of a machine whose cores had worked and rested before."""
    stat.write_text("cpu  100 20 30 4000 50 6 7 8 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    clock: dict[str, Iterator[float]] = {"perf_counter": iter((3.0, 3.5)), "process_time": iter((7.0, 7.0 + own))}
    fake = SimpleNamespace(**{name: lambda name=name: next(clock[name]) for name in clock})
    fake.sleep = lambda seconds: stat.write_text(after)
    monkeypatch.setattr(load, "time", fake)
    monkeypatch.setattr(load, "STAT", stat)


@pytest.mark.parametrize(
    ("places", "own", "cores"),
    [
        ((0,), 0.0, 1.0), ((1,), 0.0, 1.0), ((2,), 0.0, 1.0), ((5,), 0.0, 1.0), ((6,), 0.0, 1.0), ((7,), 0.0, 1.0),
        ((3,), 0.0, 0.0), ((4,), 0.0, 0.0),  # idle, and waiting for a disk
        ((0, 2), 0.0, 2.0), ((0, 2), 0.6, 0.8), ((0,), 0.6, 0.0),
    ],
)  # fmt: skip
def test_the_load_is_what_others_worked(
    places: tuple[int, ...], own: float, cores: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [100, 20, 30, 4000, 50, 6, 7, 8, 90, 0]
    for place in places:
        ticks[place] += SECOND_TICKS // 2
    ticks[3] += 1  # some core rested
    counted(monkeypatch, tmp_path / "stat", f"cpu  {' '.join(map(str, ticks))}\n", own)
    assert load.others(0.5) == pytest.approx(cores, abs=1e-9)


def test_a_kernel_that_counts_nothing_is_not_taken_for_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, tmp_path / "stat", "cpu  100 20 30 4000 50 6 7 8 90 0\n", 0.0)
    assert math.isnan(load.others(0.5))
    given(monkeypatch, math.nan, math.nan)
    with pytest.raises(SystemExit, match="this kernel does not tell how busy others were before a case; nothing"):
        Watch("cpu").before("a case")
    assert Watch("cpu", busy=True).before("a case").loud


def test_a_process_that_works_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        cores = load.others(0.5)
        spinning.kill()
    if math.isnan(cores):
        pytest.skip("this kernel does not count what its processes work")
    assert cores > load.QUIET


@pytest.mark.parametrize(
    ("device", "busy", "looks", "loud"),
    [
        ("cpu", False, (0.5, 0.51, 0.2), (False, True, False)), ("cpu", True, (0.9, 0.1), (True, False)),
        ("cuda", False, (9.0, 9.0), (False, False)),
    ],
)  # fmt: skip
def test_only_the_first_case_is_refused_and_only_on_a_cpu(
    device: str, busy: bool, looks: tuple[float, ...], loud: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, *looks)
    watch = Watch(device, busy)
    assert [watch.before("a case") for _ in looks] == list(map(Load, looks, loud))


def test_a_mark_keeps_what_the_note_says() -> None:
    quiet, busy = Load(0.1), Load(0.9, loud=True)
    assert quiet.stamp(("a", "why"), ("here",), timed=True) == ("a", "why", "here", "0.10")
    assert busy.stamp(("a", ""), ("here",), timed=True) == ("a", MARK, "here", "0.90")
    assert busy.stamp(("a", "memory: it died"), (), timed=1) == ("a", f"memory: it died; {MARK}", "0.90")
    assert busy.stamp(("a", "why"), (), timed="") == ("a", "why", "0.90")


def test_a_busy_cpu_is_refused_before_anything_is_timed(options: run.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, *[0.9] * 4)
    wanted = r"others kept 0\.90 cores busy before .*; nothing was timed, .* at most 0\.5 cores busy; wait .* --busy"
    with pytest.raises(SystemExit, match=wanted):
        run.run(options, cases=[FIRST])
    with pytest.raises(SystemExit, match=wanted):
        run.run_pixel(options, cases=[FLAT])
    with pytest.raises(SystemExit, match=wanted):
        memory.largest(options.out, "cpu", 1.0, 1.0, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=wanted):
        training.training(options.out, ["acdc"], 1, 1)
    assert not options.out.exists()


def test_a_case_beside_others_is_marked_in_its_rows_and_on_the_console(
    options: run.Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, 0.1, 0.9)
    run.run(options, cases=[FIRST, SECOND])
    rows = {(row["case"], row["contender"]): row for row in read_rows(options.out)}
    assert [rows["first", name]["note"] for name in RAN] == [""] * 3
    assert [rows["second", name]["note"] for name in RAN] == [MARK] * 3
    assert BUSY not in rows["second", ABSENT]["note"]  # it has no number
    assert {(case, row["load"]) for (case, _), row in rows.items()} == {("first", "0.10"), ("second", "0.90")}
    assert [fault(row) for row in rows.values()] == [None] * 8
    assert f"{MARK} before second; its rows are marked" in capsys.readouterr().out
    assert plot.origin(list(rows.values())).endswith(f", {BUSY}3 of 8 rows were timed beside others")


def test_a_run_beside_others_that_was_asked_for_is_marked(
    tmp_path: Path, options: run.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "names", lambda case: (NATIVE,))
    monkeypatch.setattr(memory, "extra_mib", lambda case, name, threads, **_: case.rows / 256)
    step = {"loss": 1.0, "images": 12.0, "images_per_second": 6.0, "peak_mib": 10.0}
    monkeypatch.setattr(training, "_measured", lambda *_: step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given(monkeypatch, *[0.9] * 4)
    run.run(options.__class__(options.out, 1, 1, busy=True), cases=[FIRST])
    run.run_pixel(options.__class__(tmp_path / "pixel.csv", 1, 1, busy=True), cases=[FLAT])
    memory.largest(tmp_path / "memory.csv", "cpu", 4.0, 60.0, 1, busy=True)
    training.training(tmp_path / "training.csv", ["acdc"], 1, 1, busy=True)
    tables = {name: read_rows(tmp_path / f"{name}.csv") for name in ("cases", "pixel", "memory", "training")}
    assert {row["load"] for rows in tables.values() for row in rows} == {"0.90"}
    assert tables["memory"][0]["note"].endswith(MARK)
    assert [row["note"] for row in tables["training"]] == [MARK] * 2
    for name in ("cases", "pixel"):
        assert {row["note"] for row in tables[name] if row["p50_ms"]} == {MARK}
    assert [fault(row) for rows in tables.values() for row in rows if fault(row)] == []
    assert EAGER in {row["contender"] for row in tables["pixel"]}


@pytest.mark.parametrize("command", ["run", "pixel", "sweep", "memory", "training"])
def test_every_command_that_times_on_a_cpu_can_be_told_to_go_on(command: str, tmp_path: Path) -> None:
    for asked in ([], ["--busy"]):
        found = parser().parse_args([command, "--out", str(tmp_path), *asked])
        assert found.busy == bool(asked)
        if command in ("run", "pixel", "sweep"):
            assert _options(found).busy == bool(asked)


def test_a_row_from_before_the_column_is_read(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    values = dict.fromkeys(provenance.SOURCE, "x") | {"p50_ms": "1", "note": "", "extra_mib": "1"}
    provenance.write_rows(table, list(values), [list(values.values())], append=False)
    (row,) = read_rows(table)
    assert fault(row) is None
    assert fault(row | {"load": ""}) is None
    table.write_text(f"{','.join(values)},load\n{','.join(values.values())}\n")  # written without it today
    assert fault(read_rows(table)[0]) == "no load"
