# SPDX-License-Identifier: Apache-2.0
"""Methods times seeds on one data set, each run in a process of its own, finished rows kept in a CSV file.

Labels-only runs a second time per seed, with as many steps as fit the seconds of the method compared.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.data.folders import held, remove_written
from secl_models.data.layouts import read_data_set
from secl_models.data.splits import make_split
from secl_models.inference.metrics import MEAN
from secl_models.options.errors import InputError
from secl_models.options.events import choice, listen, tell
from secl_models.options.methods import BASELINE
from secl_models.options.schema import load_preset, override
from secl_models.study.curves import read_curve
from secl_models.study.rows import (
    STEPS,
    TIME,
    Point,
    Row,
    RunKey,
    add_points,
    curves_file,
    read_rows,
    row_key,
    write_rows,
)

SHORTEST = 0.01  # seconds, to which those of a row are rounded


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation.

    Attributes:
        data: Folder (or CSV file) of the data set.
        preset: Name or path.
        labeled: Labelled patients.
        method: As in `secl train --method`.
        seed: Of the run and of the draw of labelled patients.
        budget: `steps` (those of the preset) or `time` (the seconds of another method).
        overrides: `key=value` options on top of the preset.
        steps: Optimiser steps; None: the preset's.
        single: Use one thread, for runs side by side.
    """

    data: Path
    preset: str
    labeled: int
    method: str
    seed: int
    budget: str = STEPS
    overrides: tuple[str, ...] = ()
    steps: int | None = None
    single: bool = False


def job_key(job: Job) -> RunKey:
    """What a finished row must share with a job to stand for it."""
    options = " ".join((job.preset, *job.overrides))
    return RunKey(job.data.resolve().name, job.labeled, job.method, job.budget, job.seed, options)


@dataclass(frozen=True)
class Finished:
    """What one run leaves: a row per checkpoint, `last` first, and a point per validation."""

    rows: list[Row]
    points: list[Point]


def run_study(
    jobs: Sequence[Job],
    out: Path,
    file: Path,
    *,
    workers: int = 1,
    keep_runs: bool = False,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """Run what the CSV file does not hold yet, then labels-only at the seconds of each seed's last method.

    Args:
        jobs: Runs of budget `steps`; the last method named is the one that labels-only is timed against.
        out: Folder of the runs.
        file: CSV file, appended to after every run.
        workers: Runs side by side, each with one thread where there are several.
        keep_runs: Keep the run folders.
        report: Called with a line after every run.

    Returns:
        All rows of the file.

    Raises:
        InputError: A run was refused; rows of finished runs are kept. Or another study writes to the folder or file.
    """
    if not jobs:
        raise InputError("--methods", rule="at least one method and one seed", got="none", cure="name some")
    jobs = [replace(job, single=workers > 1) for job in jobs]
    with held(out, "secl study"), held(file.parent, "secl study", file=file.name):
        _run_all(jobs, out, file, workers, keep_runs, report)
        _run_all(timed_jobs(jobs, read_rows(file)), out, file, workers, keep_runs, report)
        return read_rows(file)


def timed_jobs(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
    """Labels-only jobs whose steps take as long as the last method did with the same seed.

    steps = round(steps of labels-only * seconds of the method / seconds of labels-only)

    Runs of one thread are compared in processor seconds, which other programs on the machine do not stretch.

    Args:
        jobs: All jobs of budget `steps`.
        rows: Finished rows.

    Returns:
        One job per seed for which both runs are finished; none where labels-only is the only method.
    """
    found = {row_key(row): row for row in rows}
    method = jobs[-1].method
    timed = []
    for job in jobs:
        if job.method != method or method == BASELINE:
            continue
        baseline = found.get(job_key(replace(job, method=BASELINE)))
        rival = found.get(job_key(job))
        if baseline is not None and rival is not None:
            ours, theirs = (row.processor_seconds if job.single else row.seconds for row in (rival, baseline))
            steps = max(1, round(baseline.steps * ours / max(theirs, SHORTEST)))
            timed.append(replace(job, method=BASELINE, budget=TIME, steps=steps))
    return timed


def _run_all(
    jobs: Sequence[Job], out: Path, file: Path, workers: int, keep_runs: bool, report: Callable[[str], None]
) -> None:
    finished = {row_key(row) for row in read_rows(file)}
    todo = [job for job in jobs if job_key(job) not in finished]
    tell("start", f"study: {len(todo)} runs to do, {len(jobs) - len(todo)} finished before", runs=len(todo))
    # A fresh process per run: its peak memory is its own, and nothing of one run leaks into the next.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[Finished], Job] = {
            pool.submit(run_job, job, run_folder(job, out), keep_runs, choice()): job for job in todo
        }
        try:
            for number, future in enumerate(as_completed(running), start=1):
                finished_run = future.result()
                # The curve first: a kill between the two repeats the run, and its points replace these.
                add_points(curves_file(file), finished_run.points)
                write_rows(file, [*read_rows(file), *finished_run.rows])
                report(_line(number, len(todo), finished_run.rows[0]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _line(number: int, count: int, row: Row) -> str:
    what = f"{row.method}, seed {row.seed}, {row.steps} steps ({row.budget})"
    return f"[{number}/{count}] {what}: Dice {row.dice:.1f} % ({row.structures}) in {row.seconds:.0f} s"


def run_folder(job: Job, out: Path) -> Path:
    """Folder of one run inside the folder of the study."""
    return out / f"{job.data.resolve().name}-{job.labeled}-{job.method}-{job.budget}-seed{job.seed}"


def run_job(job: Job, out: Path, keep: bool, voice: tuple[str, bool] | None = None) -> Finished:
    """Train and evaluate on the test list.

    Args:
        job: What to run.
        out: Run folder; an unfinished one is replaced.
        keep: Leave the folder in place.
        voice: How to tell how far it is, see `listen`; None: not at all.

    Returns:
        Its rows and its curve.

    Raises:
        InputError: The data or an option is at fault.
    """
    import torch  # here, so that the parent process of many workers stays small

    from secl_models.inference.evaluate import evaluate
    from secl_models.train.run import train

    if voice is not None:
        log_format, quiet = voice
        lines = "plain" if log_format == "auto" else log_format
        listen(lines, quiet=quiet, prefix=f"{job.method} ({job.budget}) seed {job.seed}: ")
    if job.single:
        torch.set_num_threads(1)
    config = override(load_preset(job.preset), job.overrides)
    data = read_data_set(job.data, config.data.spacing_from)
    steps = job.steps or config.train.steps
    options = replace(config.train, method=job.method, steps=steps, threads=1 if job.single else config.train.threads)
    config = replace(config, labeled=job.labeled, seed=job.seed, train=options)
    split = make_split(data, job.labeled, job.seed)
    summary = train(config, data, split, out, overwrite=True, progress=False)
    results = evaluate(out, data, progress=False)
    rows = []
    for result in results:
        means = {row.structure: row for row in result.summary}
        total = means.pop(MEAN)
        rows.append(
            Row(
                *job_key(job)[:5],
                steps=summary.steps,
                seconds=round(summary.seconds, 2),
                processor_seconds=round(summary.processor_seconds, 2),
                checkpoint=result.checkpoint,
                dice=_round(100 * total.dice[0]),
                hd95=_round(total.hd95[0]),
                assd=_round(total.assd[0]),
                peak_mib=round(summary.peak_memory_mib),
                machine=summary.machine,
                commit=summary.commit or "",
                structures=";".join(f"{name}={_round(100 * row.dice[0])}" for name, row in means.items()),
                options=job_key(job).options,
            )
        )
    points = read_curve(out, job_key(job), summary.commit or "")
    if not keep:
        remove_written(out, whole=True)
    return Finished(rows, points)


def _round(value: float) -> float:
    return value if math.isnan(value) else round(value, 3)
