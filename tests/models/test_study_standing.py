# SPDX-License-Identifier: Apache-2.0
"""A finished row stands for a run of the same options on the same cases, timed by the same clock, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data.splits import make_split
from secl_models.method.learner import Learner
from secl_models.options.errors import InputError
from secl_models.options.events import listen
from secl_models.options.schema import override
from secl_models.study import cost, runs
from secl_models.study.jobs import Job, job_key
from secl_models.study.pictures import gain_figure
from secl_models.study.rows import Row, read_rows, row_key, write_rows
from secl_models.study.runs import run_start, timed_jobs
from secl_models.study.standing import require_own_rows
from secl_models.study.table import comparison
from tests.models.runs import TINY, tiny_run

PRESET = "extends: default\ntrain:\n  steps: 40\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "mine.yaml").write_text(PRESET)
    return Job(tmp_path / "heart.csv", str(tmp_path / "mine.yaml"), 4, "secl+", 0, cases=("a", "b"))


def row_of(job: Job, dice: float = 70.0, *, seconds: float = 60.0, threads: int = 1, digest: str | None = None) -> Row:
    key = job_key(job)
    return Row(
        *key[:5], steps=40, seconds=seconds, processor_seconds=seconds, checkpoint="last", dice=dice, hd95=2.0,
        assd=1.0, peak_mib=900.0, machine=f"cpu, {threads} thread{'s' * (threads > 1)}", commit="",
        structures="ring=70.0", options=key.options, against=job.against,
        digest=job.digest if digest is None else digest,
    )  # fmt: skip


@contextmanager
def heard(capsys: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    lines: list[str] = []
    listen("plain")
    yield lines
    lines += capsys.readouterr().err.splitlines()


def test_a_preset_that_was_edited_is_another_study(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "study.csv"
    write_rows(file, [row_of(job)])
    require_own_rows([job], file)
    for edit in ("  lr: 1e-4\n", "contrast:\n  weight: 0.9\n"):
        (tmp_path / "mine.yaml").write_text(PRESET + edit)
        with pytest.raises(
            InputError, match=r"study\.csv: rows of the options and cases of this study; got a row of secl\+"
        ):
            require_own_rows([job], file)
    (tmp_path / "mine.yaml").write_text(PRESET + "  threads: 2\n  device: cpu\n")  # where it runs is no matter
    require_own_rows([job], file)


def test_another_method_s_own_contrast_is_no_other_study(job: Job, tmp_path: Path) -> None:
    """What suits the method is part of the digest, whether it is written down or open."""
    assert job.digest == replace(job, overrides=("contrast.strategy=hard", "contrast.weight=0.1")).digest
    assert job.digest != replace(job, overrides=("contrast.strategy=uniform", "contrast.weight=0.02")).digest


def test_cases_of_the_same_folder_name_are_another_study(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "study.csv"
    write_rows(file, [row_of(job)])
    other = replace(job, data=tmp_path / "elsewhere" / "heart.csv", cases=("a", "c"))
    assert job_key(other) == job_key(job)
    with pytest.raises(InputError, match="name another --csv and --out"):
        require_own_rows([other], file)


def test_the_command_names_the_cases_of_its_data_set(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, planned = tiny_run(tmp_path_factory).data, []

    def only_plan(jobs: list[Job], *_: object, **__: object) -> list[Row]:
        planned.extend(jobs)
        return [row_of(job) for job in jobs]

    monkeypatch.setattr(runs, "run_study", only_plan)
    command = [
        "study",
        "--data",
        str(data.root),
        "--preset",
        "demo",
        "--labeled",
        "2",
        "--methods",
        "secl",
        "--seeds",
        "0",
    ]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert [job.cases for job in planned] == [tuple(case.name for case in data.cases)]


def test_rows_of_an_earlier_version_stand_and_are_named(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "study.csv", [row_of(job, digest="")])
    with heard(capsys) as lines:
        require_own_rows([job, replace(job, seed=1)], tmp_path / "study.csv")
    assert any("1 finished runs are of an earlier version" in line for line in lines)


def test_the_order_of_options_is_no_matter_and_the_last_of_equal_names_counts(job: Job, tmp_path: Path) -> None:
    given = ("mix.whole=0.1", "train.lr=0.01", "data.patch=[64, 64]", "mix.whole=0.25")
    other = ("train.lr=0.01", "mix.whole=0.25", "data.patch=[64, 64]")
    assert job_key(replace(job, overrides=given)) == job_key(replace(job, overrides=other))
    assert job_key(replace(job, overrides=given)) != job_key(replace(job, overrides=given[:-1]))
    old = row_of(replace(job, overrides=other))
    write_rows(tmp_path / "study.csv", [replace(old, options=" ".join((job.preset, *given)))])
    assert row_key(read_rows(tmp_path / "study.csv")[0]) == job_key(replace(job, overrides=other))


def test_labels_only_at_equal_time_are_compared_with_the_method_whose_time_it_is(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [replace(job, method=method) for method in ("supervised", "copy-paste", "secl")]
    rows = [row_of(jobs[0], 70), row_of(jobs[1], 72, seconds=90), row_of(jobs[2], 73, seconds=240)]
    (timed,) = timed_jobs(jobs[:2], rows)
    assert (timed.steps, timed.against) == (60, "copy-paste")
    rows.append(row_of(timed, 71))
    write_rows(tmp_path / "study.csv", rows)
    (later,) = timed_jobs(jobs, rows)
    assert (later.steps, later.against) == (160, "secl")
    with heard(capsys) as lines:
        require_own_rows([later], tmp_path / "study.csv")
    assert any("have the seconds of copy-paste: named last before" in line for line in lines)
    supervised, mixing, secl, at_equal_time = comparison(rows)
    assert [line[7] for line in (supervised, mixing, secl)] == ["", "+1.0", "-"]
    assert at_equal_time[2] == "supervised, time of copy-paste"
    figure = gain_figure(rows)
    assert figure is not None
    assert [len(axes.patches) for axes in figure.axes] == [2, 1]


def test_seconds_of_one_thread_are_never_set_beside_those_of_several(job: Job) -> None:
    jobs = [replace(job, method=method) for method in ("supervised", "secl+")]
    rows = [row_of(jobs[0]), row_of(jobs[1], threads=2)]
    with pytest.raises(InputError, match=r"--jobs: equal threads .* got 2 for secl\+ and 1 for supervised, seed 0"):
        timed_jobs(jobs, rows)


def test_seconds_of_one_machine_are_never_set_beside_those_of_another(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [replace(job, method=method, seed=seed) for method in ("supervised", "secl+") for seed in (0, 1)]
    rows = [row_of(each) for each in jobs]
    rows[2] = replace(rows[2], machine="cpu, AVX512, 1 thread")
    with heard(capsys) as lines:
        assert [(later.seed, later.steps) for later in timed_jobs(jobs, rows)] == [(1, 40)]
    assert lines == ["Seed 0: secl+ ran on cpu, AVX512, 1 thread, labels only on cpu, 1 thread; no run of "
                     "equal time."]  # fmt: skip


def test_a_warm_start_outlives_an_edit_that_it_does_not_hear(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\n")
    data = tiny_run(tmp_path_factory).data.root
    job = Job(data, str(tmp_path / "mine.yaml"), 2, "secl", 0, overrides=TINY, single=True)
    run_start(job, tmp_path / "start")
    (tmp_path / "mine.yaml").write_text("extends: demo\ncontrast:\n  temperature: 0.2\n")
    monkeypatch.setattr(Learner, "step", lambda *_, **__: pytest.fail("taken again"))
    run_start(job, tmp_path / "start")


def test_each_method_is_timed_with_its_own_contrast(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = tiny_run(tmp_path_factory), {}

    def step(learner: Learner, ramp: float) -> None:
        objective = learner.objective
        found[learner.config.train.method] = (objective.strategy, objective.weights["anatomical"])

    monkeypatch.setattr(Learner, "step", step)
    config = override(run.config, ["contrast.weight=null", "contrast.strategy=auto", "train.batch=2"])
    cost.measure_cost(config, run.data, make_split(run.data, 2, 0), ["secl", "secl+"], 2)
    assert found == {"secl": ("uniform", 0.02), "secl+": ("hard", 0.1)}
