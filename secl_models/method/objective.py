# SPDX-License-Identifier: Apache-2.0
"""What a step minimises: the supervised loss and, by method, the terms that listen to the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import secl_ops
from secl_models.data.batch import IGNORED, partition
from secl_models.method.label_maps import draw_counts, pseudo_labels, region_labels, resize_labels
from secl_models.method.largest_part import largest_parts
from secl_models.method.mixing import Mixture
from secl_models.method.networks import ContrastModel, Output
from secl_models.method.processes import Processes
from secl_models.options.methods import METHODS
from secl_models.options.schema import ContrastConfig, RunConfig

STREAMS = ("augment labeled", "augment unlabeled", "student pixels", "teacher pixels", "network", "mixture")
ALONE = Processes()


class TermValue(NamedTuple):
    """One term of the objective and what it tells about itself."""

    value: Tensor  # scalar with a graph
    statistics: dict[str, Tensor]  # scalars without one


@dataclass(frozen=True)
class StepContext:
    """What the terms of one step see of this process's images; the labelled come first in every tensor."""

    student: Output  # of the strong views, L + U images, or of L mixtures of them
    teacher: Output  # of the weak views, T + U images
    weak: Tensor  # [T + U, C, *patch]
    label: Tensor  # [L, *patch] class index, -1 ignored
    position: Tensor  # [L + U] in [0, 1), relative position along the slice axis
    taught: int  # T, labelled images that the teacher sees: all or none
    step: int
    mixture: Mixture | None = None  # how the student's images were made, where they are not the views themselves

    @property
    def labeled(self) -> int:
        """L, labelled images."""
        return self.label.shape[0]


def stream_seed(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed that follows from (seed, step, stream) alone, so that a resumed run draws the same.

    Args:
        seed: Of the run.
        step: Optimiser steps done before.
        stream: One of `STREAMS`.

    Returns:
        The seed.

    Example:
        >>> stream_seed(0, 7, "student pixels") == stream_seed(0, 7, "student pixels")
        True
        >>> stream_seed(0, 7, "student pixels") == stream_seed(0, 7, "teacher pixels")
        False
    """
    words = np.random.SeedSequence([seed, step, STREAMS.index(stream)]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def supervised_loss(logits: Tensor, label: Tensor, processes: Processes = ALONE) -> Tensor:
    """0.5 (cross-entropy + 1 - mean soft Dice over the structures), pixels of label -1 left out of both.

    The soft Dice of a structure is taken over the whole batch, so that slices without it do no harm.

    Args:
        logits: [B, K + 1, *spatial].
        label: [B, *spatial] class index, -1 ignored.
        processes: Those that hold the other parts of a joined batch.

    Returns:
        A scalar; 0 with a graph where every pixel is ignored.

    Example:
        >>> label = torch.tensor([[0, 1]])
        >>> round(supervised_loss(20.0 * functional.one_hot(label).movedim(-1, 1), label).item(), 3)
        0.0
    """
    logits = logits.float()
    known = label != IGNORED
    target = label.clamp_min(0)
    entropy = functional.cross_entropy(logits, target, reduction="none")
    mask = known.unsqueeze(1)
    axes = [0, *range(2, logits.ndim)]
    probability = logits.softmax(1) * mask  # [B, K + 1, *spatial]
    truth = (label.unsqueeze(1) == _classes(logits)) * mask  # one_hot would wait on some devices
    overlap, volume = (probability * truth).sum(axes)[1:], (probability + truth).sum(axes)[1:]  # [K]
    parts = [torch.stack([(entropy * known).sum(), known.sum().float()]), overlap, volume]
    sums = processes.total(torch.cat(parts))  # [2 + 2 K]
    structures = logits.shape[1] - 1
    dice = (2.0 * sums[2 : 2 + structures] + 1.0) / (sums[2 + structures :] + 1.0)
    loss: Tensor = 0.5 * (sums[0] / sums[1].clamp_min(1) + (1.0 - dice.mean()) * (sums[1] > 0))
    return loss


def _classes(logits: Tensor) -> Tensor:
    """Every class index [K + 1, 1, ...], to be compared with a label map."""
    return torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))


class Objective(nn.Module):
    """Supervised loss plus ramped terms; holds the queues of teacher rows as its buffers.

    Total = supervised + ramp (w_consistency consistency + w_contrast (region + anatomical) + w_mix mixed); `METHODS`
    says which method has which. Xiang et al., arXiv:2105.12924 (idea); hyper-parameters of Zhao et al., ICCV 2021,
    and Chaitanya et al., NeurIPS 2020.

    Args:
        config: Whole configuration of the run.
        classes: Structures K, without background.
        processes: Those that share the joined batch of a step: keys and sums are gathered over all of them.
    """

    def __init__(self, config: RunConfig, classes: int, processes: Processes = ALONE) -> None:
        super().__init__()
        self._processes = processes
        self.contrast: ContrastConfig = config.contrast
        self.seed = config.seed
        self.classes = classes + 1
        self.names = METHODS[config.train.method].terms
        self.weights = {
            "consistency": config.train.consistency,
            "region": config.contrast.weight,
            "anatomical": config.contrast.weight,
            "mixed": config.mix.weight,
        }
        self.mix = config.mix
        self._terms: dict[str, Callable[[StepContext, ContrastModel, ContrastModel], TermValue]] = {
            "consistency": self._consistency,
            "region": self._region,
            "anatomical": self._anatomical,
            "mixed": self._mixed,
        }
        queued = len(config.network.taps) if "anatomical" in self.names and config.contrast.queue > 0 else 0
        self.queues = nn.ModuleList(
            secl_ops.ClassQueue(self.classes, config.contrast.queue, config.network.projection) for _ in range(queued)
        )

    def forward(
        self, context: StepContext, student: ContrastModel, teacher: ContrastModel, ramp: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of one step with the teacher in, and every term and statistic by name.

        Args:
            context: Views, maps and labels of the step.
            student: Gives the heads that receive a gradient.
            teacher: Gives the heads of the keys.
            ramp: Weight of the unlabelled terms, in [0, 1].

        Returns:
            The scalar to minimise, and scalars without a graph.
        """
        truth = context.label
        if context.mixture:
            truth = torch.where(context.mixture.inside, truth, IGNORED)
        total = supervised_loss(context.student.logits[: context.labeled], truth, self._processes)
        logged = {"supervised": total.detach()}
        for name in self.names:
            term = self._terms[name](context, student, teacher)
            total = total + ramp * self.weights[name] * term.value
            logged |= {name: term.value.detach(), **term.statistics}
        return total, logged

    def _consistency(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """Mean squared difference of probabilities on all images (Tarvainen and Valpola, NeurIPS 2017)."""
        ours = context.student.logits.float().softmax(1)
        theirs = context.teacher.logits.float().softmax(1)
        # Each process holds as many images.
        return TermValue(self._processes.total(functional.mse_loss(ours, theirs) / self._processes.share.count), {})

    def _mixed(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """The supervised loss against the teacher's classes where a mixture shows its unlabelled image.

        Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023.
        """
        if context.mixture is None:
            raise ValueError("the mixed term needs the mixture that the student saw")
        pseudo = pseudo_labels(context.teacher.logits[context.taught :], self.mix.confidence)
        if self.mix.largest:
            pseudo = largest_parts(pseudo, self.classes)
        label = torch.where(context.mixture.inside, IGNORED, pseudo[context.mixture.partner])
        return TermValue(supervised_loss(context.student.logits, label, self._processes), {})

    def _region(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """Same cell, in the other view or at the same relative position: positive; other cells: negative."""
        grid = self.contrast.grid
        group = partition(context.position, self.contrast.partitions)
        label = region_labels(context.weak, grid)  # [B, R]
        groups = group.unsqueeze(1).expand_as(label)
        marks = self._gather(torch.stack([label, groups], 2).flatten(0, 1), context)  # [B R of all, 2]
        losses = []
        for tap, (ours, theirs) in enumerate(zip(context.student.features, context.teacher.features, strict=True)):
            anchors = student.heads[tap](secl_ops.pool_regions(ours, grid).flatten(0, 1))
            with torch.no_grad():
                keys = self._gather(teacher.heads[tap](secl_ops.pool_regions(theirs, grid).flatten(0, 1)), context)
            losses.append(
                self._info_nce(
                    anchors, [keys], label.flatten(), [marks[:, 0]],
                    anchor_groups=groups.flatten(), key_groups=[marks[:, 1]],
                )
            )  # fmt: skip
        return TermValue(torch.stack(losses).mean(), {"cells": self._share_of(label != IGNORED)})

    def _anatomical(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """Pixels of one structure, by truth or confident pseudo-label: positive; others: negative."""
        pseudo = pseudo_labels(context.teacher.logits, self.contrast.confidence)
        claimed = pseudo[context.taught :]
        label = torch.cat([context.label[: context.taught], claimed])
        seen = context.mixture.of(context.label, claimed) if context.mixture else label
        losses = []
        counts = []
        for tap, (ours, theirs) in enumerate(zip(context.student.features, context.teacher.features, strict=True)):
            small, keys = resize_labels(seen, tuple(ours.shape[2:])), resize_labels(label, tuple(theirs.shape[2:]))
            queue = cast(secl_ops.ClassQueue, self.queues[tap]) if self.queues else None
            counts.append(self._counts(small, keys, queue))
            losses.append(self._contrast(context, tap, (student, teacher), (small, keys), queue))
        drawn, matched = torch.stack(counts).sum(0)  # [K + 1] each
        found = {"positives": matched.sum() / drawn.sum().clamp_min(1), "skipped": (matched == 0).sum()}
        return TermValue(torch.stack(losses).mean(), self._pseudo_statistics(pseudo, context) | found)

    def _counts(self, labels: Tensor, key_labels: Tensor, queue: secl_ops.ClassQueue | None) -> Tensor:
        """Anchors of each class in the joined batch, and those of them that find a positive, [2, K + 1]."""
        found = torch.stack([draw_counts(each, self.contrast.per_class, self.classes) for each in (labels, key_labels)])
        drawn, keys = self._processes.total(found)
        if queue is not None:
            keys = keys + draw_counts(queue.key_labels.unsqueeze(0), 1, self.classes)
        return torch.stack([drawn, drawn * (keys > 0)])

    def _contrast(
        self,
        context: StepContext,
        tap: int,
        models: tuple[ContrastModel, ContrastModel],  # student and teacher
        labels: tuple[Tensor, Tensor],  # [B, *spatial] of the student's and of the teacher's map
        queue: secl_ops.ClassQueue | None,
    ) -> Tensor:
        """The anatomical term of one tap; of several processes, over the anchors and keys of all of them."""
        ours, theirs = context.student.features[tap], context.teacher.features[tap]
        head, key_head = (model.heads[tap] for model in models)
        scores = self._scores(labels[0], context)
        seed, key_seed = (stream_seed(self.seed, context.step, f"{name} pixels") for name in ("student", "teacher"))
        if not self._processes.several:
            options = self.contrast
            loss: Tensor = secl_ops.pixel_contrast(
                ours, labels[0], theirs, labels[1], per_class=options.per_class, num_classes=self.classes, seed=seed,
                key_seed=key_seed, ignore_index=IGNORED, scores=scores, strategy=options.strategy, head=head,
                key_head=key_head, queue=queue, temperature=options.temperature, denominator=options.denominator,
                backend=options.backend,
            )  # fmt: skip
            return loss
        rows, row_labels = self._sample(ours, labels[0], context.labeled, seed, scores)
        anchors = head(rows)
        with torch.no_grad():
            rows, fresh_labels = self._sample(theirs, labels[1], context.taught, key_seed)
            fresh = self._gather(key_head(rows).float(), context, self.classes)
            fresh_labels = self._gather(fresh_labels, context, self.classes)
        # Under autocast the anchors are narrow; a queue is read where it lies where they are not.
        past = [] if queue is None else [queue.keys.to(anchors.dtype)]
        past_labels = [] if queue is None else [queue.key_labels]
        loss = self._info_nce(anchors, [fresh.to(anchors.dtype), *past], row_labels, [fresh_labels, *past_labels])
        if queue is not None:
            queue.enqueue(fresh, fresh_labels)
        return loss

    def _scores(self, label: Tensor, context: StepContext) -> Tensor | None:
        """For strategy "hard", the student's probability of each label [B, *spatial]."""
        if self.contrast.strategy != "hard":
            return None
        probability = context.student.logits.detach().float().softmax(1)
        small = functional.interpolate(probability, tuple(label.shape[1:]), mode="nearest-exact")
        return small.gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1)

    def _gather(self, rows: Tensor, context: StepContext, classes: int = 1) -> Tensor:
        """The teacher's rows [classes B k, ...] of every process, in the order of the joined batch."""
        return self._processes.gather(rows, context.taught, context.weak.shape[0], classes)

    def _sample(
        self, features: Tensor, label: Tensor, labeled: int, seed: int, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows and labels of the pixels that a draw from the joined batch gives to the images of this process."""
        sample = secl_ops.sample_pixels(
            self._joined(label, labeled, IGNORED),
            self.contrast.per_class,
            num_classes=self.classes,
            ignore_index=IGNORED,
            strategy="uniform" if self.contrast.strategy == "hard" and scores is None else self.contrast.strategy,
            scores=None if scores is None else self._joined(scores, labeled, 0.0),
            seed=seed,
        )
        index, labels = self._own_pixels(sample.index, sample.label, label, labeled)
        return secl_ops.gather_pixels(features, index, unique=True), labels

    def _places(self, images: int, labeled: int) -> tuple[slice, slice]:
        """Where the labelled and the other images of this process stand in the joined batch."""
        share, others = self._processes.share, images - labeled
        first = labeled * share.count + share.rank * others
        return share.of(labeled * share.count), slice(first, first + others)

    def _joined(self, maps: Tensor, labeled: int, empty: float) -> Tensor:
        """The maps [B, *spatial] at their places in the joined batch, those of other processes left `empty`."""
        joined = maps.new_full((maps.shape[0] * self._processes.share.count, *maps.shape[1:]), empty)
        first, second = self._places(maps.shape[0], labeled)
        joined[first], joined[second] = maps[:labeled], maps[labeled:]
        return joined

    def _own_pixels(self, index: Tensor, labels: Tensor, maps: Tensor, labeled: int) -> tuple[Tensor, Tensor]:
        """What was drawn from this process's images, numbered within its own maps [B, *spatial]."""
        images = maps.shape[0] * self._processes.share.count
        places = self._places(maps.shape[0], labeled)
        moved = (places[0].start, places[1].start - labeled)
        found = []
        for place, images_before in zip(places, moved, strict=True):
            own = index.view(self.classes, images, -1)[:, place]
            found.append(torch.where(own < 0, own, own - images_before * maps[0].numel()))
        own_labels = [labels.view(self.classes, images, -1)[:, place] for place in places]
        return torch.cat(found, 1).flatten(), torch.cat(own_labels, 1).flatten()

    def _info_nce(
        self,
        anchors: Tensor,
        keys: list[Tensor],
        anchor_labels: Tensor,
        key_labels: list[Tensor],
        *,
        anchor_groups: Tensor | None = None,
        key_groups: list[Tensor] | None = None,
    ) -> Tensor:
        """The mean over the anchors of all processes that have a positive."""
        options: dict[str, Any] = {
            "anchor_labels": anchor_labels,
            "key_labels": key_labels,
            "temperature": self.contrast.temperature,
            "denominator": self.contrast.denominator,
            "backend": self.contrast.backend,
            "anchor_groups": anchor_groups,
            "key_groups": key_groups,
        }
        if not self._processes.several:
            loss: Tensor = secl_ops.info_nce(anchors, keys, **options)
            return loss
        parts = secl_ops.info_nce_parts(anchors, keys, **options)
        sums = self._processes.total(torch.stack([parts.loss.sum(), (parts.count > 0).sum().float()]))
        return sums[0] / sums[1].clamp_min(1)

    def _share_of(self, mask: Tensor) -> Tensor:
        """Share of True over all processes, each of which holds as many."""
        return self._processes.total(mask.float().mean() / self._processes.share.count)

    def _pseudo_statistics(self, pseudo: Tensor, context: StepContext) -> dict[str, Tensor]:
        """Coverage of the unlabelled images, and precision of the foreground where the truth is known."""
        coverage = {"coverage": self._share_of(pseudo[context.taught :] != IGNORED)}
        if not context.taught:
            return coverage
        known, truth = pseudo[: context.taught], context.label
        claimed = (known > 0) & (truth != IGNORED)
        right, claims = self._processes.total(torch.stack([(claimed & (known == truth)).sum(), claimed.sum()]))
        return coverage | {"precision": right / claims.clamp_min(1)}
