# SPDX-License-Identifier: Apache-2.0
"""Several prototypes of each class: a second prediction inside the mixed loss, and what pixels contrast with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import secl_ops
from secl_models.data.labels import IGNORED
from secl_models.method.joined import JoinedBatch
from secl_models.method.label_maps import pseudo_labels, resize_labels
from secl_models.method.processes import Processes
from secl_models.method.step import StepContext, TermValue, stream_seed
from secl_models.method.supervised import supervised_loss
from secl_models.options.schema import RunConfig

TINY = 1e-24  # square of a length below which a feature counts as zero


class PrototypeTerm(nn.Module):
    """Moving prototypes p_ck that classify the mixtures beside the network's own last layer, which alone predicts.

    With f the unit row of a pixel of the mapped student's features near the output, and t the temperature:

        logit of class c     z_c = max over k of <f, p_ck> / t
        second prediction    S = supervised_loss(z, truth) + w_mix supervised_loss(z, teacher's classes)
        pixel to prototype   N = mean over drawn pixels of a structure c of -log softmax of <f, p> / t over all
                             prototypes, at the nearest of class c
        term                 weight S + contrast N

    A prototype moves to decay p + (1 - decay) (mean of the drawn rows of its class that are nearest to it), made unit;
    those of a class begin as the centres of its first rows. After Bi et al., Multi-Prototype Embedding Refinement for
    Semi-Supervised Medical Image Segmentation, ICASSP 2025, arXiv:2503.14343, with the pixel-prototype contrast of
    Zhou et al., Rethinking Semantic Segmentation: A Prototype View, CVPR 2022.

    Args:
        config: Whole configuration of the run.
        classes: K + 1.
        width: Of the map near the output.
        processes: Those that share the joined batch; every one holds the same prototypes.
    """

    rows: Tensor  # [C, K, D] unit; zero: of a class that was not seen yet

    def __init__(self, config: RunConfig, classes: int, width: int, processes: Processes) -> None:
        super().__init__()
        self.options, self.mixed_weight, self.seed = config.prototype, config.mix.weight, config.seed
        self.backend = config.contrast.backend
        self.classes = classes
        self._processes = processes
        self.register_buffer("rows", torch.zeros(classes, config.prototype.count, width))

    def forward(self, context: StepContext, head: nn.Module) -> TermValue:
        """The term of one step, after its drawn pixels have moved the prototypes."""
        if context.guess is None:
            raise ValueError("the prototypes need the mixture that the student saw")
        mapped: Tensor = head(context.student.last)
        with torch.autocast(mapped.device.type, enabled=False):
            mapped = mapped.float()  # [L, D, *spatial]
            batch = JoinedBatch(self._processes, context.labeled, context.labeled)
            seen = resize_labels(self._sure(context), tuple(mapped.shape[2:]))
            seed = stream_seed(self.seed, context.step, "student pixels")
            index, label = batch.sample(seen, self.options.per_class, self.classes, seed)
            rows = secl_ops.gather_pixels(mapped, index, normalize=True, unique=True)
            self._move(batch.gather(rows.detach(), self.classes), batch.gather(label, self.classes))
            second = self._second(self.logits(mapped), context)
            nearest = self._nearest(rows, label)
        value = self.options.weight * second + self.options.contrast * nearest
        return TermValue(value, {"second": second.detach(), "nearest": nearest.detach()})

    def logits(self, mapped: Tensor) -> Tensor:
        """The second prediction [B, C, *spatial] from features [B, D, *spatial] of any length."""
        flat = mapped.flatten(2)
        best = (self.rows.flatten(0, 1) @ flat).unflatten(1, (self.classes, -1)).amax(2)  # [B, C, pixels]
        # The length divides what is left of them: to make every feature a unit first takes twice as long.
        length = (flat * flat).sum(1, keepdim=True).clamp_min(TINY).sqrt()
        score: Tensor = best / (length * self.options.temperature)
        return score.view(*score.shape[:2], *mapped.shape[2:])

    def _sure(self, context: StepContext) -> Tensor:
        """Class of the mixtures' pixels [L, *patch]: the truth, or the teacher's where it is sure."""
        assert context.mixture is not None
        assert context.guess is not None
        sure = pseudo_labels(context.teacher.logits[context.taught :], self.options.confidence)
        # What the mixed loss made of the teacher's classes, such as their largest parts, holds here as well.
        agreed = torch.where(sure[context.mixture.partner] == IGNORED, IGNORED, context.guess)
        return torch.where(context.mixture.inside, context.label, agreed)

    def _second(self, logits: Tensor, context: StepContext) -> Tensor:
        """The mixed loss of the second prediction."""
        assert context.guess is not None
        truth, guess = (resize_labels(label, tuple(logits.shape[2:])) for label in (context.truth, context.guess))
        known = supervised_loss(logits, truth, self._processes, context.class_sets)
        return known + self.mixed_weight * supervised_loss(logits, guess, self._processes)

    def _nearest(self, rows: Tensor, label: Tensor) -> Tensor:
        """Contrast of drawn rows [C n, D] with all prototypes, one of which is the positive; background ignored."""
        count = self.options.count
        each = rows.detach().unflatten(0, (self.classes, -1))  # drawn class by class
        place = (each @ self.rows.transpose(1, 2)).argmax(2)  # [C, n]
        number = torch.arange(self.classes * count, device=rows.device)
        positive = (place + number[::count].unsqueeze(1)).flatten()
        known = self._known()
        anchors = torch.where((label > 0) & known[label.clamp_min(0)], positive, IGNORED)
        total = secl_ops.info_nce(
            rows,
            self.rows.flatten(0, 1),
            anchor_labels=anchors,
            key_labels=torch.where(known[number // count], number, IGNORED),
            temperature=self.options.temperature,
            reduction="sum",
            backend=self.backend,
        )
        sums = self._processes.total(torch.stack([total, (anchors != IGNORED).sum().float()]))
        return sums[0] / sums[1].clamp_min(1)

    def _known(self) -> Tensor:
        """Which classes have prototypes [C]."""
        return (self.rows != 0).flatten(1).any(1)

    @torch.no_grad()
    def _move(self, rows: Tensor, label: Tensor) -> None:
        """Move the prototypes to the rows [C n, D] of the joined batch, drawn class by class; -1: a free place."""
        rows, there = rows.unflatten(0, (self.classes, -1)), label.unflatten(0, (self.classes, -1)) != IGNORED
        mean, count = nearest_means(rows, there, self.rows)
        moved = normalize(self.rows.lerp(mean, 1.0 - self.options.decay), dim=2)
        moved = torch.where((count > 0).unsqueeze(2), moved, self.rows)
        first = cluster(rows, there, self.options.count)
        self.rows = torch.where(self._known().view(-1, 1, 1), moved, first)


def nearest_means(rows: Tensor, there: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the rows that are nearest to each centre.

    Args:
        rows: [C, n, D] unit.
        there: [C, n] whether a row counts.
        centres: [C, K, D] unit.

    Returns:
        ([C, K, D] mean, zero without a row; [C, K] count).
    """
    place = (rows @ centres.transpose(1, 2)).argmax(2, keepdim=True)  # [C, n, 1]
    own = (place == torch.arange(centres.shape[1], device=rows.device)) & there.unsqueeze(2)  # [C, n, K]
    count = own.sum(1)
    return own.to(rows.dtype).transpose(1, 2) @ rows / count.clamp_min(1).unsqueeze(2), count


def cluster(rows: Tensor, there: Tensor, count: int, rounds: int = 5) -> Tensor:
    """Unit centres of the unit rows of each class: spherical k-means from rows that lie far apart.

    The first centre is the row nearest to the mean, each next one the row least like those before; nothing is drawn.
    Dhillon and Modha, Concept Decompositions for Large Sparse Text Data Using Clustering, Machine Learning 2001.

    Args:
        rows: [C, n, D] unit.
        there: [C, n] whether a row counts.
        count: Centres K of each class.
        rounds: Of assigning and averaging.

    Returns:
        [C, K, D]; zero for a class of fewer than K rows.

    Example:
        >>> rows = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]]], dtype=torch.float64)
        >>> cluster(rows, torch.ones(1, 4, dtype=torch.bool), 2).round(decimals=2).tolist()
        [[[0.95, 0.32], [-0.32, 0.95]]]
    """

    def take(place: Tensor) -> Tensor:
        return rows.gather(1, place.view(-1, 1, 1).expand(-1, 1, rows.shape[2]))  # [C, 1, D]

    mean = (rows * there.unsqueeze(2)).sum(1, keepdim=True)
    found = [take((rows * mean).sum(2).masked_fill(there.logical_not(), -torch.inf).argmax(1))]
    likeness = (rows * found[0]).sum(2)
    for _ in range(count - 1):
        found.append(take(likeness.masked_fill(there.logical_not(), torch.inf).argmin(1)))
        likeness = torch.maximum(likeness, (rows * found[-1]).sum(2))
    centres = torch.cat(found, 1)
    for _ in range(rounds):
        mean, size = nearest_means(rows, there, centres)
        centres = torch.where((size > 0).unsqueeze(2), normalize(mean, dim=2), centres)
    return centres * (there.sum(1) >= count).view(-1, 1, 1)
