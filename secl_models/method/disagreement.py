# SPDX-License-Identifier: Apache-2.0
"""Pull of pixels to class prototypes where only one of student and teacher is sure."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import secl_ops
from secl_models.data.labels import IGNORED
from secl_models.method.joined import JoinedBatch
from secl_models.method.label_maps import resize_labels
from secl_models.method.processes import Processes
from secl_models.method.step import StepContext, TermValue, stream_seed
from secl_models.options.schema import RunConfig


class DisagreementTerm(nn.Module):
    """A perturbed student's pixels, drawn to the teacher's class prototypes where the two differ in confidence.

    With g the mean of the lowest `share` of the highest probabilities of both networks, a pixel is pulled where one
    of its two is above g and the other is not; its class c is the truth, or that of the network that is above. With f
    its student's row near the output and p the mean unit rows of the teacher, of labelled and of sure pixels:

        term = mean over drawn pixels of -log softmax over classes of cos(f, p) at c, plus 1 - cos(f, p_c)

    After Lei et al., Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation, ICCV
    2025: its cross-prototype consistency, with the moving average in place of a second network.

    Args:
        config: Whole configuration of the run.
        classes: K + 1.
        width: Of the map near the output.
        processes: Those that share the joined batch of a step.
    """

    def __init__(self, config: RunConfig, classes: int, width: int, processes: Processes) -> None:
        super().__init__()
        self.options, self.contrast, self.seed = config.disagreement, config.contrast, config.seed
        self.classes = classes
        self._processes = processes

    def forward(self, context: StepContext, head: nn.Module) -> TermValue:
        """The term of one step."""
        if context.unmixed is None or not context.taught:
            raise ValueError("the pull needs both networks' views of the unmixed images")
        batch = JoinedBatch(self._processes, context.labeled, context.weak.shape[0])
        pulled = self._pulled(context, batch)
        sure = context.claims(self.contrast.confidence)
        rows, label = self._draw(context, batch, context.unmixed.last, pulled, "student pixels")
        with torch.no_grad():
            theirs = torch.cat([context.label, sure])
            prototypes, count = self._prototypes(
                batch, *self._draw(context, batch, context.teacher.last, theirs, "teacher pixels")
            )
        share = self._processes.total((pulled != IGNORED).float().mean() / self._processes.share.count)
        return TermValue(self._pull(rows.float(), label, prototypes, count > 0), {"anchors": share})

    @torch.no_grad()
    def _pulled(self, context: StepContext, batch: JoinedBatch) -> Tensor:
        """Class [L + U, *patch] of the pixels of which one network is sure and the other is not, -1 elsewhere."""
        assert context.unmixed is not None
        logits = torch.stack([context.unmixed.logits, context.teacher.logits]).float()  # [2, B, K + 1, *patch]
        confidence, claimed = logits.softmax(2).max(2)
        border = lowest_mean(batch.gather(confidence.flatten(0, 1).flatten(1), 2), self.options.share)
        ours, theirs = confidence > border
        label = torch.where(theirs, claimed[1], claimed[0])
        guess = label[context.labeled :]
        if context.shown is not None:
            guess = torch.where(context.shown, guess, IGNORED)
        label = torch.cat([context.label, guess])
        return torch.where(ours ^ theirs, label, IGNORED)

    def _draw(
        self, context: StepContext, batch: JoinedBatch, features: Tensor, label: Tensor, stream: str
    ) -> tuple[Tensor, Tensor]:
        """Rows [C n, D] and labels of drawn pixels of this process, class by class."""
        small, seed = resize_labels(label, tuple(features.shape[2:])), stream_seed(self.seed, context.step, stream)
        index, drawn = batch.sample(small, self.contrast.per_class, self.classes, seed)
        return secl_ops.gather_pixels(features, index, unique=True), drawn

    def _prototypes(self, batch: JoinedBatch, rows: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mean unit row of each class [C, D] over the joined batch, and how many there were."""
        unit, label = (batch.gather(each, self.classes) for each in (normalize(rows.float(), dim=1), label))
        return secl_ops.class_means(unit, label, self.classes)

    def _pull(self, rows: Tensor, label: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        """Mean over the pixels of all processes whose class has a prototype."""
        number = torch.arange(self.classes, device=rows.device)
        label = torch.where(known[label.clamp_min(0)], label.long(), IGNORED)
        spread = secl_ops.info_nce(
            rows, prototypes, anchor_labels=label, key_labels=torch.where(known, number, IGNORED), temperature=1.0,
            reduction="sum", backend=self.contrast.backend,
        )  # fmt: skip
        counted = label != IGNORED
        distance = (1.0 - cosine_similarity(rows, prototypes[label.clamp_min(0)])) * counted
        sums = self._processes.total(torch.stack([spread + distance.sum(), counted.sum().float()]))
        return sums[0] / sums[1].clamp_min(1)


def lowest_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the lowest `share` of all values, at least of one, without sorting them.

    Example:
        >>> lowest_mean(torch.tensor([5.0, 1.0, 2.0, 9.0]), 0.5).item()
        1.5
    """
    values = values.flatten()
    count = max(1, int(share * values.numel()))
    last = values.kthvalue(count).values
    below = values < last
    rest = count - below.sum()  # values that equal the last
    return (torch.where(below, values, 0.0).sum() + rest * last) / count
