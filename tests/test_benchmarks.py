# SPDX-License-Identifier: Apache-2.0
"""The harness: nothing wrong is timed, a failure is a row that says so, memory is that of the step alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import secl_ops
from benchmarks import contenders, gate, measure, plot, provenance, rivals, run
from benchmarks.cases import CASES, Answer, Case, Problem, truth
from benchmarks.contenders import BY_KEYS, BY_ROWS, COMPILED, OURS, contender, names
from tests.conftest import skip_or_fail

SELF = Case(96, 16, 4, "negatives")
FROZEN = Case(48, 16, 4, "all", keys=160)
EAGER, CHUNKED, METRIC = "eager torch", "chunked + checkpoint", "pytorch-metric-learning"


@pytest.fixture(params=["all", "negatives"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(96, 16, 4, request.param)


@pytest.fixture(autouse=True)
def _without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes half a minute; the benchmark itself sees it run."""

    def refuse(problem: Problem, denominator: str) -> rivals.Loss:
        raise RuntimeError("no compiler: pretended")

    monkeypatch.setitem(contenders.LOSSES, COMPILED, refuse)


def wrong(problem: Problem, denominator: str) -> Callable[[], Tensor]:
    return lambda: rivals.dense(problem, denominator) * 1.001


def test_the_truth_in_blocks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, labels, _ = SELF.problem()
    whole = secl_ops.info_nce(rows.double(), anchor_labels=labels, backend="reference")
    gradient = torch.autograd.grad(whole, rows)[0].double()
    monkeypatch.setattr("benchmarks.cases.TRUTH_ROWS", 40)
    blocks = truth.__wrapped__(SELF)
    gate.assert_within_budget("loss", blocks.loss, whole.detach(), whole.detach().float())
    gate.assert_within_budget("gradient", blocks.gradient, gradient, gradient.float())


@pytest.mark.parametrize("name", [EAGER, CHUNKED])
def test_plain_rivals_are_right(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "BLOCK_ROWS", 40)
    for each in (case, FROZEN):
        gate.agree(each, name, contender(each, name)())


def test_native_is_right_on_frozen_keys_and_self_contrast(case: Case) -> None:
    if secl_ops.backends()["native"]:
        skip_or_fail("native", "the native backend is not built")
    for each in (case, FROZEN):
        gate.agree(each, OURS, contender(each, OURS)())


@pytest.mark.parametrize(("name", "other"), [(CHUNKED, EAGER), (EAGER, CHUNKED)])
def test_a_wrong_rival_is_not_timed(name: str, other: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.LOSSES, name, wrong)
    right, refused = gate.admit(case)
    assert name not in right
    assert refused[name].startswith(f"wrong: {name}, self-")
    assert other in right


def test_every_size_of_a_sweep_is_held_against_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_above(problem: Problem, denominator: str) -> Callable[[], Tensor]:
        return (wrong if len(problem.anchors) > 64 else right)(problem, denominator)

    def right(problem: Problem, denominator: str) -> Callable[[], Tensor]:
        return lambda: rivals.dense(problem, denominator)

    monkeypatch.setattr(run, "SWEEP_ROWS", (64, 96))
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    for loss, rows in ((right, 96), (wrong_above, 64)):
        monkeypatch.setitem(contenders.LOSSES, EAGER, loss)
        monkeypatch.setitem(contenders.LOSSES, OURS, right)
        run.sweep(tmp_path / "sweep.csv", rounds=1, threads=1, largest=rows)
    with pytest.raises(AssertionError, match="eager torch, self-all-N96-D128-C8, loss: error"):
        run.sweep(tmp_path / "other.csv", rounds=1, threads=1, largest=96)
    assert not (tmp_path / "other.csv").exists()


def test_a_right_loss_with_a_wrong_gradient_is_seen(case: Case) -> None:
    answer = contender(case, EAGER)()
    with pytest.raises(AssertionError, match="gradient: error"):
        gate.agree(case, EAGER, answer._replace(gradient=answer.gradient.roll(1, 0)))


def test_nothing_is_timed_when_ours_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.LOSSES, OURS, wrong)
    with pytest.raises(SystemExit, match="nothing was timed"):
        gate.admit(SELF)


def test_a_failing_rival_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(problem: Problem, denominator: str) -> rivals.Loss:
        raise ModuleNotFoundError("No module named 'pytorch_metric_learning'")

    monkeypatch.setitem(contenders.LOSSES, METRIC, absent)
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    rows = {str(row[1]): row for row in run.measured(FROZEN, rounds=3, threads=1)}
    assert rows[METRIC][2:] == ("", "", "", "", "", "ModuleNotFoundError: No module named 'pytorch_metric_learning'")
    assert set(rows) == set(names(FROZEN))
    assert {float(str(rows[name][5])) for name in (BY_ROWS, BY_KEYS)} >= {1.0}
    assert plot.failure(str(rows[METRIC][7])) == "not installed"


def test_a_failure_is_told_in_a_few_words() -> None:
    note = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 30773500 bytes"
    assert plot.failure(note) == "not timed: RuntimeError"
    assert plot.failure(note.replace("30773500", "30771550715904")) == "fails: asks for 30.8 TB"


@pytest.mark.parametrize("block", [36, 1024])  # rows that do not end with a block, and one block
def test_yardsticks_multiply_what_the_loss_must(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "PRODUCT_ROWS", block)
    anchors, keys, _, _ = FROZEN.problem()
    assert keys is not None
    exact, usual = (
        each.detach() for each in (anchors.double() @ keys.double().T @ keys.double(), anchors @ keys.T @ keys)
    )
    for name in (BY_ROWS, BY_KEYS):
        gate.assert_within_budget(name, contender(FROZEN, name)().gradient, exact, usual)
    rows = SELF.problem().anchors.detach()
    exact, usual = (2 * each @ each.T @ each for each in (rows.double(), rows))
    gate.assert_within_budget(BY_ROWS, contender(SELF, BY_ROWS)().gradient, exact, usual)
    assert FROZEN.flop == 4 * 48 * 160 * 16
    assert BY_KEYS not in names(SELF)


def test_contenders_take_turns_and_the_first_round_is_not_kept() -> None:
    turns: list[str] = []

    def step(name: str) -> contenders.Step:
        def turn() -> Answer:
            turns.append(name)
            return Answer(None, torch.zeros(1, 1))

        return turn

    times = measure.milliseconds({"a": step("a"), "b": step("b")}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_memory_is_that_of_one_pass_in_a_fresh_process() -> None:
    case = Case(3072, 16, 4, "all")
    matrix = 4 * case.rows**2 / 2**20
    assert measure.extra_mib(case, EAGER, 1) > 2 * matrix
    assert measure.extra_mib(case, BY_ROWS, 1) < matrix
    with pytest.raises(RuntimeError, match="measuring the memory of nobody exited with 1"):
        measure.extra_mib(case, "nobody", 1)


def test_run_appends_and_refuses_other_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CASES", (FROZEN,))
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    table = tmp_path / "cpu.csv"
    for _ in range(2):
        run.run(table, rounds=1, threads=1, only="frozen")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(names(FROZEN))
    assert {row["threads"] for row in rows} == {"1"}
    with pytest.raises(SystemExit, match="--case must be part of one of frozen-all-N48"):
        run.run(table, rounds=1, threads=1, only="nothing")
    with pytest.raises(SystemExit, match="must have the columns a,b; it has case,"):
        provenance.write_rows(table, ("a", "b"), [], append=True)


def test_the_figures_come_from_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = next(iter(plot.TITLES))
    origin = (5, 2, "a machine", "2.13", "abc", "2026-01-01")
    timed = [(title, name, 10 + place, 9, 12, 1, 30, "") for place, name in enumerate((OURS, EAGER, BY_ROWS))]
    failed = (title, METRIC, "", "", "", "", "", "RuntimeError: allocate 30771550715904 bytes")
    provenance.write_rows(tmp_path / "cpu.csv", run.FIELDS, [(*row, *origin) for row in (*timed, failed)], append=False)
    swept = [(OURS, count, 128, "all", count, count, count, 4, *origin) for count in (2048, 4096)]
    provenance.write_rows(tmp_path / "sweep.csv", run.SWEEP_FIELDS, swept, append=False)
    plot.plot_contenders(tmp_path / "cpu.csv", tmp_path / "cpu.png")
    plot.plot_sweep(tmp_path / "sweep.csv", tmp_path / "sweep.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("cpu.png", "sweep.png"))


def test_every_committed_number_has_its_origin() -> None:
    with (provenance.RESULTS / "cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = {case.name for case in CASES}
    for row in rows:
        assert row["case"] in known
        assert row["machine"]
        assert row["commit"]
        assert bool(row["note"]) != bool(row["p50_ms"]), row
        assert row["note"] or math.isfinite(float(row["ratio_to_products"]))
