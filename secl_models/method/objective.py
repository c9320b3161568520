# SPDX-License-Identifier: Apache-2.0
"""What a step minimises: the supervised loss and, by method, the terms that listen to the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import secl_ops
from secl_models.data.batch import partition
from secl_models.data.labels import IGNORED
from secl_models.method.centroids import CentroidTerm
from secl_models.method.disagreement import DisagreementTerm
from secl_models.method.joined import JoinedBatch
from secl_models.method.label_maps import draw_counts, pseudo_labels, region_labels, resize_labels
from secl_models.method.largest_part import largest_parts
from secl_models.method.networks import ContrastModel
from secl_models.method.processes import Processes
from secl_models.method.prototypes import PrototypeTerm
from secl_models.method.step import StepContext, TermValue, stream_seed
from secl_models.method.supervised import ALONE, supervised_loss
from secl_models.options.methods import METHODS
from secl_models.options.schema import ContrastConfig, RunConfig

NEAR_THE_OUTPUT = {"prototype": PrototypeTerm, "centroid": CentroidTerm, "disagreement": DisagreementTerm}


class Objective(nn.Module):
    """Supervised loss plus ramped terms; holds the queues of teacher rows, prototypes and banks as its buffers.

    Total = supervised + ramp (w_consistency consistency + w_contrast (region + anatomical) + w_mix mixed + prototype +
    w_centroid centroid + w_disagreement disagreement); `METHODS` says which method has which. Xiang et al.,
    arXiv:2105.12924 (idea); hyper-parameters of Zhao et al., ICCV 2021, and Chaitanya et al., NeurIPS 2020.

    Args:
        config: Whole configuration of the run.
        classes: Structures K, without background.
        processes: Those that share the joined batch of a step: keys and sums are gathered over all of them.
        width: Of the map near the output; None: as the options say, which only a network of one's own need not heed.
    """

    def __init__(self, config: RunConfig, classes: int, processes: Processes = ALONE, width: int | None = None) -> None:
        super().__init__()
        self._processes = processes
        self.contrast: ContrastConfig = config.contrast
        self.seed = config.seed
        self.classes = classes + 1
        method = config.train.method
        self.names = METHODS[method].terms
        self.strategy, weight = config.contrast.strategy_of(method), config.contrast.weight_of(method)
        self.weights = {
            "consistency": config.train.consistency,
            "region": weight,
            "anatomical": weight,
            "mixed": config.mix.weight,
            "prototype": 1.0,  # its two parts have weights of their own
            "centroid": config.centroid.weight,
            "disagreement": config.disagreement.weight,
        }
        self.mix = config.mix
        width = config.network.channels[config.network.last] if width is None else width
        self.near_the_output = nn.ModuleDict(
            {
                name: term(config, self.classes, width, processes)
                for name, term in NEAR_THE_OUTPUT.items()
                if name in self.names
            }
        )
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
        if "mixed" in self.names:
            context = self._with_guess(context)
        total = supervised_loss(
            context.student.logits[: context.labeled], context.truth, self._processes, context.class_sets
        )
        logged = {"supervised": total.detach()}
        for name in self.names:
            if name in self.near_the_output:
                term: TermValue = self.near_the_output[name](context, student.last_head)
            else:
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

    def _with_guess(self, context: StepContext) -> StepContext:
        """The step with the teacher's classes of the unlabelled images, and of what the mixtures show of these."""
        if context.mixture is None:
            raise ValueError("the mixed term needs the mixture that the student saw")
        agreed = context.claims(0.0)
        if self.mix.largest:
            agreed = largest_parts(agreed, self.classes)
        guess = agreed
        if self.mix.confidence > 0:
            sure = pseudo_labels(context.teacher.logits[context.taught :], self.mix.confidence) != IGNORED
            guess = torch.where(sure, agreed, IGNORED)
        guess = guess[context.mixture.partner]
        return replace(context, agreed=agreed, guess=torch.where(context.mixture.inside, IGNORED, guess))

    def _mixed(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """The supervised loss against the teacher's classes where a mixture shows its unlabelled image.

        Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023.
        """
        assert context.guess is not None
        return TermValue(supervised_loss(context.student.logits, context.guess, self._processes), {})

    def _region(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """Same cell, in the other view or at the same relative position: positive; other cells: negative."""
        grid = self.contrast.grid
        batch, student_output = self._taught(context), context.unmixed or context.student
        group = partition(context.position, self.contrast.partitions)
        label = region_labels(context.weak, grid)  # [B, R]
        groups = group.unsqueeze(1).expand_as(label)
        marks = batch.gather(torch.stack([label, groups], 2).flatten(0, 1))  # [B R of all, 2]
        losses = []
        for tap, (ours, theirs) in enumerate(zip(student_output.features, context.teacher.features, strict=True)):
            anchors = student.heads[tap](secl_ops.pool_regions(ours, grid).flatten(0, 1))
            with torch.no_grad():
                keys = batch.gather(teacher.heads[tap](secl_ops.pool_regions(theirs, grid).flatten(0, 1)))
            losses.append(
                self._info_nce(
                    anchors, [keys], label.flatten(), [marks[:, 0]],
                    anchor_groups=groups.flatten(), key_groups=[marks[:, 1]],
                )
            )  # fmt: skip
        return TermValue(torch.stack(losses).mean(), {"cells": self._share_of(label != IGNORED)})

    def _anatomical(self, context: StepContext, student: ContrastModel, teacher: ContrastModel) -> TermValue:
        """Pixels of one structure, by truth or confident pseudo-label: positive; others: negative."""
        claimed = context.claims(self.contrast.confidence)
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
        return TermValue(torch.stack(losses).mean(), self._pseudo_statistics(claimed, context) | found)

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
                key_seed=key_seed, ignore_index=IGNORED, scores=scores, strategy=self.strategy, head=head,
                key_head=key_head, queue=queue, temperature=options.temperature, denominator=options.denominator,
                backend=options.backend,
            )  # fmt: skip
            return loss
        seen, taught = JoinedBatch(self._processes, context.labeled, ours.shape[0]), self._taught(context)
        rows, row_labels = self._draw(seen, ours, labels[0], seed, scores)
        anchors = head(rows)
        with torch.no_grad():
            rows, fresh_labels = self._draw(taught, theirs, labels[1], key_seed)
            fresh = taught.gather(key_head(rows).float(), self.classes)
            fresh_labels = taught.gather(fresh_labels, self.classes)
        # Under autocast the anchors are narrow; a queue is read where it lies where they are not.
        past = [] if queue is None else [queue.keys.to(anchors.dtype)]
        past_labels = [] if queue is None else [queue.key_labels]
        loss = self._info_nce(anchors, [fresh.to(anchors.dtype), *past], row_labels, [fresh_labels, *past_labels])
        if queue is not None:
            queue.enqueue(fresh, fresh_labels)
        return loss

    def _scores(self, label: Tensor, context: StepContext) -> Tensor | None:
        """For strategy "hard", the student's probability of each label [B, *spatial]."""
        if self.strategy != "hard":
            return None
        probability = context.student.logits.detach().float().softmax(1)
        small = functional.interpolate(probability, tuple(label.shape[1:]), mode="nearest-exact")
        return small.gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1)

    def _taught(self, context: StepContext) -> JoinedBatch:
        """The images that the teacher sees."""
        return JoinedBatch(self._processes, context.taught, context.weak.shape[0])

    def _draw(
        self, batch: JoinedBatch, features: Tensor, label: Tensor, seed: int, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows and labels of the pixels that a draw from the joined batch gives to the images of this process."""
        strategy = "uniform" if self.strategy == "hard" and scores is None else self.strategy
        sample = batch.sample(label, self.contrast.per_class, self.classes, seed, strategy=strategy, scores=scores)
        return secl_ops.gather_pixels(features, sample.index, unique=True), sample.label

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

    def _pseudo_statistics(self, claimed: Tensor, context: StepContext) -> dict[str, Tensor]:
        """Coverage of the unlabelled images, and precision of the foreground where the truth is known."""
        shown = torch.ones_like(claimed, dtype=torch.bool) if context.shown is None else context.shown
        covered, there = self._processes.total(torch.stack([(claimed != IGNORED).sum(), shown.sum()]))
        coverage = {"coverage": covered / there.clamp_min(1)}
        if not context.taught:
            return coverage
        known = pseudo_labels(context.teacher.logits[: context.taught], self.contrast.confidence)
        truth = context.label
        claimed = (known > 0) & (truth != IGNORED)
        right, claims = self._processes.total(torch.stack([(claimed & (known == truth)).sum(), claimed.sum()]))
        return coverage | {"precision": right / claims.clamp_min(1)}
