# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: a batch, its views, both networks, the loss, the update, the average.

Everything random in a step follows from (seed, step), also across processes, which draw for the joined batch and take
their part. Nothing in a step waits for the device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from secl_models.data.batch import Batch
from secl_models.data.labels import IGNORED
from secl_models.data.open_labels import class_sets
from secl_models.data.resident import ResidentData
from secl_models.data.volumes import Volume
from secl_models.method.augment import Views, augment
from secl_models.method.mixing import Mixture, draw_mixture
from secl_models.method.networks import ContrastModel, TappedModule, build_network
from secl_models.method.objective import Objective
from secl_models.method.output import Output
from secl_models.method.pretrained import Account, load_pretrained
from secl_models.method.processes import Processes
from secl_models.method.profiler import STEP, TEACHER, Watch, unwatched
from secl_models.method.step import StepContext, stream_seed
from secl_models.method.supervised import supervised_loss
from secl_models.method.teacher import Teacher
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, tell
from secl_models.options.methods import BASELINE, METHODS
from secl_models.options.schedules import poly_lr, sigmoid_ramp, warm_start_steps
from secl_models.options.schema import RunConfig


@dataclass
class Learner:
    """What a step reads and changes."""

    config: RunConfig
    data: ResidentData
    device: torch.device
    fabric: Fabric
    processes: Processes
    student: ContrastModel
    optimizer: torch.optim.Optimizer  # as Fabric wrapped it
    teacher: Teacher
    objective: Objective
    memory_format: torch.memory_format
    class_sets: Tensor | None = None  # [P, K + 1] bool, what open voxels of the labelled cases may be
    stages: Watch = unwatched
    done: int = 0  # optimiser steps
    wishes: Tensor | None = None  # processes that were asked to stop before the last step

    @property
    def ramp(self) -> float:
        """Weight of the terms that listen to the teacher; 0 during the warm start and for labels only."""
        options = self.config.train
        warm = warm_start_steps(options.steps, options.warm_start)
        listens = METHODS[options.method].listens
        return sigmoid_ramp(self.done, warm, round(options.steps * options.ramp)) if listens else 0.0

    @property
    def listened(self) -> bool:
        """Whether a step so far has listened to the teacher."""
        options = self.config.train
        return METHODS[options.method].listens and self.done > warm_start_steps(options.steps, options.warm_start)

    @property
    def parameters(self) -> list[str]:
        """Names of what is trained, in the order of the optimiser."""
        return [name for name, _ in self.student.named_parameters()]

    def step(self, ramp: float, *, wish: bool = False) -> dict[str, Tensor | float]:
        """Take one step, on labels only while `ramp` is 0.

        Args:
            ramp: Weight of the unlabelled terms.
            wish: Whether this process was asked to stop.

        Returns:
            Loss, terms and statistics, on the device.
        """
        options = self.config.train
        with self.stages(STEP):
            lr = poly_lr(self.done, options.steps, options.lr)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            # A network with dropout draws from torch's own generator: it too must follow from (seed, step).
            torch.manual_seed(stream_seed(self.config.seed, self.done, "network") ^ self.processes.share.rank)
            loss, logged = self._loss_with_teacher(ramp) if ramp > 0 else self._loss_of_labels()
            with self.stages("backward"):
                self.fabric.backward(loss)
            if self.processes.several:
                with self.stages("exchange"):
                    self.wishes = self.processes.sum_gradients(self.student.parameters(), wish)
                    self.processes.share_buffers(self.student)
            with self.stages("optimiser"):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            with self.stages("average"):
                self.teacher.update(self.student, self.done)
        self.done += 1
        return {"loss": loss.detach(), "lr": lr, "ramp": ramp, **logged}

    def all_wish_to_stop(self, asked: bool, look: bool) -> bool:
        """Whether all processes stop after this step: at the same one, and without waiting for a GPU in every step.

        Args:
            asked: Whether this process was asked to.
            look: Whether the device is waited for after this step anyhow.
        """
        if not self.processes.several:
            return asked
        wait = look or self.device.type == "cpu"
        return wait and self.wishes is not None and bool(self.wishes > 0)

    def state(self) -> dict[str, Any]:
        """All that a later step depends on, beside the configuration and the data."""
        return {
            "step": self.done,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.fabric.strategy.precision.load_state_dict(state.get("precision", {}))
        self.done = int(state["step"])

    def start_from(self, file: Path) -> Account:
        """Begin with the weights of a file, student and teacher alike, before the first step.

        Args:
            file: See `load_pretrained`.
        """
        account = load_pretrained(self.student.network.module, file)
        self.teacher.load_state_dict(self.student.state_dict())
        if self.processes.first:
            tell("init", str(account), level=NOTE, **asdict(account))
        return account

    def _loss_of_labels(self) -> tuple[Tensor, dict[str, Tensor]]:
        batch, _ = self._batch(0)
        with self.stages("augment"):
            views = self._views(batch, "augment labeled")
        with self.fabric.autocast():
            with self.stages("student forward"):
                logits = self.student(self._laid_out(views.strong)).logits
            with self.stages("loss"):
                loss = supervised_loss(logits, views.label, self.processes, self.class_sets)
        return loss, {"supervised": loss.detach()}

    def _loss_with_teacher(self, ramp: float) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self._batch(self.config.train.unlabeled_batch)
        with self.stages("augment"):
            labeled = self._views(first, "augment labeled")
            unlabeled = self._views(second, "augment unlabeled")
            mixture = self._mixture(labeled, unlabeled)
            method = METHODS[self.config.train.method]
            taught = len(labeled.label) if method.taught else 0
            weak = self._laid_out(torch.cat([labeled.weak[:taught], unlabeled.weak]))
            both = labeled.strong, unlabeled.strong
            strong = self._laid_out(mixture.of(*both) if mixture else torch.cat(both))
        with self.fabric.autocast():
            with self.stages(TEACHER):
                teacher = self.teacher(weak)
            with self.stages("student forward"):
                student = self.student(strong)
                unmixed = self._unmixed(labeled, unlabeled)
            with self.stages("loss"):
                position = torch.cat([first.position, second.position])
                label = labeled.label if self.class_sets is None else labeled.label.clamp_min(IGNORED)
                context = StepContext(
                    student, teacher, weak, label, position, taught, self.done, mixture, unmixed,
                    annotated=labeled.label, class_sets=self.class_sets, shown=unlabeled.label != IGNORED,
                )  # fmt: skip
                total, logged = self.objective(context, self.student, self.teacher.model, ramp)
        return total, logged

    def _mixture(self, labeled: Views, unlabeled: Views) -> Mixture | None:
        if not METHODS[self.config.train.method].mixes:
            return None
        counts = len(labeled.label), len(unlabeled.label)
        patch, generator = tuple(labeled.label.shape[1:]), self._generator("mixture")
        options, share = self.config.mix, self.processes.share
        before = self.done * counts[0] * share.count
        return draw_mixture(*counts, patch, options.side, generator, share, whole=options.whole, before=before)

    def _unmixed(self, labeled: Views, unlabeled: Views) -> Output | None:
        """What a student of mixtures makes of the images themselves, if a term asks for it."""
        method = METHODS[self.config.train.method]
        if method.unmixed is None:
            return None
        image = self._laid_out(torch.cat([getattr(views, method.unmixed) for views in (labeled, unlabeled)]))
        kept = self._kept_channels(len(labeled.label), len(unlabeled.label)) if method.perturbed else None
        output: Output = self.student(image, kept)
        return output

    def _kept_channels(self, *images: int) -> Tensor:
        """Factor on each channel that the perturbed pass may drop, of this process's part of the joined batch."""
        rate, width, share = (
            self.config.disagreement.dropout,
            self.student.network.dropped_channels,
            self.processes.share,
        )
        generator = self._generator("dropout")
        drawn = [
            torch.rand((count * share.count, width), generator=generator, device=self.device)[
                share.of(count * share.count)
            ]
            for count in images
        ]
        return (torch.cat(drawn) >= rate) / (1.0 - rate)

    def _batch(self, unlabeled: int) -> tuple[Batch, Batch]:
        with self.stages("batch"):
            return self.data.batch(self.done, self.config.train.batch, unlabeled, self.processes.share)

    def _views(self, batch: Batch, stream: str) -> Views:
        return augment(batch, self.config.augment, self._generator(stream), self.processes.share)

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(stream_seed(self.config.seed, self.done, stream))

    def _laid_out(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=self.memory_format)


def make_learner(
    config: RunConfig,
    labeled: list[Volume],
    unlabeled: list[Volume],
    classes: int,
    device: torch.device,
    fabric: Fabric,
    processes: Processes,
) -> Learner:
    """Networks with freshly drawn weights, their optimiser, and the data on the device.

    Args:
        config: Resolved; without unlabelled volumes the method becomes `BASELINE`.
        labeled: Labelled volumes.
        unlabeled: Unlabelled ones; may be empty.
        classes: Structures K.
        device: Where all of it lives.
        fabric: Precision and processes.
        processes: This process and the others.
    """
    if not unlabeled:
        config = replace(config, train=replace(config.train, method=BASELINE))
    data = ResidentData(labeled, unlabeled, config, device)
    # Drawn on the CPU, so that the initial weights do not depend on the device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.network, config.data.dims, data.channels, classes)
        _require_droppable(network, config.train.method)
        student = ContrastModel(network, config.network.projection, METHODS[config.train.method].head)
    layout = torch.contiguous_format  # on a CPU channels_last took an eighth longer
    if device.type == "cuda":
        layout = torch.channels_last if config.data.dims == 2 else torch.channels_last_3d
    student = student.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # torch types it no
    teacher = Teacher(student, config.train.decay)
    if config.train.compile:
        student.compile()
        teacher.model.compile()
    # Fused: one pass over all weights, and on a GPU the step counts stay there.
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay, fused=True
    )
    wrapped: Any = fabric.setup_optimizers(optimizer)
    objective = Objective(config, classes, processes, network.last_channels).to(device)
    sets = class_sets(data.unlabeled_sets, classes)
    sets = None if sets is None else sets.to(device)
    return Learner(config, data, device, fabric, processes, student, wrapped, teacher, objective, layout, sets)


def _require_droppable(network: TappedModule, method: str) -> None:
    if METHODS[method].perturbed and not network.dropped_channels:
        raise InputError(
            "network.name",
            rule=f"method {method} needs a network that names the layers whose channels a perturbed pass drops",
            got="one that names none",
            cure="wrap it as TappedModule(module, layers, channels, dropped={name: width}), or choose another method",
        )
