# SPDX-License-Identifier: Apache-2.0
"""The harness: nothing wrong is timed, a failure is a row that says so, memory is that of the step alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import secl_ops
from benchmarks import contenders, gate, limits, load, measure, packages, provenance, published, rivals, run
from benchmarks.cases import Answer, Case, Problem, truth
from benchmarks.contenders import BY_KEYS, BY_ROWS, COMPILED, NATIVE, Step, contender, names
from tests.budget import assert_within_budget
from tests.conftest import skip_or_fail
from tests.exact import exact
from tests.oracle import Call, present

SELF = Case("self", 96, 16, classes=4, denominator="negatives")
FROZEN = Case("frozen", 48, 16, 160, classes=4)
BOTH = Case("both", 48, 16, 160, both=True, classes=4)
PAIRS = Case("pairs", 48, 16, 160, layout="pairs", denominator="negatives", temperature=0.2)
PROTOTYPE = Case("prototype", 48, 16, 65, layout="prototype", denominator="negatives", temperature=0.5)
EVERY = (
    SELF,
    replace(SELF, denominator="all"),
    FROZEN,
    replace(FROZEN, denominator="negatives"),
    BOTH,
    PAIRS,
    PROTOTYPE,
)
EAGER, CHUNKED, METRIC, LINEAR = (
    "eager torch", "chunked + checkpoint", "pytorch-metric-learning", "F.linear_cross_entropy",
)  # fmt: skip


@pytest.fixture(params=EVERY, ids=lambda case: f"{case.name}-{case.denominator}")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(autouse=True)
def _without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile and KeOps take half a minute a form; the benchmark itself sees them run."""

    def refuse(problem: Problem) -> rivals.Loss:
        raise RuntimeError("no compiler: pretended")

    monkeypatch.setitem(contenders.LOSSES, COMPILED, refuse)
    monkeypatch.setitem(contenders.LOSSES, "KeOps", refuse)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Options:
    """A short run on a quiet machine into a table of its own, its memory not measured and not capped."""
    monkeypatch.setattr(load, "others", lambda _: 0.0)
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    return run.Options(tmp_path / "cases.csv", rounds=3, threads=1)


def wrong(problem: Problem) -> Callable[[], Tensor]:
    return lambda: rivals.dense(problem) * 1.001


def test_the_truth_in_blocks_is_that_of_the_whole(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(case, rows=case.rows // 3, keys=case.keys // 3)
    whole, problem = truth.__wrapped__(case), case.problem()
    monkeypatch.setattr("benchmarks.cases.TRUTH_PAIRS", 5 * (case.keys or case.rows))
    blocks = truth.__wrapped__(case)
    call = Call(
        problem.anchors.detach(), problem.labels, None if problem.keys is None else problem.keys.detach(),
        problem.key_labels, case.temperature, case.denominator,
    ).to(torch.float64)  # fmt: skip
    right, slopes = exact(call, ("anchors", "keys")[: len(problem.leaves)])
    found, usual = ((present(each.loss), *each.gradients) for each in (blocks, whole))
    for actual, true, plain in zip(found, (right, *slopes), usual, strict=True):
        assert_within_budget("blocks", actual, true, plain, amplification=4 / case.temperature)
    loss = secl_ops.info_nce(
        problem.anchors.double(), None if problem.keys is None else problem.keys.double(),
        anchor_labels=problem.labels, key_labels=problem.key_labels, temperature=case.temperature,
        denominator=case.denominator, backend="reference",
    )  # fmt: skip
    gradients = tuple(each.double() for each in torch.autograd.grad(loss, problem.leaves))
    near = truth.__wrapped__(case, torch.float32)
    gate.hold("whole", Answer(loss.detach(), gradients), whole, near, case.temperature, torch.float32)


@pytest.mark.parametrize("name", [NATIVE, EAGER, CHUNKED, LINEAR, METRIC])
def test_contenders_are_right_or_say_why_not(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "BLOCK_ROWS", 40)
    if name == NATIVE and secl_ops.backends()["native"]:
        skip_or_fail("native", "the native backend is not built")
    if name == METRIC and find_spec("pytorch_metric_learning") is None:
        skip_or_fail("rivals", "pytorch-metric-learning is not installed")
    if name == LINEAR and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        skip_or_fail("rivals", f"torch {torch.__version__} has no linear_cross_entropy")
    if name == LINEAR and (case.kind == "self" or (case.layout == "classes" and case.denominator == "negatives")):
        with pytest.raises(packages.CannotExpressError, match="cannot express it"):
            contender(case, name)
        return
    gate.agree(case, name, contender(case, name)())


@pytest.mark.parametrize(("name", "other"), [(CHUNKED, EAGER), (EAGER, CHUNKED)])
def test_a_wrong_rival_is_not_timed(name: str, other: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.LOSSES, name, wrong)
    admitted = gate.admit(case)
    assert name not in admitted.steps
    assert admitted.refused[name].startswith(f"wrong: {name}, {case.name}, ")
    assert other in admitted.steps


@pytest.mark.parametrize("place", [0, 1])
def test_a_right_loss_with_a_wrong_gradient_is_seen(place: int) -> None:
    answer = contender(BOTH, EAGER)()
    turned = tuple(each.roll(1, 0) if number == place else each for number, each in enumerate(answer.gradients))
    with pytest.raises(AssertionError, match=f"gradient of the {('anchors', 'keys')[place]}: error"):
        gate.agree(BOTH, EAGER, Answer(answer.loss, turned))


def test_nothing_is_timed_when_ours_is_wrong(monkeypatch: pytest.MonkeyPatch, options: run.Options) -> None:
    monkeypatch.setitem(contenders.LOSSES, NATIVE, wrong)
    with pytest.raises(SystemExit, match="nothing was timed"):
        run.run(options, cases=[SELF])
    assert not options.out.exists()


def test_a_failing_rival_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, options: run.Options) -> None:
    def absent(problem: Problem) -> rivals.Loss:
        raise ModuleNotFoundError("No module named 'pytorch_metric_learning'")

    monkeypatch.setitem(contenders.LOSSES, METRIC, absent)
    run.run(options, cases=[FROZEN])
    rows = {row["contender"]: row for row in provenance.read_rows(options.out)}
    assert set(rows) == set(names(FROZEN))
    assert rows[METRIC]["note"] == "ModuleNotFoundError: No module named 'pytorch_metric_learning'"
    assert [provenance.fault(row) for row in rows.values()] == [None] * len(rows)
    bare = {name: float(rows[name]["share_of_limit"]) for name in (BY_ROWS, BY_KEYS)}
    assert max(bare.values()) == 1.0
    assert float(rows[EAGER]["p20_ms"]) <= float(rows[EAGER]["p50_ms"]) <= float(rows[EAGER]["p80_ms"])


def test_a_case_above_the_budget_is_left_out_by_name(options: run.Options) -> None:
    run.run(replace(options, budget=6e-4), cases=[SELF, FROZEN])
    rows = provenance.read_rows(options.out)
    left = [row for row in rows if row["contender"] == "every contender"]
    assert [row["case"] for row in left] == ["self"]
    assert "--budget raises it" in left[0]["note"]
    assert provenance.fault(left[0]) is None


def test_a_contender_above_its_pairs_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.PAIRS, CHUNKED, 48 * 160 - 1)
    assert gate.admit(FROZEN).refused[CHUNKED].startswith(f"left out: 0 M pairs; {CHUNKED} gets")
    assert CHUNKED in gate.admit(PROTOTYPE).steps


def test_a_contender_that_is_not_asked_is_a_row(options: run.Options) -> None:
    run.run(replace(options, without=(EAGER, CHUNKED)), cases=[PROTOTYPE])
    rows = provenance.read_rows(options.out)
    assert {row["contender"] for row in rows if row["note"] == "left out: by --without"} == {EAGER, CHUNKED}


@pytest.mark.parametrize("block", [36, 1024])  # rows that do not end with a block, and one block
def test_yardsticks_multiply_what_the_loss_must(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "PRODUCT_ROWS", block)
    anchors, keys, *_ = FROZEN.problem()
    assert keys is not None

    def check(case: Case, name: str, place: int, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        exact, usual = (of(*pair).detach() for pair in ((anchors.double(), keys.double()), (anchors, keys)))
        assert_within_budget(name, contender(case, name)().gradients[place], exact, usual)

    for name in (BY_ROWS, BY_KEYS):
        check(FROZEN, name, 0, lambda a, k: a @ k.T @ k)
    check(BOTH, BY_ROWS, 0, lambda a, k: a @ k.T @ k)
    check(BOTH, BY_ROWS, 1, lambda a, k: k @ a.T @ a)
    rows = SELF.problem().anchors.detach()
    exact, usual = (2 * each @ each.T @ each for each in (rows.double(), rows))
    assert_within_budget(BY_ROWS, contender(SELF, BY_ROWS)().gradients[0], exact, usual)
    assert [each.flop // (each.pairs * 16) for each in (SELF, FROZEN, BOTH)] == [6, 4, 8]
    assert BY_KEYS not in names(SELF)


def test_contenders_take_turns_and_a_slow_one_is_timed_less_often() -> None:
    turns: list[str] = []

    class Clock(measure.Clock):
        def __call__(self, work: measure.Work) -> float:
            work()
            return 1500.0 if turns[-1] == "slow" else 1.0

    steps = {name: (lambda name=name: turns.append(name)) for name in ("fast", "faster", "slow")}
    times = measure.milliseconds(steps, 9, Clock(), patience=2.0)
    assert turns[:3] == ["fast", "faster", "slow"]
    assert [len(values) for values in times.values()] == [9, 9, 1]
    assert sorted(turns[3:6]) == ["fast", "faster", "slow"]
    rounds = {tuple(turns[first : first + 2]) for first in range(6, len(turns), 2)}
    assert rounds == {("fast", "faster"), ("faster", "fast")}  # no one always comes after the same other
    again = turns.copy()
    turns.clear()
    measure.milliseconds(steps, 9, Clock(), patience=2.0)
    assert turns == again


def test_a_contender_that_fails_while_it_is_timed_is_a_row_that_says_so(
    options: run.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = dict.fromkeys(names(SELF), 0)

    def fails_at_the_third_call(case: Case, name: str) -> Step:
        step = contender(case, name)

        def work() -> Answer:
            calls[name] += 1
            if name == EAGER and calls[name] == 3:
                raise MemoryError("no room")
            return step()

        return work

    monkeypatch.setattr(gate, "contender", fails_at_the_third_call)
    run.run(options, only="self", cases=[SELF])
    rows = {row["contender"]: row for row in provenance.read_rows(options.out)}
    assert rows[EAGER]["p50_ms"] == ""
    assert rows[EAGER]["note"] == "MemoryError: no room"
    assert rows[NATIVE]["p50_ms"] != ""


def test_an_error_that_no_one_takes_is_raised() -> None:
    def fails() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        measure.milliseconds({"eager": fails}, 1, measure.Clock())


def test_memory_is_that_of_one_pass_in_a_fresh_process() -> None:
    case = Case("memory", 3072, 16)
    matrix = 4 * case.rows**2 / 2**20
    assert measure.extra_mib(case, EAGER, 1) > 2 * matrix
    assert measure.extra_mib(case, BY_ROWS, 1) < matrix
    with pytest.raises(RuntimeError, match="measuring the memory of nobody exited with 1: KeyError"):
        measure.extra_mib(case, "nobody", 1)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        measure.extra_mib(replace(case, rows=8192), EAGER, 1, spare=1 << 27)


def test_run_appends_and_refuses_other_columns(options: run.Options) -> None:
    for _ in range(2):
        run.run(options, only="fro", cases=[SELF, FROZEN])
    rows = provenance.read_rows(options.out)
    assert len(rows) == 2 * len(names(FROZEN))
    assert {(row["case"], row["threads"]) for row in rows} == {("frozen", "1")}
    with pytest.raises(SystemExit, match="--case must be part of one of self, frozen"):
        run.run(options, only="nothing", cases=[SELF, FROZEN])
    with pytest.raises(SystemExit, match="must have the columns a,b; it has case,"):
        provenance.write_rows(options.out, ("a", "b"), [], append=True)


@pytest.mark.parametrize(
    ("width", "kind", "milliseconds"),  # of 790 TFLOP/s, and of 16 exponentials a clock
    [(64, "both", 2.78), (128, "both", 5.57), (256, "both", 11.1), (64, "frozen", 1.39), (128, "frozen", 2.78),
     (256, "frozen", 5.57), (64, "self", 2.55), (128, "self", 4.18), (256, "self", 8.35)],
)  # fmt: skip
def test_floors_follow_from_the_two_ceilings(width: int, kind: str, milliseconds: float) -> None:
    case = published.square(65536, width, kind).on("cuda", "bfloat16")
    floor = limits.floor_ms(case, "NVIDIA H200")
    assert floor is not None
    assert floor[0] == pytest.approx(milliseconds, rel=5e-3)
    assert limits.floor_ms(case, "NVIDIA A100") is None
    assert limits.floor_ms(replace(case, dtype="float32"), "NVIDIA H200") is None


def test_the_sweep_and_the_listing_name_every_size() -> None:
    assert published.SQUARE_ROWS[0] == 1024
    assert published.SQUARE_ROWS[-1] == 262_144
    lines = published.listing().splitlines()
    assert len(lines) == 1 + len(published.CASES)
    assert all(case.source for case in published.PUBLISHED)
    assert len({case.name for case in published.CASES}) == len(published.CASES)


@pytest.mark.parametrize("table", sorted(provenance.RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_every_committed_number_has_its_origin(table: Path) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    if "versions" in rows[0]:  # the tables of this harness; the other commands have columns of their own
        assert tuple(rows[0])[-len(provenance.ORIGIN) :] == provenance.ORIGIN
        assert [fault for row in rows if (fault := provenance.fault(row))] == []
    for row in rows:
        assert row["commit"]


def test_a_number_without_its_origin_is_seen() -> None:
    row = dict.fromkeys(provenance.ORIGIN, "x") | {"p50_ms": "1", "note": "", "extra_mib": "1"}
    assert provenance.fault(row) is None
    assert provenance.fault(row | {"commit": ""}) == "no commit"
    assert provenance.fault(row | {"note": "left out"}) is not None
    assert provenance.fault(row | {"p50_ms": ""}) is not None
    assert provenance.fault(row | {"extra_mib": ""}) is not None
    assert provenance.fault(row | {"extra_mib": "", "note": "memory: it died"}) is None


def test_a_step_whose_memory_cannot_be_measured_keeps_its_time(
    options: run.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(case: Case, name: str, threads: int) -> float:
        raise RuntimeError("it died")

    monkeypatch.setattr(run, "extra_mib", dies)
    run.run(options, cases=[PROTOTYPE])
    rows = [row for row in provenance.read_rows(options.out) if row["p50_ms"]]
    assert {row["note"] for row in rows} == {"memory: RuntimeError: it died"}
    assert [provenance.fault(row) for row in rows] == [None] * len(rows)
