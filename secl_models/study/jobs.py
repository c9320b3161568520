# SPDX-License-Identifier: Apache-2.0
"""The runs of a study: what each is, the key of its rows, and the folders of the run and of its warm start."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.options.methods import BASELINE
from secl_models.options.schedules import warm_start_steps
from secl_models.options.schema import RunConfig, load_preset, override, to_dict
from secl_models.study.rows import STEPS, TIME, RunKey, in_order
from secl_models.train.resuming import flat, movable, unheard_before_the_teacher


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
        split: The list that is scored: `test`, or `val` to choose settings by.
        cases: Names of all cases of the data set.
        against: The method whose seconds labels-only has, where the budget is `time`.
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
    split: str = "test"
    cases: tuple[str, ...] = ()
    against: str = ""

    @property
    def digest(self) -> str:
        """Of what its scores follow from beside the key: all options as they suit the method, and the cases."""
        config = self.config
        settled = flat(to_dict(replace(config, contrast=config.contrast.settled(self.method))))
        free = {"preset", *(("train.steps",) if self.budget == TIME else ())}  # by the clock, and so by chance
        heard = {name: value for name, value in settled.items() if name not in free and not movable(name)}
        return _digest([heard, sorted(self.cases)])

    @property
    def config(self) -> RunConfig:
        """All options of the run."""
        config = override(load_preset(self.preset), self.overrides)
        steps, threads = self.steps or config.train.steps, 1 if self.single else config.train.threads
        options = replace(config.train, method=self.method, steps=steps, threads=threads)
        return replace(config, labeled=self.labeled, seed=self.seed, train=options)


def job_key(job: Job) -> RunKey:
    """What a finished row must share with a job to stand for it."""
    options = in_order(" ".join((job.preset, *job.overrides)))
    return RunKey(job.data.resolve().name, job.labeled, job.method, job.budget, job.seed, options)


def run_folder(job: Job, out: Path) -> Path:
    """Folder of one run inside the folder of the study; with a digest of the options on top of the preset."""
    name = f"{job.data.resolve().name}-{job.labeled}-{job.method}-{job.budget}-seed{job.seed}"
    return out / (f"{name}-{_digest(job.overrides)}" if job.overrides else name)


def warm_steps(job: Job) -> int:
    """Labels-only steps that the run shares with all methods; 0 where it has another length than they."""
    options = job.config.train
    return warm_start_steps(options.steps, options.warm_start) if job.budget == STEPS else 0


def start_job(job: Job) -> Job:
    """The labels-only run of the warm start: without options that labels-only steps do not hear."""
    heard = (option for option in job.overrides if not _unheard(option))
    return replace(job, method=BASELINE, overrides=tuple(heard))


def _unheard(option: str) -> bool:
    name = option.partition("=")[0]
    return unheard_before_the_teacher(name) and not movable(name)


def start_folder(job: Job, out: Path) -> Path:
    """Folder of the warm start: the same for all runs that are alike until the teacher is listened to."""
    options = {name: value for name, value in flat(to_dict(job.config)).items() if not unheard_before_the_teacher(name)}
    name = f"{job.data.resolve().name}-{job.labeled}-start-seed{job.seed}"
    return out / f"{name}-{_digest(options)}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
