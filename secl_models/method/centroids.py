# SPDX-License-Identifier: Apache-2.0
"""Contrast of pixels the student is unsure of with centroids of many images, the inside and the boundary apart."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import secl_ops
from secl_models.data.labels import IGNORED
from secl_models.method.joined import JoinedBatch
from secl_models.method.label_maps import near_another, resize_labels
from secl_models.method.processes import Processes
from secl_models.method.step import StepContext, TermValue, stream_seed
from secl_models.options.schema import RunConfig
from secl_ops import ClassQueue


class CentroidTerm(nn.Module):
    """Hard anchors of unmixed images against a bank of centroids, one for each image, class and part.

    A class has two parts, its inside and its boundary. Labels are the truth, or the teacher's class where it is sure;
    anchors a are the projected rows of labelled pixels of which the student is unsure. With the centroids of the
    anchor's own part as positives p, those of the other classes' two parts as negatives n, and those of the own
    class's other part as neither:

        L(a) = mean over p of -log(exp(<a, p> / t) / (exp(<a, p> / t) + sum over n of exp(<a, n> / t)))
        term = mean over the anchors inside of L + boundary * mean over those on boundaries of L

    Nothing is contrasted before every bank holds something. The banks keep the last centroids; those of a step enter
    after its loss. After SPCL, Intra-Class Subdivision for Pixel Contrastive Learning, ICASSP 2026, arXiv:2602.00174.

    Args:
        config: Whole configuration of the run.
        classes: K + 1.
        width: Of the map near the output.
        processes: Those that share the joined batch; every one holds the same banks.
    """

    def __init__(self, config: RunConfig, classes: int, width: int, processes: Processes) -> None:
        super().__init__()
        self.options, self.contrast, self.seed = config.centroid, config.contrast, config.seed
        self.classes = classes
        self._processes = processes
        bank = classes, config.centroid.bank, config.network.projection
        self.banks = nn.ModuleList(ClassQueue(*bank) for _ in ("inside", "boundary"))

    def forward(self, context: StepContext, head: nn.Module) -> TermValue:
        """The term of one step, whose centroids then enter the banks."""
        if context.unmixed is None:
            raise ValueError("the centroids need the student's view of the unmixed images")
        features = context.unmixed.last
        batch = JoinedBatch(self._processes, context.labeled, features.shape[0])
        part = self._parts(context)
        sure = context.unmixed.logits.detach().float().softmax(1).amax(1) > self.options.unsure
        unsure = torch.where(sure, IGNORED, part)
        rows, label = self._draw(batch, features, unsure, head, stream_seed(self.seed, context.step, "student pixels"))
        filled = torch.stack([bank.written > 0 for bank in self._banks()])
        inside, boundary = (self._contrast(rows, label, place, filled.all()) for place in (0, 1))
        with torch.no_grad():
            seed = stream_seed(self.seed, context.step, "teacher pixels")
            self._enqueue(batch, *self._draw(batch, features, part, head, seed))
        anchors = (unsure != IGNORED).float().mean() / self._processes.share.count
        found = {"banks": filled.float().mean(), "anchors": self._processes.total(anchors)}
        return TermValue(inside + self.options.boundary * boundary, found)

    def _banks(self) -> list[ClassQueue]:
        return [cast(ClassQueue, bank) for bank in self.banks]

    def _parts(self, context: StepContext) -> Tensor:
        """[L + U, *patch] class, plus K + 1 on a boundary: where the classes meet, also unsure ones of the teacher."""
        label = torch.cat([context.label, context.claims(0.0)])
        known = torch.cat([context.label, context.claims(self.contrast.confidence)]) != IGNORED
        return torch.where(known, label + self.classes * near_another(label, self.options.reach), IGNORED)

    def _draw(
        self, batch: JoinedBatch, features: Tensor, part: Tensor, head: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Projected rows [2 C B n, P] and parts of drawn pixels of this process, part by part, image by image."""
        small = resize_labels(part, tuple(features.shape[2:]))
        index, label = batch.sample(small, self.contrast.per_class, 2 * self.classes, seed)
        rows: Tensor = head(secl_ops.gather_pixels(features, index, unique=True))
        return rows, label

    def _contrast(self, rows: Tensor, label: Tensor, place: int, ready: Tensor) -> Tensor:
        """Mean loss of the anchors of one part of their class, in all processes."""
        banks, options = self._banks(), self.options
        rows, label = rows.chunk(2)[place], label.chunk(2)[place]
        anchors = torch.where(ready & (label != IGNORED), label - self.classes * place, IGNORED)
        keys = [bank.keys.to(rows.dtype) for bank in banks]  # under autocast the anchors are narrow
        total = secl_ops.info_nce(
            rows, keys, anchor_labels=anchors, key_labels=[bank.key_labels for bank in banks],
            positives=keys[place], positive_labels=banks[place].key_labels, reduction="sum",
            temperature=options.boundary_temperature if place else options.temperature, backend=self.contrast.backend,
        )  # fmt: skip
        sums = self._processes.total(torch.stack([total, (anchors != IGNORED).sum().float()]))
        return sums[0] / sums[1].clamp_min(1)

    def _enqueue(self, batch: JoinedBatch, rows: Tensor, label: Tensor) -> None:
        """Add the centroid of each image, class and part of the joined batch that has a pixel."""
        places = 2 * self.classes * batch.images
        number = torch.arange(places, device=rows.device).view(-1, 1).expand(-1, self.contrast.per_class).flatten()
        number = torch.where(label != IGNORED, number, IGNORED)
        mean, count = secl_ops.class_means(normalize(rows.float(), dim=1), number, places)
        owner = torch.arange(2 * self.classes, device=rows.device).view(-1, 1).expand(-1, batch.images).flatten()
        owner = torch.where(count > 0, owner % self.classes, IGNORED)
        parts = (batch.gather(each, 2 * self.classes).chunk(2) for each in (mean, owner))
        for bank, centroids, classes in zip(self._banks(), *parts, strict=True):
            bank.enqueue(centroids, classes)
