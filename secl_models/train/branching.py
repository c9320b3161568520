# SPDX-License-Identifier: Apache-2.0
"""A run that goes on from the labels-only steps of another: what all methods do first is done once.

Labels-only steps ask neither the teacher nor the unlabelled images, and all their randomness follows from (seed, step).
So they are the same in every method, and a branch ends bit for bit as a run of its method that was never divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secl_models.method import checkpoint
from secl_models.options.errors import InputError
from secl_models.options.methods import BASELINE, METHODS
from secl_models.options.schedules import warm_start_steps
from secl_models.options.schema import RunConfig
from secl_models.train.resuming import refuse_another_run, unheard_before_the_teacher


def read_start(
    start: Path, config: RunConfig, classes: Mapping[int, str], cases: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The last state of a labels-only run that a run may go on from.

    Args:
        start: Run folder of the labels-only run.
        config: Of the run that goes on.
        classes: Its label values and structures.
        cases: Names in each part of its split.

    Raises:
        InputError: No checkpoint there, one of another method, of more steps than the warm start of the run, or of
            other data or options than those that only the teacher's terms read.
    """
    path = start / checkpoint.LAST
    state = checkpoint.load(path)
    options, method, done = config.train, state["config"]["train"]["method"], int(state["step"])
    most = warm_start_steps(options.steps, options.warm_start) if METHODS[options.method].listens else options.steps
    if method != BASELINE or done > most:
        raise InputError(
            path,
            rule=f"labels-only steps, at most the {most} of this run's warm start",
            got=f"{done} steps of {method}",
            cure=f"start from a run of {BASELINE} with --max-steps {most}, or raise train.warm_start",
        )
    refuse_another_run(state, path, config, classes, cases, free=unheard_before_the_teacher)
    return state


def as_own(state: Mapping[str, Any], fresh: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """A labels-only state as that of another method, whose other weights are as they were drawn.

    Args:
        state: Of the labels-only run.
        fresh: Of the other method's learner before its first step.
        parameters: Names of that one's parameters, in the order of its optimiser.
    """
    weights = {name: fresh[name] | state[name] for name in ("student", "teacher")}
    # An optimiser knows parameters by number alone: here they may have another one.
    place = dict(enumerate(parameters.index(name) for name in parameters if name in state["student"]))
    moments = {place[number]: values for number, values in state["optimizer"]["state"].items()}
    pairs = zip(state["optimizer"]["param_groups"], fresh["optimizer"]["param_groups"], strict=True)
    groups = [{**group, "params": own["params"]} for group, own in pairs]
    optimizer = {"state": moments, "param_groups": groups}
    return {**state, **weights, "objective": fresh["objective"], "optimizer": optimizer}


def best_as_own(
    start: Path, fresh: Mapping[str, Any], parameters: Sequence[str], own: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The best checkpoint of the labels-only steps as one of the run that goes on, where there is one.

    Args:
        start: Run folder of the labels-only run.
        fresh: As for `as_own`.
        parameters: As for `as_own`.
        own: What every checkpoint says of the run that goes on.
    """
    path = start / checkpoint.BEST
    return {**as_own(checkpoint.load(path), fresh, parameters), **own} if path.is_file() else None
