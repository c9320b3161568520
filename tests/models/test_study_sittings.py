# SPDX-License-Identifier: Apache-2.0
"""A study in many sittings: killed at any moment and called again, it ends with the rows of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secl_models.data.folders import held
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.options.errors import InputError
from secl_models.study import runs as study
from secl_models.study.jobs import Job, run_folder, start_folder, warm_steps
from secl_models.study.rows import Row, curves_file, read_points, read_rows
from secl_models.study.runs import _Queue, run_job, run_start, run_study
from tests.models.ranks import FORK, finish, start
from tests.models.runs import TINY, tiny_run

LONG = (*TINY, "train.steps=100", "train.warm_start=0.2", "train.checkpoint_every=5", "train.validate_every=50")


@pytest.fixture
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tiny_run(tmp_path_factory).data.root, "demo", 2, "secl", 0, overrides=TINY, single=True)


def bare(rows: list[Row]) -> list[Row]:
    """Rows without what a clock or the size of a process decides."""
    return [replace(row, seconds=0, processor_seconds=0, peak_mib=0) for row in rows]


class Forked(ProcessPoolExecutor):
    """Processes that need not import torch again."""

    def __init__(self, workers: int, *, mp_context: object, initializer: Callable[[], None], **_: int) -> None:
        super().__init__(workers, FORK, initializer)


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that every step from now on is added to."""
    taken: list[int] = []
    original = Learner.step

    def counting(learner: Learner, ramp: float, **options: bool) -> Any:
        taken.append(learner.done)
        return original(learner, ramp, **options)

    monkeypatch.setattr(Learner, "step", counting)
    return taken


def once(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_run_goes_on_and_its_row_is_that_of_one_that_was_not(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_job(job, tmp_path / "whole")
    original = Learner.step

    def dies(learner: Learner, ramp: float, **options: bool) -> Any:
        if learner.done == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(learner, ramp, **options)

    def task() -> None:
        setattr(Learner, "step", dies)  # noqa: B010  # mypy lets no other function stand there
        run_job(job, tmp_path / "killed")

    assert finish(start(task)) == -signal.SIGKILL
    assert checkpoint.load(tmp_path / "killed")["step"] == 3
    taken = steps_taken(monkeypatch)
    found = run_job(job, tmp_path / "killed")
    assert taken == [3, 4, 5]
    assert bare(found.rows) == bare(whole.rows)
    assert [point.step for point in found.points] == [3, 6]


def test_a_study_that_is_killed_stops_its_runs_and_goes_on_with_them(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "ProcessPoolExecutor", Forked)
    job = replace(job, overrides=LONG)
    jobs = [replace(job, method=method) for method in ("supervised", "copy-paste")]
    out, file = tmp_path / "study", tmp_path / "rows.csv"
    process = start(lambda: run_study(jobs, out, file, keep_runs=True))
    once(lambda: file.is_file() and (run_folder(jobs[1], out) / checkpoint.LAST).is_file())
    process.kill()
    assert finish(process) == -signal.SIGKILL

    def let_go() -> bool:
        try:
            with held(run_folder(jobs[1], out), "test"):
                return True
        except InputError:
            return False

    once(let_go)
    reached = checkpoint.load(run_folder(jobs[1], out))["step"]
    assert 20 <= reached < 100
    begun = {path.name: path.stat().st_mtime_ns for path in start_folder(job, out).glob("*.pt")}
    finished = read_rows(file)
    assert [row.method for row in finished if row.checkpoint == "last"] == ["supervised"]
    told: list[str] = []
    rows = run_study(jobs, out, file, keep_runs=True, report=told.append)
    assert rows[: len(finished)] == finished
    assert [line.partition(":")[0] for line in told] == [
        "[1/1] copy-paste, seed 0, 100 steps (steps)",
        f"[1/1] supervised, seed 0, {rows[-1].steps} steps (time)",
    ]
    assert {path.name: path.stat().st_mtime_ns for path in start_folder(job, out).glob("*.pt")} == begun
    whole = run_job(jobs[1], tmp_path / "whole")  # never divided, never stopped
    assert bare([row for row in rows if row.method == "copy-paste"]) == bare(whole.rows)
    assert [point.step for point in read_points(curves_file(file)) if point.method == "copy-paste"] == [50, 100]


class Pool:
    """Takes tasks and runs none."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, Path]] = []

    def submit(self, task: Callable[..., object], job: Job, folder: Path, *_: object) -> Future[Any]:
        self.tasks.append((task.__name__, folder))
        return Future()


def test_a_run_waits_for_its_own_warm_start_alone(job: Job, tmp_path: Path) -> None:
    jobs = [replace(job, method=method, seed=seed) for seed in (0, 1) for method in ("supervised", "secl")]
    first, second = (start_folder(jobs[place], tmp_path) for place in (0, 2))
    queue, pool = _Queue(tmp_path, list(jobs)), Pool()

    def begin() -> bool:
        taken: Any = pool
        return queue.begin(taken)

    assert [begin() for _ in range(3)] == [True, True, False]
    assert pool.tasks == [("run_start", first), ("run_start", second)]
    queue.made.add(second)
    assert [begin() for _ in range(3)] == [True, True, False]
    assert pool.tasks[2:] == [("run_job", run_folder(job, tmp_path)) for job in jobs[2:]]
    (run_folder(jobs[1], tmp_path)).mkdir()
    (run_folder(jobs[1], tmp_path) / checkpoint.LAST).touch()  # it has begun and needs no warm start
    assert [begin() for _ in range(2)] == [True, False]
    assert pool.tasks[4:] == [("run_job", run_folder(jobs[1], tmp_path))]
    assert queue.todo == [jobs[0]]


def test_runs_that_differ_in_what_the_teacher_says_share_a_warm_start(job: Job, tmp_path: Path) -> None:
    def folder(*options: str, **fields: Any) -> Path:
        return start_folder(replace(job, overrides=(*TINY, *options), **fields), tmp_path)

    assert warm_steps(job) == 4
    assert folder(method="secl+") == folder("contrast.weight=0.1", "mix.side=0.5", "train.threads=0") == folder()
    others = [folder("train.lr=0.1"), folder("contrast.confidence=0.5"), folder("train.warm_start=0.5"), folder(seed=1)]
    assert len({folder(), *others, folder(steps=7)}) == 6
    assert warm_steps(replace(job, budget="time", steps=9)) == 0


def test_a_warm_start_that_was_made_is_not_made_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = steps_taken(monkeypatch)
    for options in ((), ("contrast.weight=0.1", "mix.side=0.5")):
        run_start(replace(job, overrides=(*job.overrides, *options)), tmp_path / "start")
    assert taken == [0, 1, 2, 3]
    assert json.loads((tmp_path / "start" / "summary.json").read_text())["method"] == "supervised"
    run_job(job, tmp_path / "run", start=tmp_path / "start")
    assert taken[4:] == [4, 5]


def test_a_refused_run_lets_those_beside_it_end(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of a run that took hours is written though another one was at fault."""

    class Threads(ProcessPoolExecutor):
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Threads:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, task: Any, job: Job, folder: Path, *rest: Any) -> Future[Any]:  # type: ignore[override]
            future: Future[Any] = Future()
            try:
                if job.method == "secl" and task is run_job:
                    raise InputError("loss", rule="finite", got="nan", cure="lower train.lr")
                future.set_result(task(job, folder, None, *rest[1:]))
            except InputError as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(study, "ProcessPoolExecutor", Threads)
    jobs = [replace(job, method=method) for method in ("secl", "supervised")]
    with pytest.raises(InputError, match="loss: finite"):
        run_study(jobs, tmp_path / "out", tmp_path / "rows.csv", workers=2, report=lambda _: None)
    assert {row.method for row in read_rows(tmp_path / "rows.csv")} == {"supervised"}
