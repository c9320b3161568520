# SPDX-License-Identifier: Apache-2.0
"""What changes while a run goes on, and how it comes back from a checkpoint of this very run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.method import checkpoint
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, from_dict, to_dict

if TYPE_CHECKING:
    from secl_models.method.learner import Learner


@dataclass
class Run:
    """A learner, and everything around it that changes while a run goes on."""

    learner: Learner
    out: Path
    classes: dict[int, str]
    preprocess: Preprocess
    validation: Sequence[Volume]
    cases: dict[str, list[str]]  # names in each part of the split
    notes: tuple[str, ...]
    seconds: float = 0.0  # spent in steps
    processor_seconds: float = 0.0  # of all threads; unlike the clock, it does not count other programs
    best: dict[str, float] = field(default_factory=dict)  # dice and step
    last_dice: float | None = None
    found: dict[str, float] = field(default_factory=dict)  # Dice of each structure at the last validation
    picture: npt.NDArray[np.uint8] | None = None  # of the validation at this step
    pending: list[Tensor] = field(default_factory=list)  # losses not looked at yet
    looked: tuple[int, float] = (0, 0.0)  # step and seconds of the last look

    @property
    def config(self) -> RunConfig:
        return self.learner.config


def state(run: Run) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        "format": checkpoint.FORMAT,
        **run.learner.state(),
        "processes": run.learner.processes.share.count,
        "seconds": run.seconds,
        "processor_seconds": run.processor_seconds,
        "best": run.best,
        "last_dice": run.last_dice,
        "found": run.found,
        "config": to_dict(run.config),
        "preprocess": run.preprocess.to_dict(),
        "classes": run.classes,
        "cases": run.cases,
        "channels": run.learner.data.channels,
    }


def restore(run: Run, path: Path) -> None:
    """Take back everything a checkpoint holds, after making sure that it is of this very run."""
    state = checkpoint.load(path)
    # An option that is younger than the checkpoint has its default there.
    differing = _differences(to_dict(from_dict(state["config"])), to_dict(run.config))
    if differing:
        raise InputError(
            path,
            rule="the configuration that the run was started with",
            got=f"other values of {differing}",
            cure="resume with the options stored in config.yaml, or name another --out",
        )
    if (state["classes"], state["cases"]) != (run.classes, run.cases):
        raise InputError(
            path,
            rule="the structures and cases that the run was started with",
            got="another data set, or cases added, removed or split otherwise",
            cure="restore the data folder, or name another --out",
        )
    checkpoint.load_weights(run.learner.student, state["student"], path)
    run.learner.load_state(state)
    run.seconds, run.processor_seconds = float(state["seconds"]), float(state["processor_seconds"])
    before, now = int(state.get("processes", 1)), run.learner.processes.share.count
    if before != now:
        run.notes += (f"Started in {before} processes, resumed in {now}: equal to rounding, not bit for bit.",)
    run.best, run.last_dice = dict(state["best"]), state["last_dice"]
    run.found = dict(state.get("found", {}))
    run.looked = (run.learner.done, run.seconds)


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Names of the options that differ; where a run may move to, such as the device, is free."""
    free = {"train.device", "train.threads", "train.checkpoint_every", "train.compile"}
    one, other = flat(stored), flat(asked)
    names = sorted((one.keys() | other.keys()) - free)
    return ", ".join(name for name in names if one.get(name) != other.get(name))
