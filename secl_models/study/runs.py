# SPDX-License-Identifier: Apache-2.0
"""Methods times seeds on one data set, each run in a process of its own, finished rows kept in a CSV file.

The labels-only steps that all methods of a seed begin with are taken once. Labels-only runs a second time per seed,
with as many steps as fit the seconds of the method compared. A study may be stopped at any time: called again, it goes
on with the runs that are not finished, each from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from secl_models.data.cases import DataSet
from secl_models.data.folders import held, remove_written
from secl_models.data.layouts import read_data_set
from secl_models.data.splits import make_split
from secl_models.inference.evaluate import evaluate
from secl_models.inference.metrics import MEAN
from secl_models.method.checkpoint import LAST, load
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, choice, listen, tell
from secl_models.options.methods import BASELINE
from secl_models.study.curves import peak_memory, read_curve
from secl_models.study.jobs import Job, job_key, run_folder, start_folder, start_job, warm_steps
from secl_models.study.rows import (
    TIME,
    Point,
    Row,
    add_points,
    curves_file,
    read_rows,
    rounded,
    row_key,
    structure_cell,
    write_rows,
)
from secl_models.study.standing import require_own_rows
from secl_models.train.run import train

SHORTEST = 0.01  # seconds, to which those of a row are rounded


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
        keep_runs: Keep the run folders; those of the warm starts stay in any case, for methods that come later.
        report: Called with a line after every run.

    Returns:
        All rows of the file.

    Raises:
        InputError: A run was refused, as where its folder holds one of other options; rows of finished runs are kept.
            Or the file holds rows of another list, or of other options or cases, or another study writes to it.
    """
    if not jobs:
        raise InputError("--methods", rule="at least one method and one seed", got="none", cure="name some")
    jobs = [replace(job, single=workers > 1 or job.config.train.threads == 1) for job in jobs]
    with held(out, "secl study"), held(file.parent, "secl study", file=file.name):
        require_own_rows(jobs, file)
        _run_all(jobs, out, file, workers, keep_runs, report)
        timed = timed_jobs(jobs, read_rows(file))
        require_own_rows(timed, file)
        _run_all(timed, out, file, workers, keep_runs, report)
        return read_rows(file)


def timed_jobs(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
    """Labels-only jobs whose steps take as long as the last method did with the same seed.

    steps = round(steps of labels-only * seconds of the method / seconds of labels-only)

    Runs of one thread are compared in processor seconds, which other programs on the machine do not stretch.

    Args:
        jobs: All jobs of budget `steps`.
        rows: Finished rows.

    Returns:
        One job per seed for which both runs are finished, on one machine; none where labels-only is the only method.
    """
    found = {row_key(row): row for row in rows}
    method = jobs[-1].method
    timed = []
    for job in jobs:
        if job.method != method or method == BASELINE:
            continue
        baseline = found.get(job_key(replace(job, method=BASELINE)))
        rival = found.get(job_key(job))
        if baseline is not None and rival is not None and _have_one_clock(rival, baseline):
            ours, theirs = (row.processor_seconds if job.single else row.seconds for row in (rival, baseline))
            steps = max(1, round(baseline.steps * ours / max(theirs, SHORTEST)))
            timed.append(replace(job, method=BASELINE, budget=TIME, steps=steps, against=method))
    return timed


def _have_one_clock(rival: Row, baseline: Row) -> bool:
    """Whether seconds of one run say anything about the other, for they come from one machine; if not, it is noted.

    Seconds of one thread beside those of several are refused.
    """
    if rival.machine == baseline.machine:
        return True
    if None not in (rival.threads, baseline.threads) and rival.threads != baseline.threads:
        seed = f"seed {rival.seed}"
        got = f"{rival.threads} for {rival.method} and {baseline.threads} for {baseline.method}, {seed}"
        cure = "call it with the --jobs of before, or name another --csv"
        raise InputError("--jobs", rule="equal threads for runs whose time is compared", got=got, cure=cure)
    where = f"{rival.method} ran on {rival.machine}, labels only on {baseline.machine}"
    machines = [rival.machine, baseline.machine]
    tell("note", f"Seed {rival.seed}: {where}; no run of equal time.", level=NOTE, seed=rival.seed, machines=machines)
    return False


@dataclass
class _Queue:
    """Runs that wait, and the warm starts that they wait for."""

    out: Path
    todo: list[Job]
    running: dict[Future[Finished | None], Job | Path] = field(default_factory=dict)  # a run, or a warm start's folder
    made: set[Path] = field(default_factory=set)  # warm starts

    def begin(self, pool: ProcessPoolExecutor) -> bool:
        """Hand over the first run that can begin, or the first warm start that is missing; False: all wait."""
        for job in self.todo:
            folder = run_folder(job, self.out)
            fresh = warm_steps(job) and not (folder / LAST).is_file()
            start = start_folder(job, self.out) if fresh else None
            if start is None or start in self.made:
                self.todo.remove(job)
                self.running[pool.submit(run_job, job, folder, choice(), start)] = job
                return True
            if start not in self.running.values():
                self.running[pool.submit(run_start, job, start, choice())] = start
                return True
        return False

    def ended(self) -> list[tuple[Job | Path, Future[Finished | None]]]:
        """Wait for some that run."""
        futures, _ = wait(self.running, return_when=FIRST_COMPLETED)
        return [(self.running.pop(future), future) for future in [*self.running] if future in futures]


def _run_all(
    jobs: Sequence[Job], out: Path, file: Path, workers: int, keep_runs: bool, report: Callable[[str], None]
) -> None:
    finished = {row_key(row) for row in read_rows(file)}
    queue = _Queue(out, [job for job in jobs if job_key(job) not in finished])
    count, done, refusal = len(queue.todo), 0, None
    tell("start", f"study: {count} runs to do, {len(jobs) - count} finished before", runs=count)
    # A fresh process per run: its peak memory is its own, and nothing of one run leaks into the next.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=stop_with_parent, max_tasks_per_child=1) as pool:
        while queue.todo or queue.running:
            while len(queue.running) < workers and queue.begin(pool):
                pass
            for what, future in queue.ended():
                try:
                    result = future.result()
                except InputError as error:  # the runs beside it may end
                    refusal = refusal or error
                    queue.todo.clear()
                    continue
                if isinstance(what, Path):
                    queue.made.add(what)
                elif result is not None:
                    done += 1
                    _keep(result, run_folder(what, out), file, keep_runs)
                    report(_line(done, count, result.rows[0]))
    if refusal is not None:
        raise refusal


def _keep(result: Finished, folder: Path, file: Path, keep_run: bool) -> None:
    """Write what a run came to, and only then remove it: a kill in between repeats no more than the evaluation."""
    add_points(curves_file(file), result.points)
    write_rows(file, [*read_rows(file), *result.rows])
    if not keep_run:
        remove_written(folder, whole=True)


def stop_with_parent() -> None:
    """Let this process of a study keep its last step and stop when the study is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        while True:  # the first is noted by a run; one that comes when it has stopped ends the process
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)

    threading.Thread(target=follow, daemon=True).start()


def _line(number: int, count: int, row: Row) -> str:
    what = f"{row.method}, seed {row.seed}, {row.steps} steps ({row.budget})"
    return f"[{number}/{count}] {what}: Dice {row.dice:.1f} % ({row.structures}) in {row.seconds:.0f} s"


def run_start(job: Job, out: Path, voice: tuple[str, bool] | None = None) -> None:
    """Take the labels-only steps that every method of a seed begins with, unless they were taken before.

    Args:
        job: One of the runs.
        out: Folder of the steps; an unfinished one goes on.
        voice: As for `run_job`.

    Raises:
        InputError: The data or an option is at fault.
    """
    steps, job = warm_steps(job), start_job(job)
    if (out / LAST).is_file() and load(out)["step"] >= steps:
        return  # a branch sees for itself whether what these steps heard is what it hears
    data = _prepare(job, voice, f"warm start of seed {job.seed}")
    split = make_split(data, job.labeled, job.seed)
    train(job.config, data, split, out, resume=True, max_steps=steps, progress=False)


def run_job(job: Job, out: Path, voice: tuple[str, bool] | None = None, start: Path | None = None) -> Finished:
    """Train and evaluate.

    Args:
        job: What to run.
        out: Run folder; an unfinished run of the same options goes on.
        voice: How to tell how far it is, see `listen`; None: not at all.
        start: What `run_start` left, for a new run.

    Returns:
        Its rows and its curve.

    Raises:
        InputError: The data or an option is at fault, or the folder holds a run of other options.
    """
    data = _prepare(job, voice, f"{job.method} ({job.budget}) seed {job.seed}")
    split = make_split(data, job.labeled, job.seed)
    summary = train(job.config, data, split, out, resume=True, start=start, progress=False)
    results = evaluate(out, data, split=job.split, progress=False)
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
                dice=rounded(100 * total.dice[0]),
                hd95=rounded(total.hd95[0]),
                assd=rounded(total.assd[0]),
                peak_mib=round(max(summary.peak_memory_mib, peak_memory(out))),
                machine=summary.machine,
                commit=summary.commit or "",
                structures=structure_cell((name, row.dice[0]) for name, row in means.items()),
                options=job_key(job).options,
                split=job.split,
                against=job.against,
                digest=job.digest,
            )
        )
    return Finished(rows, read_curve(out, job_key(job), summary.commit or ""))


def _prepare(job: Job, voice: tuple[str, bool] | None, what: str) -> DataSet:
    """Voice and threads of this process, and the data set."""
    if voice is not None:
        log_format, quiet = voice
        lines = "plain" if log_format == "auto" else log_format
        listen(lines, quiet=quiet, prefix=f"{what}: ")
    if job.single:
        torch.set_num_threads(1)
    return read_data_set(job.data, job.config.data.spacing_from)
