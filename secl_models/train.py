# SPDX-License-Identifier: Apache-2.0
"""One training run from top to bottom: folder, data, model, optimiser, loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from secl_models import checkpoint, records
from secl_models.augment import augment
from secl_models.config import RunConfig, save_config, to_dict
from secl_models.data.cases import Case, DataSet
from secl_models.data.preprocess import Preprocess, resolve
from secl_models.data.resident import ResidentData
from secl_models.data.splits import Split, save_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.device import choose_device, machine, peak_memory_mib
from secl_models.errors import InputError
from secl_models.networks import ContrastModel, Output, build_network
from secl_models.objective import TERMS, Objective, StepContext, stream_seed, supervised_loss
from secl_models.progress import shown, training_bar, training_name
from secl_models.ramps import poly_lr, sigmoid_ramp, warm_start_steps
from secl_models.records import History, RunSummary
from secl_models.teacher import Teacher
from secl_models.validate import Validation, validate

PARTS = ("labeled", "unlabeled", "val", "test")
LOG_EVERY = 10  # steps; also how often the loss is looked at, since looking waits for the device


@dataclass
class _Run:
    """Everything that changes while a run goes on, and what the steps read."""

    config: RunConfig
    classes: dict[int, str]
    preprocess: Preprocess
    data: ResidentData
    validation: Sequence[Volume]
    device: torch.device
    fabric: Fabric
    student: ContrastModel
    forward: nn.Module  # the student as Fabric wrapped it
    optimizer: torch.optim.Optimizer
    teacher: Teacher
    objective: Objective
    cases: dict[str, list[str]] = field(default_factory=dict)  # names in each part of the split
    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # spent in them
    processor_seconds: float = 0.0  # of all threads; unlike the clock, it does not count other programs
    best: dict[str, float] = field(default_factory=dict)  # dice and step
    last_dice: float | None = None
    pending: list[Tensor] = field(default_factory=list)  # losses not looked at yet
    looked: tuple[int, float] = (0, 0.0)  # step and seconds of the last look


def train(
    config: RunConfig,
    data_set: DataSet,
    split: Split,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> RunSummary:
    """Train one method on one split and leave checkpoints, curves and a summary in a folder.

    Everything random in a step follows from (seed, step), so that a run that was stopped and resumed ends bit
    for bit as an uninterrupted one on the same machine.

    Args:
        config: Every option of the run.
        data_set: Where the cases come from.
        split: Who is labelled, unlabelled and validates; the test cases are not looked at.
        out: Run folder; gets `last.pt`, `best.pt`, `history.csv`, `config.yaml`, `split.json`, `summary.json`
            and the folder `tensorboard`.
        resume: Go on from `last.pt` where the folder has one.
        overwrite: Remove an earlier run from the folder first.
        progress: Show a progress bar on the terminal.

    Returns:
        What summary.json holds.

    Raises:
        InputError: The folder holds a run, the device does not exist, the checkpoint is of another
            configuration, or the loss stopped being finite.
    """
    begin = time.perf_counter()
    device = choose_device(config.train.device)
    records.refuse_held(out, resume, overwrite)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    console = Console(stderr=True, quiet=not progress)
    labeled = _load(split.labeled, data_set)
    config = resolve(config, data_set, labeled)
    unlabeled = _load(split.unlabeled if TERMS[config.train.method] else (), data_set)
    run = _set_up(config, data_set, labeled, unlabeled, _load(split.val, data_set), device)
    run.cases = {name: [case.name for case in getattr(split, name)] for name in PARTS}
    if resume and (out / checkpoint.LAST).is_file():
        _restore(run, out / checkpoint.LAST)
    records.make_folder(out, clear=overwrite and not resume)
    save_config(out / records.CONFIG, config)
    save_split(out / records.SPLIT, split)
    notes = _notes(run, config)
    for note in notes:
        console.print(note)
    history = History(out, [data_set.classes[value] for value in sorted(data_set.classes)], run.step)
    try:
        _loop(run, out, history, console)
    finally:
        history.close()
    summary = _summary(run, out, time.perf_counter() - begin, notes)
    records.write_summary(out / records.SUMMARY, summary)
    return summary


def _loop(run: _Run, out: Path, history: History, console: Console) -> None:
    options = run.config.train
    with training_bar(console) as bar:
        task = bar.add_task(training_name(options.method), total=options.steps, completed=run.step, shown="")
        while run.step < options.steps:
            start, processor = time.perf_counter(), time.process_time()
            ramp = _ramp(run)
            logged = _step(run, ramp)
            done = run.step = run.step + 1
            last = done == options.steps
            look = last or done % LOG_EVERY == 0 or done % options.validate_every == 0
            if look or done % options.checkpoint_every == 0:
                _require_finite(run, out)
            run.seconds += time.perf_counter() - start
            run.processor_seconds += time.process_time() - processor
            if look:
                values = {name: float(value) for name, value in logged.items()} | _pace(run, ramp)
                if run.validation and (last or done % options.validate_every == 0):
                    values |= _validate(run, out)
                history.add(done, values)
                pace = values["images_per_second"], values["memory_mib"]
                bar.update(task, completed=done, shown=shown(values["loss"], run.last_dice, *pace))
            if last or done % options.checkpoint_every == 0:
                history.write()
                checkpoint.save(out / checkpoint.LAST, _state(run))


def _ramp(run: _Run) -> float:
    """Weight of the terms that listen to the teacher; 0 during the warm start and for labels only."""
    options = run.config.train
    warm = warm_start_steps(options.steps, options.warm_start)
    return sigmoid_ramp(run.step, warm, round(options.steps * options.ramp)) if run.objective.names else 0.0


def _step(run: _Run, ramp: float) -> dict[str, Tensor | float]:
    """One optimiser step, on labels only while `ramp` is 0."""
    options, step = run.config.train, run.step
    lr = poly_lr(step, options.steps, options.lr)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    loss, logged = _loss_with_teacher(run, ramp) if ramp > 0 else _loss_of_labels(run)
    run.fabric.backward(loss)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.teacher.update(run.student, step)
    run.pending.append(loss.detach())
    return {"loss": loss.detach(), "lr": lr, "ramp": ramp, **logged}


def _loss_of_labels(run: _Run) -> tuple[Tensor, dict[str, Tensor]]:
    batch, _ = run.data.batch(run.step, run.config.train.batch, 0)
    views = augment(batch, run.config.augment, _generator(run, "augment labeled"))
    loss = supervised_loss(run.forward(views.strong).logits, views.label)
    return loss, {"supervised": loss.detach()}


def _loss_with_teacher(run: _Run, ramp: float) -> tuple[Tensor, dict[str, Tensor]]:
    options = run.config.train
    first, second = run.data.batch(run.step, options.batch, options.unlabeled_batch)
    labeled = augment(first, run.config.augment, _generator(run, "augment labeled"))
    unlabeled = augment(second, run.config.augment, _generator(run, "augment unlabeled"))
    weak = torch.cat([labeled.weak, unlabeled.weak])
    with run.fabric.autocast():
        taught: Output = run.teacher(weak)
        student: Output = run.forward(torch.cat([labeled.strong, unlabeled.strong]))
        context = StepContext(
            student,
            taught,
            weak,
            labeled.label,
            torch.cat([first.position, second.position]),
            options.batch,
            run.step,
        )
        total, logged = run.objective(context, run.student, run.teacher.model, ramp)
    return total, logged


def _generator(run: _Run, stream: str) -> torch.Generator:
    return torch.Generator(run.device).manual_seed(stream_seed(run.config.seed, run.step, stream))


def _require_finite(run: _Run, out: Path) -> None:
    """Look at all losses since the last look, so that the message can name the very step."""
    finite = torch.stack(run.pending).isfinite().tolist()
    if not all(finite):
        step = run.step - len(finite) + 1 + finite.index(False)
        kept = out / checkpoint.LAST
        where = f"go on from {kept} after that" if kept.is_file() else "train again"
        raise InputError(
            f"training step {step}",
            rule="the loss is a finite number",
            got=float(run.pending[finite.index(False)]),
            cure=f"lower train.lr (now {run.config.train.lr:g}) or check the intensities, then {where}",
        )
    run.pending.clear()


def _validate(run: _Run, out: Path) -> dict[str, float]:
    found: Validation = validate(
        run.teacher.model.network, run.preprocess, run.config, run.validation, len(run.classes)
    )
    run.last_dice = found.dice
    if found.dice > run.best.get("dice", -1.0):
        run.best = {"dice": found.dice, "step": float(run.step)}
        checkpoint.save(out / checkpoint.BEST, _state(run))
    names = (run.classes[value] for value in sorted(run.classes))
    structures = {f"dice {name}": dice for name, dice in zip(names, found.structures, strict=True)}
    return {"val_dice": found.dice, "val_precision": found.precision, **structures}


def _load(cases: Iterable[Case], data_set: DataSet) -> list[Volume]:
    return [load_volume(case, data_set) for case in cases]


def _set_up(
    config: RunConfig,
    data_set: DataSet,
    labeled: list[Volume],
    unlabeled: list[Volume],
    validation: list[Volume],
    device: torch.device,
) -> _Run:
    if not unlabeled:
        config = replace(config, train=replace(config.train, method="supervised"))
    data = ResidentData(labeled, unlabeled, config, device)
    # Drawn on the CPU, so that the initial weights do not depend on the device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.network, config.data.dims, data.channels, len(data_set.classes))
        student = ContrastModel(network, config.network.projection).to(device)
    precision: Any = config.train.precision
    if precision == "auto":
        precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    fabric = Fabric(
        accelerator=device.type, devices=[device.index] if device.type == "cuda" else 1, precision=precision
    )
    teacher = Teacher(student, config.train.decay)
    if config.train.compile:
        student.compile()
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    forward, wrapped = fabric.setup(student, optimizer)
    return _Run(
        config,
        dict(data_set.classes),
        Preprocess.from_config(config.data),
        data,
        validation,
        device,
        fabric,
        student,
        forward,
        wrapped,
        teacher,
        Objective(config, len(data_set.classes)).to(device),
    )


def _notes(run: _Run, asked: RunConfig) -> tuple[str, ...]:
    notes = []
    if run.config.train.method != asked.train.method:
        notes.append(f"There are no unlabelled cases: {asked.train.method} trains as supervised.")
    if not run.validation:
        notes.append("There are no validation cases: no best checkpoint is chosen.")
    return tuple(notes)


def _state(run: _Run) -> dict[str, Any]:
    return {
        "format": checkpoint.FORMAT,
        "step": run.step,
        "seconds": run.seconds,
        "processor_seconds": run.processor_seconds,
        "student": run.student.state_dict(),
        "teacher": run.teacher.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "objective": run.objective.state_dict(),
        "best": run.best,
        "last_dice": run.last_dice,
        "config": to_dict(run.config),
        "preprocess": run.preprocess.to_dict(),
        "classes": run.classes,
        "cases": run.cases,
        "channels": run.data.channels,
    }


def _restore(run: _Run, path: Path) -> None:
    """Take back everything a checkpoint holds, after making sure that it is of this very run."""
    state = checkpoint.load(path)
    differing = _differences(state["config"], to_dict(run.config))
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
    checkpoint.load_weights(run.student, state["student"], path)
    run.teacher.load_state_dict(state["teacher"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.objective.load_state_dict(state["objective"])
    run.step, run.seconds = int(state["step"]), float(state["seconds"])
    run.processor_seconds = float(state["processor_seconds"])
    run.best, run.last_dice = dict(state["best"]), state["last_dice"]
    run.looked = (run.step, run.seconds)


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str:
    """Dotted names of the options that differ; where a run may move to, such as the device, is free."""
    free = {"train.device", "train.threads", "train.checkpoint_every", "train.compile"}
    names = []
    for key in sorted(stored.keys() | asked.keys()):
        one, other = stored.get(key), asked.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names.append(_differences(one, other, f"{prefix}{key}."))
        elif one != other and f"{prefix}{key}" not in free:
            names.append(f"{prefix}{key}")
    return ", ".join(name for name in names if name)


def _pace(run: _Run, ramp: float) -> dict[str, float]:
    """Seconds so far, memory, and images per second since the last look."""
    options = run.config.train
    images = (options.batch + (options.unlabeled_batch if ramp > 0 else 0)) * (run.step - run.looked[0])
    rate = images / (run.seconds - run.looked[1])
    run.looked = (run.step, run.seconds)
    return {
        "seconds": run.seconds,
        "memory_mib": peak_memory_mib(run.device),
        "images_per_second": rate,
    }


def _summary(run: _Run, out: Path, total: float, notes: tuple[str, ...]) -> RunSummary:
    best_step = run.best.get("step")
    return RunSummary(
        out=str(out),
        method=run.config.train.method,
        labeled=run.config.labeled,
        seed=run.config.seed,
        steps=run.step,
        seconds=run.seconds,
        processor_seconds=run.processor_seconds,
        total_seconds=total,
        best_dice=run.best.get("dice"),
        best_step=None if best_step is None else int(best_step),
        last_dice=run.last_dice,
        peak_memory_mib=peak_memory_mib(run.device),
        parameters=sum(parameter.numel() for parameter in run.student.network.parameters()),
        notes=notes,
        versions=records.versions(),
        commit=records.commit(),
        machine=machine(run.device),
    )
