# SPDX-License-Identifier: Apache-2.0
"""One training run from top to bottom: folder, data, model, optimiser, loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secl_models.data.cases import Case, DataSet
from secl_models.data.files import write_text
from secl_models.data.folders import held, refuse_writing_over
from secl_models.data.preprocess import Preprocess, resolve
from secl_models.data.scans import scan_labels
from secl_models.data.splits import PARTS, Split, save_split
from secl_models.data.volumes import Volume, load_volumes
from secl_models.inference.validate import Validation, validate
from secl_models.method import checkpoint
from secl_models.method.device import choose_device, keep_freed_memory, machine, peak_memory_mib
from secl_models.method.largest_part import one_part_structures
from secl_models.method.learner import Learner, make_learner
from secl_models.method.origin import commit, versions
from secl_models.method.processes import Processes, launched, leave, start_fabric
from secl_models.method.profiler import Stages
from secl_models.options.errors import writing
from secl_models.options.events import NOTE, tell
from secl_models.options.methods import METHODS
from secl_models.options.schema import RunConfig, to_dict, to_yaml
from secl_models.train import run_folder as records
from secl_models.train.branching import as_own, best_as_own, read_start
from secl_models.train.losses import infinite_loss
from secl_models.train.progress import TrainingProgress, show_profile, tell_end, tell_start
from secl_models.train.resuming import flat, identify, refuse_another_run
from secl_models.train.run_folder import History, RunSummary
from secl_models.train.stopping import StopWish, Terminated
from secl_models.train.warnings import notes_on, unlearned

LOG_EVERY = 10  # steps; also how often the loss is looked at, since looking waits for the device
Load = Callable[[DataSet, Sequence[Case]], list[Volume]]
GO_ON = "go on with the same command and --resume"


@dataclass
class _Run:
    """A learner, and everything around it that changes while a run goes on."""

    learner: Learner
    out: Path
    classes: dict[int, str]
    preprocess: Preprocess
    validation: Sequence[Volume]
    cases: dict[str, list[str]]  # names in each part of the split
    one_part: tuple[int, ...]  # structures that are one part in every labelled case
    notes: tuple[str, ...]
    start: Path | None = None  # the labels-only run that it went on from in this call
    init: str = ""  # what of a file of weights it began with
    seconds: float = 0.0  # spent in steps
    processor_seconds: float = 0.0  # of all threads; unlike the clock, it does not count other programs
    best: dict[str, float] = field(default_factory=dict)  # dice and step
    last_dice: float | None = None
    found: dict[str, float] = field(default_factory=dict)  # Dice of each structure at the last validation
    untaught: dict[str, float] = field(default_factory=dict)  # and at the last one before the teacher was listened to
    picture: npt.NDArray[np.uint8] | None = None  # of the validation at this step
    pending: list[Tensor] = field(default_factory=list)  # losses not looked at yet
    looked: tuple[int, float] = (0, 0.0)  # step and seconds of the last look

    @property
    def config(self) -> RunConfig:
        return self.learner.config


def train(
    config: RunConfig,
    data_set: DataSet,
    split: Split,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    start: Path | None = None,
    progress: bool = True,
    max_steps: int | None = None,
    profile: bool = False,
    load: Load = load_volumes,
) -> RunSummary:
    """Train one method on one split and leave checkpoints, curves and a summary in a folder.

    A run that was stopped and resumed ends bit for bit as an uninterrupted one on the same machine. Under `torchrun`
    the processes divide each batch; the first one alone validates and writes.

    Args:
        config: Every option of the run.
        data_set: Where the cases come from.
        split: Who is labelled, unlabelled and validates; the test cases are not looked at.
        out: Run folder; gets `last.pt`, `best.pt`, `history.csv`, `config.yaml`, `split.json`, `summary.json`
            and the folder `tensorboard`.
        resume: Go on from `last.pt` where the folder has one.
        overwrite: Remove an earlier run from the folder first.
        start: A labels-only run that a new one goes on from, see `read_start`; where `resume` finds one, that goes on.
        progress: Show a progress bar on the terminal.
        max_steps: Stop once so many of `train.steps` are done in all, and leave a run that can be resumed; the
            schedules are those of `train.steps` all the same.
        profile: Print at the end where the time of a step went.
        load: Reads the cases that the run needs, once; their order is kept.

    Returns:
        What summary.json holds.

    Raises:
        InputError: The folder holds a run or cannot be written, the device does not exist, the checkpoint is
            damaged or of another configuration, the loss stopped being finite, or another process was lost.
        Terminated: SIGTERM came; the last step is kept.
    """
    begin = time.perf_counter()
    processes = Processes(launched())
    config = identify(config, out / records.CONFIG if resume and (out / checkpoint.LAST).is_file() else None)
    device = choose_device(config.train.device, processes.share.count)
    if processes.first:
        refuse_writing_over(data_set.files(), *(out / name for name in records.RUN_FILES))
    # torch's own generator is seeded in every step; whoever called keeps theirs.
    with (
        held(out, "secl train", then=GO_ON) if processes.first else nullcontext(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        if processes.first:
            records.refuse_held(out, resume, overwrite)
        run = _set_up(config, data_set, split, out, device, processes, load)
        if resume and (out / checkpoint.LAST).is_file():
            _restore(run, out / checkpoint.LAST)
        elif start is not None:
            _branch(run, start)
        else:
            _begin(run, anew=resume)
        processes.require_one({"steps done": run.learner.done, **flat(to_dict(run.config)), **flat(run.cases)})
        if processes.first:
            tell_start(run.config, run.notes, data_set, split, out, device, run.learner.done)
        if profile and processes.first:
            run.learner.stages = Stages(device)
        bar = TrainingProgress(
            config.train.method, config.train.steps, run.learner.done, spoken=processes.first, bar=progress
        )
        _run_to_end(run, data_set, split, bar, max_steps, clear=overwrite and not resume)
        summary = replace(_summary(run, time.perf_counter() - begin), data=data_set.name)
        if processes.first:
            with writing(out / records.SUMMARY, GO_ON):
                records.write_summary(out / records.SUMMARY, summary)
            values = {"seconds": summary.seconds, "best_dice": summary.best_dice, "out": str(out)}
            tell_end(summary.notes[len(run.notes) :], summary.steps, config.train.steps, **values)
            show_profile(run.learner.stages, config.train, peak_memory_mib(device))
    leave()
    return summary


def _set_up(
    config: RunConfig,
    data_set: DataSet,
    split: Split,
    out: Path,
    device: torch.device,
    processes: Processes,
    load: Load,
) -> _Run:
    processes.require_divides(batch=config.train.batch, unlabeled_batch=config.train.unlabeled_batch)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    listens = METHODS[config.train.method].listens
    needed = split.labeled, split.unlabeled if listens else (), split.val if processes.first else ()
    volumes = iter(load(data_set, [case for part in needed for case in part]))
    labeled, unlabeled, validation = (list(islice(volumes, len(part))) for part in needed)
    config = resolve(config, data_set, labeled)
    fabric = start_fabric(device, config.train.precision, processes.share)
    learner = make_learner(config, labeled, unlabeled, len(data_set.classes), device, fabric, processes)
    return _Run(
        learner,
        out,
        dict(data_set.classes),
        Preprocess.from_config(config.data),
        validation,
        {name: [case.name for case in getattr(split, name)] for name in PARTS},
        one_part_structures(scan_labels(labeled), len(data_set.classes)),
        notes_on(config, learner.config, labeled, unlabeled, split.val, data_set.classes),
    )


def _run_to_end(
    run: _Run, data_set: DataSet, split: Split, bar: TrainingProgress, max_steps: int | None, *, clear: bool
) -> None:
    if not run.learner.processes.first:
        _loop(run, None, bar, max_steps)
        return
    with writing(run.out, GO_ON):
        history = _open_folder(run, data_set, split, clear=clear)
    try:
        _loop(run, history, bar, max_steps)
    except BaseException:
        with suppress(OSError):  # what stopped the run is told, not what that led to
            history.close()
        raise
    with writing(run.out / records.HISTORY, GO_ON):
        history.close()


def _open_folder(run: _Run, data_set: DataSet, split: Split, *, clear: bool) -> History:
    records.make_folder(run.out, clear=clear)
    if run.start is not None:
        records.copy_history(run.start, run.out)
        if best := best_as_own(run.start, run.learner.state(), run.learner.parameters, _identity(run)):
            checkpoint.save(run.out / checkpoint.BEST, best)
    write_text(run.out / records.CONFIG, to_yaml(run.config))
    save_split(run.out / records.SPLIT, split)
    return History(run.out, [data_set.classes[value] for value in sorted(data_set.classes)], run.learner.done)


def _loop(run: _Run, history: History | None, bar: TrainingProgress, max_steps: int | None) -> None:
    options, learner = run.config.train, run.learner
    end = options.steps if max_steps is None else min(max_steps, options.steps)
    with StopWish() as stop, bar:
        while learner.done < end:
            ramp = learner.ramp
            logged = _timed_step(run, ramp, wish=stop.asked)
            done = learner.done
            last = done == options.steps
            look = last or done % LOG_EVERY == 0 or done % options.validate_every == 0
            stopping = not last and (done == end or learner.all_wish_to_stop(stop.asked, look))
            keep = last or stopping or done % options.checkpoint_every == 0
            if look or keep:
                _require_finite(run)
            if look:
                values = {name: float(value) for name, value in logged.items()} | _pace(run, ramp)
                validated = bool(run.validation) and (last or done % options.validate_every == 0)
                if validated:
                    values |= _validate(run)
                if history:
                    with writing(run.out / records.HISTORY, GO_ON):
                        history.add(done, values, run.picture)
                run.picture = None
                bar.looked(done, values, run.last_dice, run.found if validated else {})
            if keep and history:
                with writing(run.out / records.HISTORY, GO_ON):
                    history.write()
                _save(run, checkpoint.LAST)
                bar.kept(done, run.out / checkpoint.LAST)
            if stopping and done < end:
                raise Terminated


def _timed_step(run: _Run, ramp: float, *, wish: bool) -> dict[str, Tensor | float]:
    start, processor = time.perf_counter(), time.process_time()
    logged = run.learner.step(ramp, wish=wish)
    run.pending.append(torch.as_tensor(logged["loss"]))
    run.seconds += time.perf_counter() - start
    run.processor_seconds += time.process_time() - processor
    return logged


def _require_finite(run: _Run) -> None:
    start, processor = time.perf_counter(), time.process_time()
    fault = infinite_loss(run.pending, run.learner.done, run.config.train.lr, run.out / checkpoint.LAST)
    run.seconds += time.perf_counter() - start
    run.processor_seconds += time.process_time() - processor
    if fault is not None:
        raise fault
    run.pending.clear()
    if isinstance(run.learner.stages, Stages):
        run.learner.stages.settle()


def _validate(run: _Run) -> dict[str, float]:
    network = run.learner.teacher.model.network
    found: Validation = validate(network, run.preprocess, run.config, run.validation, len(run.classes))
    names = [run.classes[value] for value in sorted(run.classes)]
    run.last_dice, run.found = found.dice, dict(zip(names, found.structures, strict=True))
    run.untaught = run.untaught if run.learner.listened else run.found
    if found.dice > run.best.get("dice", -1.0):
        run.best = {"dice": found.dice, "step": float(run.learner.done)}
        _save(run, checkpoint.BEST)
    run.picture = found.picture
    return found.row(names)


def _save(run: _Run, name: str) -> None:
    path = run.out / name
    kept = " from the checkpoint that is there" if (run.out / checkpoint.LAST).is_file() else ""
    with writing(path, GO_ON + kept):
        checkpoint.save(path, _state(run))


def _state(run: _Run) -> dict[str, Any]:
    return {
        **_identity(run),
        **run.learner.state(),
        "processes": run.learner.processes.share.count,
        "seconds": run.seconds,
        "processor_seconds": run.processor_seconds,
        "best": run.best,
        "last_dice": run.last_dice,
        "found": run.found,
        "untaught": run.untaught,
    }


def _identity(run: _Run) -> dict[str, Any]:
    """What a checkpoint says of its run that no step changes."""
    return {
        "format": checkpoint.FORMAT,
        "config": to_dict(run.config),
        "preprocess": run.preprocess.to_dict(),
        "classes": run.classes,
        "cases": run.cases,
        "one_part": list(run.one_part),
        "init": run.init,
        "channels": run.learner.data.channels,
    }


def _restore(run: _Run, path: Path) -> None:
    """Take back everything a checkpoint holds, after making sure that it is of this very run."""
    state = checkpoint.load(path)
    refuse_another_run(state, path, run.config, run.classes, run.cases)
    _take_back(run, state, path)


def _begin(run: _Run, *, anew: bool) -> None:
    """Start a new run, where one was to go on, `anew`."""
    if anew and run.learner.processes.first:
        tell("note", f"There is no {checkpoint.LAST} in {run.out} to resume: the run starts anew.", level=NOTE)
    if run.config.network.init is not None:
        run.init = str(run.learner.start_from(Path(run.config.network.init)))


def _branch(run: _Run, start: Path) -> None:
    """Go on from the last checkpoint of a labels-only run."""
    state = read_start(start, run.config, run.classes, run.cases)
    run.start = start
    _take_back(run, as_own(state, run.learner.state(), run.learner.parameters), start / checkpoint.LAST)


def _take_back(run: _Run, state: dict[str, Any], path: Path) -> None:
    checkpoint.load_weights(run.learner.student, state["student"], path)
    run.learner.load_state(state)
    run.seconds, run.processor_seconds = float(state["seconds"]), float(state["processor_seconds"])
    before, now = int(state.get("processes", 1)), run.learner.processes.share.count
    if before != now:
        run.notes += (f"Started in {before} processes, resumed in {now}: equal to rounding, not bit for bit.",)
    run.best, run.last_dice = dict(state["best"]), state["last_dice"]
    run.found, run.untaught = dict(state.get("found", {})), dict(state.get("untaught", {}))
    run.looked, run.init = (run.learner.done, run.seconds), str(state.get("init", ""))


def _pace(run: _Run, ramp: float) -> dict[str, float]:
    """Seconds so far, memory, and images per second of all processes since the last look."""
    options, done = run.config.train, run.learner.done
    images = (options.batch + (options.unlabeled_batch if ramp > 0 else 0)) * (done - run.looked[0])
    rate = images / (run.seconds - run.looked[1])
    run.looked = (done, run.seconds)
    return {
        "seconds": run.seconds,
        "processor_seconds": run.processor_seconds,
        "memory_mib": peak_memory_mib(run.learner.device),
        "images_per_second": rate,
    }


def _summary(run: _Run, total: float) -> RunSummary:
    best_step, learner, steps = run.best.get("step"), run.learner, run.config.train.steps
    stopped = f"Stopped at {learner.done} of {steps} steps; the same command with --resume goes on."
    return RunSummary(
        out=str(run.out),
        method=run.config.train.method,
        labeled=run.config.labeled,
        seed=run.config.seed,
        steps=learner.done,
        seconds=run.seconds,
        processor_seconds=run.processor_seconds,
        total_seconds=total,
        best_dice=run.best.get("dice"),
        best_step=None if best_step is None else int(best_step),
        last_dice=run.last_dice,
        peak_memory_mib=peak_memory_mib(learner.device),
        parameters=sum(parameter.numel() for parameter in learner.student.network.parameters()),
        notes=(*run.notes, *(unlearned(run.found, run.untaught) if learner.done == steps else (stopped,))),
        versions=versions(),
        commit=commit(),
        machine=machine(learner.device),
        init=run.init,
    )
