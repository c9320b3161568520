# SPDX-License-Identifier: Apache-2.0
"""What a GPU call measures, on the CPU: targets and their verdict, the CUDA table, the build check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from benchmarks import build, gate, load, native_cuda, pixel, precompile, published, targets, verdict, verified
from benchmarks.cases import Case
from benchmarks.contenders import NATIVE
from benchmarks.native_cuda import Trial
from benchmarks.provenance import read_rows
from benchmarks.run import BUDGET_GFLOP
from benchmarks.targets import TARGETS, Target
from secl_ops.engines import triton
from secl_ops.engines.select import MODULES
from tests.conftest import skip_or_fail

TINY = Case("tiny", 64, 16)
FAST = Target("fast", TINY, NATIVE, "p50_ms", 1e6, "nothing")
STRICT = Target("strict", TINY, NATIVE, "p50_ms", 0.0, "try harder")
ABSENT = Target("absent", TINY, "no such contender", "p50_ms", 1.0, "nothing")


@pytest.fixture(autouse=True)
def _cheap(built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "extra_mib", lambda *_: 2000.0)  # a process of its own, tested with the harness
    monkeypatch.setattr(native_cuda, "ROUNDS", 1)
    monkeypatch.setattr(load, "others", lambda _: 0.25)


@pytest.fixture
def interpreted() -> None:
    """Both backends on the CPU's tensors."""
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for this machine's GPU, where the stage itself runs")
    reasons = triton.objections("cpu", torch.float32, "info_nce")
    if reasons:
        skip_or_fail("triton", "; ".join(reasons))


def test_each_target_is_a_row_or_says_why_not(tmp_path: Path) -> None:
    table = tmp_path / "targets.csv"
    assert targets.measure(table, [FAST, ABSENT, STRICT], "cpu", "float32", rounds=2) == 1
    rows = read_rows(table)
    assert [row["target"] for row in rows] == ["fast", "absent", "strict"]
    assert {row["load"] for row in rows} == {"0.25"}
    assert [bool(row["p50_ms"]) for row in rows] == [True, False, True]
    assert "no such contender" in rows[1]["note"]
    unset = replace(FAST, most=None)
    assert verdict.judge(unset, rows)[1:] == ("measured", "nothing")
    assert "| fast | not set |" in verdict.verdict(rows, [unset])
    text = verdict.verdict(rows, [FAST, STRICT, ABSENT, replace(FAST, name="never begun")])
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| met |" in lines["fast"]
    assert "| missed | try harder |" in lines["strict"]
    assert "| not measured | KeyError" in lines["absent"]
    assert "| not measured | the stage `targets` did not come to it" in lines["never begun"]


def test_a_wrong_result_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise AssertionError("error 1 above its budget 0")

    monkeypatch.setattr(gate, "agree", wrong)
    assert targets.measure(tmp_path / "t.csv", [FAST], "cpu", "float32", rounds=1) == 1
    (row,) = read_rows(tmp_path / "t.csv")
    assert not row["p50_ms"]
    assert "above its budget" in row["note"]


def test_memory_is_judged_too(tmp_path: Path) -> None:
    memory = Target("memory", TINY, NATIVE, "extra_mib", 1024.0, "look for the matrix")
    targets.measure(tmp_path / "t.csv", [memory], "cpu", "float32", rounds=1)
    assert verdict.judge(memory, read_rows(tmp_path / "t.csv")) == ("2000 MiB", "missed", "look for the matrix")


def test_a_call_that_measured_nothing_has_a_verdict(tmp_path: Path) -> None:
    assert verdict.main([str(tmp_path)]) == 0
    text = (tmp_path / "verdict.md").read_text()
    assert text.count("not measured") == len(TARGETS)


def test_what_is_timed_is_compiled_before_and_what_decides_first() -> None:
    cases, work = precompile.cases(), [job.name for job in precompile.work()]
    assert cases[:5] == list(dict.fromkeys(target.case for target in TARGETS[:6]))
    swept = [case.name for case in published.CASES if case.flop < 1e9 * BUDGET_GFLOP["cuda"]]
    assert {*swept, *(case.name for case in pixel.CASES), "square-self-N131072-D128"} <= {case.name for case in cases}
    assert work[: len(cases)] == [case.name for case in cases]
    assert len(work) == len(cases) + len(list(native_cuda.trials("cuda")))


def test_a_job_that_does_not_run_keeps_no_other_cold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> NoReturn:
        raise RuntimeError("no kernel image")

    jobs = [precompile.Job("broken", broken), precompile.Job("good", list), precompile.Job("again", broken)]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(precompile, "work", lambda: jobs)
    assert precompile.part(0, 2) == 2
    assert capsys.readouterr().out.splitlines() == [
        "broken: failed: RuntimeError: no kernel image", "again: failed: RuntimeError: no kernel image",
    ]  # fmt: skip
    assert precompile.part(1, 2) == 0
    assert re.fullmatch(r"good: \d\.\d s\n", capsys.readouterr().out)


def test_targets_are_those_of_the_design() -> None:
    found = {target.name: (target.column, target.most) for target in TARGETS}
    assert found == {
        "whole pixel step in a CUDA graph": ("p50_ms", 0.150),
        "whole pixel step, launched from Python": ("p50_ms", None),
        "self-contrast, 4,096, D 128": ("p50_ms", None),
        "frozen keys, 65,536 x 65,536, D 128": ("p50_ms", 3.7),
        "self-contrast, 65,536, D 128": ("p50_ms", 5.5),
        "both sides, 65,536 x 65,536, D 128": ("p50_ms", 7.3),
        "262,144 x 262,144 runs in little memory": ("extra_mib", 1024.0),
    }
    assert all(target.next_step for target in TARGETS)


def few() -> Iterator[Trial]:
    yield native_cuda.sampling("cpu", (1, 6, 40))
    yield native_cuda.sampling("cpu", (1, 4, 5, 6), classes=4, strategy="hard")
    yield native_cuda.gathering("cpu", "float32", 16, maps=8, side=3)
    yield native_cuda.contrasting(Case("both", 24, 16, 32, both=True))


@pytest.mark.usefixtures("interpreted")
def test_the_cuda_table_is_what_the_selection_reads(tmp_path: Path) -> None:
    table = tmp_path / "cuda.csv"
    assert native_cuda.measure(table, "cpu", few(), "green") == 0
    rows = verified.read(table)
    assert [row["operation"] for row in rows] == ["sample_pixels", "sample_pixels", "gather_pixels", "info_nce"]
    assert [row["case"] for row in rows[:2]] == ["uniform, 19 classes, 1 x 6 x 40", "hard, 4 classes, 1 x 4 x 5 x 6"]
    assert {row["verified"] for row in rows} == {"yes"}
    assert {row["load"] for row in rows} == {"0.25"}
    assert [(row["dtype"], row["width"]) for row in rows[1:]] == [("int64", "0"), ("float32", "16"), ("float32", "16")]
    assert all(float(row["native_ms"]) > 0 < float(row["triton_ms"]) for row in rows)
    assert len(verified.chosen(rows)) == 3  # the interpreter is slower than anything


@pytest.mark.usefixtures("interpreted")
def test_a_wrong_native_kernel_is_written_down_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise AssertionError("error 1 above its budget 0")

    monkeypatch.setattr(gate, "agree", wrong)
    native_cuda.measure(tmp_path / "c.csv", "cpu", iter([native_cuda.contrasting(Case("self", 24, 16))]), "green")
    (row,) = verified.read(tmp_path / "c.csv")
    assert row["verified"] == "no"
    assert verified.chosen([row]) == []


@pytest.mark.usefixtures("interpreted")
def test_what_does_not_run_is_printed_and_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: str) -> NoReturn:
        raise RuntimeError("no kernel image")

    good = native_cuda.contrasting(Case("self", 24, 16))
    trials = [replace(good, step=broken), replace(good, dtype="float64"), good]
    assert native_cuda.measure(tmp_path / "c.csv", "cpu", iter(trials), "green") == 2
    assert len(verified.read(tmp_path / "c.csv")) == 1
    printed = capsys.readouterr().out
    assert "no kernel image" in printed
    assert "native does not run on cpu: fp64" in printed


def test_every_dtype_width_and_operation_has_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "MAPS", (1, 4))
    found = {(trial.operation, trial.dtype, trial.width) for trial in native_cuda.trials("cpu")}
    assert ("sample_pixels", "int64", 0) in found
    for operation in ("info_nce", "gather_pixels"):
        dtypes = [dtype for dtype in native_cuda.DTYPES if (operation, dtype) != ("info_nce", "float32")]
        assert {(operation, dtype, width) for dtype in dtypes for width in native_cuda.WIDTHS} <= found


@pytest.mark.usefixtures("interpreted")
def test_the_build_check_runs_every_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.examine("cpu") == []
    assert capsys.readouterr().out.count(": right") == 9  # backends by dtypes
    monkeypatch.setattr(build, "small", lambda *_: "error 1 above its budget 0")
    assert build.examine("cpu") == [f"{name}, {dtype}" for name in MODULES for dtype in build.DTYPES]
    assert "above its budget" in capsys.readouterr().out


GREEN = '<testcase name="test[native-cuda-a]"/>'
OTHER = '<testcase name="test[emulated-cuda-a]"/>'


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ([GREEN, OTHER], "green"),
        ([GREEN, '<testcase name="test[native-hopper-a]"><failure/></testcase>'], "red"),
        ([GREEN, '<testcase name="test[native-cuda-b]"><error/></testcase>'], "red"),
        ([OTHER], "not run"),
        (['<testcase name="test[native-cuda-a]"><skipped/></testcase>'], "not run"),
        ([], "not run"),
    ],
)
def test_the_lane_is_green_where_the_kernels_passed_and_nothing_failed(
    cases: list[str], said: str, tmp_path: Path
) -> None:
    report = tmp_path / "lane.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert native_cuda.lane(report) == said


def test_a_lane_that_was_cut_short_was_not_run(tmp_path: Path) -> None:
    report = tmp_path / "lane.xml"
    assert native_cuda.lane(report) == "not run"
    report.write_text("<testsuites><testsuite>")
    assert native_cuda.lane(report) == "not run"
