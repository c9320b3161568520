# SPDX-License-Identifier: Apache-2.0
"""A study repeats nothing that is finished, times labels-only fairly, and pairs its differences by seed."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console

from secl_models.data.sampling import Share
from secl_models.data.splits import make_split
from secl_models.method.origin import commit
from secl_models.method.processes import start_fabric
from secl_models.method.profiler import STEP
from secl_models.options.errors import InputError
from secl_models.options.schema import override
from secl_models.report.spread import Spread
from secl_models.study import cost as study_cost
from secl_models.study import runs as study
from secl_models.study.cost import STAGES, cost_markdown, cost_table, measure_cost, write_cost
from secl_models.study.jobs import Job, job_key, run_folder
from secl_models.study.rows import (
    Point,
    Row,
    RunKey,
    add_points,
    curves_file,
    read_points,
    read_rows,
    row_key,
    write_rows,
)
from secl_models.study.runs import run_job, run_study, timed_jobs
from secl_models.study.table import as_markdown, as_table, comparison, paired
from tests.models.runs import TINY, TinyRun, tiny_run

REPOSITORY = Path(__file__).parents[2]
JOB = Job(Path("x/hippocampus"), "hippocampus", 4, "secl", 0)


def _row(method: str, seed: int, dice: float, *, budget: str = "steps", steps: int = 100, seconds: float = 60.0) -> Row:
    structures = f"Anterior={dice + 1};Posterior={dice - 1}"
    return Row(
        "hippocampus", 4, method, budget, seed, steps, seconds, 2 * seconds, "last", dice, 2.0, 1.0, 900.0,
        "cpu", "abc", structures, "hippocampus",
    )  # fmt: skip


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [_row("secl", 0, 78.125), _row("supervised", 1, float("nan"))]
    write_rows(tmp_path / "study.csv", rows)
    found = read_rows(tmp_path / "study.csv")
    assert found[0] == rows[0]
    assert str(found[1]) == str(rows[1])
    assert [path.name for path in tmp_path.iterdir()] == ["study.csv"]
    assert read_rows(tmp_path / "none.csv") == []


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv: a study with the columns data, labeled, method"):
        read_rows(tmp_path / "other.csv")


def test_labels_only_gets_as_many_steps_as_fit_the_seconds_of_its_own_seed() -> None:
    jobs = [replace(JOB, method=method, seed=seed) for seed in (0, 1, 2) for method in ("supervised", "secl")]
    rows = [
        _row("supervised", 0, 70, seconds=50), _row("secl", 0, 72, seconds=120),
        _row("supervised", 1, 70, seconds=40), _row("secl", 1, 72, seconds=130),
        _row("supervised", 2, 70),
    ]  # fmt: skip
    timed = timed_jobs(jobs, rows)
    assert [(job.method, job.budget, job.seed, job.steps) for job in timed] == [
        ("supervised", "time", 0, 240),
        ("supervised", "time", 1, 325),
    ]
    assert timed_jobs([replace(JOB, method="supervised")], rows) == []


def test_runs_side_by_side_are_timed_by_the_processor() -> None:
    jobs = [replace(JOB, method=method, single=True) for method in ("supervised", "secl")]
    slowed = replace(_row("supervised", 0, 70, seconds=90), processor_seconds=50.0)  # by other programs
    rows = [slowed, replace(_row("secl", 0, 72, seconds=130), processor_seconds=120.0)]
    assert timed_jobs(jobs, rows)[0].steps == 240


def test_a_row_stands_for_its_job_and_for_no_other() -> None:
    assert job_key(JOB) == row_key(_row("secl", 0, 1.0))
    others = [
        replace(JOB, seed=1),
        replace(JOB, labeled=3),
        replace(JOB, method="supervised"),
        replace(JOB, budget="time"),
        replace(JOB, overrides=("train.steps=5",)),
        replace(JOB, preset="default"),
        replace(JOB, data=Path("acdc")),
    ]
    assert all(job_key(other) != job_key(JOB) for other in others)


def test_finished_rows_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, *arguments: object) -> None:
            raise AssertionError(f"ran again: {arguments}")

    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    jobs = [replace(JOB, method=method) for method in ("supervised", "secl")]
    rows = [_row("supervised", 0, 70), _row("secl", 0, 71), _row("supervised", 0, 70.5, budget="time")]
    write_rows(tmp_path / "study.csv", rows)
    assert run_study(jobs, tmp_path, tmp_path / "study.csv") == rows
    write_rows(tmp_path / "study.csv", rows[:2])
    with pytest.raises(AssertionError, match="budget='time'"):
        run_study(jobs, tmp_path, tmp_path / "study.csv")


def test_scores_of_two_lists_never_stand_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "study.csv"
    write_rows(file, [_row("secl", 0, 70)])
    with pytest.raises(InputError, match=r"study\.csv: a study of the val list alone; got rows of test\."):
        run_study([replace(JOB, split="val")], tmp_path, file)
    assert read_rows(file) == [_row("secl", 0, 70)]


def test_a_file_from_before_the_lists_were_told_apart_holds_the_test_list(tmp_path: Path) -> None:
    file = tmp_path / "study.csv"
    write_rows(file, [_row("secl", 0, 70)])
    file.write_text("".join(line.rsplit(",", 3)[0] + "\n" for line in file.read_text().splitlines()))
    assert "split" not in file.read_text()
    assert read_rows(file) == [_row("secl", 0, 70)]


def test_a_job_scores_the_list_that_it_names(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run: TinyRun = tiny_run(tmp_path_factory)
    job = Job(run.data.root, "demo", 2, "secl", 3, overrides=TINY, single=True)
    of_test, of_val = (
        run_job(replace(job, split=split), run_folder(job, tmp_path)).rows[0] for split in ("test", "val")
    )
    assert (of_test.split, of_val.split) == ("test", "val")
    assert of_test.dice != of_val.dice


def test_a_job_makes_one_row_per_checkpoint(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run: TinyRun = tiny_run(tmp_path_factory)
    job = Job(run.data.root, "demo", 2, "secl", 3, overrides=TINY, single=True, cases=("a", "b"), against="copy-paste")
    finished = run_job(job, run_folder(job, tmp_path))
    rows, points = finished.rows, finished.points
    assert [row.checkpoint for row in rows] == ["last", "last-largest", "best", "best-largest"]
    assert all(row_key(row) == job_key(job) for row in rows)
    assert {(row.digest, row.against) for row in rows} == {(job.digest, "copy-paste")}
    assert rows[0].steps == 6
    assert 0 <= rows[0].dice <= 100
    assert [part.partition("=")[0] for part in rows[0].structures.split(";")] == list(run.data.classes.values())
    assert [point.step for point in points] == [3, 6]
    assert all(point.key == job_key(job) for point in points)
    assert 0 < points[0].seconds < points[1].seconds
    assert [part.partition("=")[0] for part in points[0].purity.split(";") if part] <= list(run.data.classes.values())


def test_curves_survive_the_file_and_a_repeated_run_replaces_its_own(tmp_path: Path) -> None:
    key = RunKey("x", 4, "secl", "steps", 0, "p a=1")
    points = [Point(*key, step, 1.5 * step, 2.0 * step, 70.5, "RV=50.0", "", "abc") for step in (1, 2)]
    other = replace(points[0], seed=1)
    file = curves_file(tmp_path / "study.csv")
    add_points(file, [*points, other])
    add_points(file, [replace(points[0], dice=80.0)])
    assert read_points(file) == [other, replace(points[0], dice=80.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["study_curves.csv"]
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"study_curves\.csv: curves with the columns data, labeled"):
        read_points(file)


def test_differences_are_paired_by_seed() -> None:
    rows = [_row("secl", seed, dice) for seed, dice in ((0, 72.0), (1, 75.0), (7, 90.0))]
    baseline = [_row("supervised", seed, dice) for seed, dice in ((0, 70.0), (1, 71.0), (2, 99.0))]
    difference = paired(rows, baseline)
    assert difference == Spread(3.0, 2**0.5, 2)
    assert difference.text(sign=True) == "+3.0 ± 1.4"
    assert paired(rows[2:], baseline) is None


def test_the_table_has_mean_spread_and_both_differences() -> None:
    rows = [
        *(_row("supervised", seed, 70.0 + seed) for seed in (0, 1)),
        *(_row("secl", seed, 71.0 + seed, seconds=150) for seed in (0, 1)),
        *(_row("supervised", seed, 71.5 + seed, budget="time", steps=250, seconds=150) for seed in (0, 1)),
        replace(_row("secl", 0, 99.0), checkpoint="best"),
    ]
    supervised, secl, timed = comparison(rows)
    assert supervised[2:8] == (
        "supervised",
        "2",
        "Anterior 71.5 ± 0.7, Posterior 69.5 ± 0.7",
        "70.5 ± 0.7",
        "",
        "",
    )
    assert secl[5:] == (
        "71.5 ± 0.7", "+1.0 ± 0.0", "-0.5 ± 0.0", "2.0 ± 0.0", "1.0 ± 0.0", "100", "2.5", "900",
    )  # fmt: skip
    assert timed[2] == "supervised, equal time"
    assert timed[10] == "250"
    assert as_table(rows).row_count == 1 + 3  # a title for the data set, then the methods
    markdown = as_markdown(rows).splitlines()
    assert len(markdown) == 5
    assert len({line.count("|") for line in markdown}) == 1


def test_the_terminal_shows_distances_and_fits_80_columns() -> None:
    rows = [_row(method, seed, 71.0 + seed) for method in ("supervised", "mean-teacher") for seed in (0, 1)]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(as_table(rows))
    text = console.export_text()
    assert "mean-teacher" in text
    assert "2.0 ± 0.0" not in text
    assert "+0.0 ± 0.0" in text
    assert "2.0" in text  # HD95
    assert "…" not in text


def test_a_wide_terminal_shows_the_spread_of_the_distances_too() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    rows = read_rows(REPOSITORY / "benchmarks" / "results" / "study_first.csv")
    console.print(as_table(rows, width=console.width))
    lines = console.export_text().splitlines()
    first, last = (next(i for i, line in enumerate(lines) if name in line) for name in ("hippocampus", "labels-only"))
    labeled = {(row.data, row.labeled) for row in rows}
    assert sum(map(bool, map(str.strip, lines[first:last]))) == len(comparison(rows)) + len(labeled)  # none wraps
    assert not any("…" in line for line in lines)
    assert any("51.4 ± 2.9" in line and "12.3 ± 0.3" in line for line in lines)


def test_studies_that_differ_in_options_alone_are_told_apart() -> None:
    base = [_row(method, 0, 70.0) for method in ("supervised", "secl")]
    other = [replace(row, options=f"{row.options} contrast.weight=0.5") for row in base]
    assert [line[0] for line in comparison(base)] == ["hippocampus"] * 2
    named = ["hippocampus"] * 2 + ["hippocampus (contrast.weight=0.5)"] * 2
    assert [line[0] for line in comparison([*base, *other])] == named
    assert as_table([*base, *other]).row_count == 2 * (1 + 2)
    elsewhere = [replace(row, data="acdc", options="acdc") for row in base]
    assert [line[0] for line in comparison([*base, *elsewhere])] == ["hippocampus"] * 2 + ["acdc"] * 2


def test_cost_is_the_stages_of_a_step_beside_labels_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    run: TinyRun = tiny_run(tmp_path_factory)
    config = override(run.config, ["train.batch=2"])
    costs = measure_cost(config, run.data, make_split(run.data, 2, 0), ["supervised", "secl+"], 2)
    assert costs["supervised"]["teacher"] == 0.0 < costs["secl+"]["teacher"]
    for cost in costs.values():
        stages = sum(cost[stage] for stage in STAGES)
        assert 0.5 * cost[STEP] < stages < 1.5 * cost[STEP]  # medians of few steps
    head, _, first, second = cost_markdown(costs).splitlines()
    assert first.split("|")[-2].strip() == "1.00"
    assert second.split("|")[-2].strip() == f"{costs['secl+'][STEP] / costs['supervised'][STEP]:.2f}"
    assert head.count("|") == second.count("|")
    assert cost_table(costs).row_count == 2
    assert "drawing and" in str(cost_table(costs).caption)


def test_cost_is_kept_in_a_file_and_needs_unlabelled_cases(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run: TinyRun = tiny_run(tmp_path_factory)
    costs = {"supervised": dict.fromkeys((*STAGES, STEP), 2.0), "secl": dict.fromkeys((*STAGES, STEP), 3.5)}
    write_cost(tmp_path / "cost.csv", costs, torch.device("cpu"))
    with (tmp_path / "cost.csv").open(newline="") as stream:
        supervised, secl = csv.DictReader(stream)
    assert (supervised["student_forward"], secl["step"]) == ("2.000", "3.500")
    assert re.search(f", {torch.backends.cpu.get_cpu_capability()}, \\d+ threads?$", secl["machine"])
    assert secl["commit"] == (commit() or "")
    split = replace(make_split(run.data, 2, 0), unlabeled=())
    with pytest.raises(InputError, match="--methods: unlabelled cases for what listens to a teacher; got none"):
        measure_cost(run.config, run.data, split, ["supervised", "secl"], 2)
    assert measure_cost(run.config, run.data, split, ["supervised"], 2).keys() == {"supervised"}


def test_cost_is_measured_in_the_precision_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: TinyRun = tiny_run(tmp_path_factory)
    asked = []

    def watched(device: torch.device, precision: str, share: Share) -> Fabric:
        asked.append(precision)
        return start_fabric(device, precision, share)

    monkeypatch.setattr(study_cost, "start_fabric", watched)
    config = override(run.config, ["train.precision=bf16-mixed"])
    measure_cost(config, run.data, make_split(run.data, 2, 0), ["supervised"], 2)
    assert asked == ["bf16-mixed"]


def test_no_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one method and one seed"):
        run_study([], tmp_path, tmp_path / "study.csv")
