# SPDX-License-Identifier: Apache-2.0
"""The joined batch of all processes: drawn from as a whole, so that a run is the same however many divide it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import secl_ops
from secl_models.data.labels import IGNORED
from secl_models.method.processes import Processes
from secl_ops import PixelSample


@dataclass(frozen=True)
class JoinedBatch:
    """Images of every process, the labelled ones first, as one process sees them.

    Attributes:
        processes: This process and the others; each holds as many images.
        labeled: Labelled images of this process.
        images: Images of this process.

    Example:
        >>> alone = JoinedBatch(Processes(), labeled=1, images=1)
        >>> alone.sample(torch.tensor([[[0, 1], [1, 1]]]), 1, classes=2, seed=0).label.tolist()
        [0, 1]
    """

    processes: Processes
    labeled: int
    images: int

    def sample(
        self,
        label: Tensor,
        per_class: int,
        classes: int,
        seed: int,
        *,
        strategy: str = "uniform",
        scores: Tensor | None = None,
    ) -> PixelSample:
        """What a draw from the joined batch gives to the images of this process.

        Args:
            label: [B, *spatial] class index, -1 ignored, of this process's images.
            per_class: Pixels of each class and image, at most.
            classes: Number of classes.
            seed: Of the draw, the same in every process.
            strategy: As in `secl_ops.sample_pixels`.
            scores: [B, *spatial] for strategy "hard".

        Returns:
            Pixels numbered within this process's maps, class by class, then image by image.
        """
        sample = secl_ops.sample_pixels(
            self._joined(label, IGNORED), per_class, num_classes=classes, ignore_index=IGNORED, strategy=strategy,
            scores=None if scores is None else self._joined(scores, 0.0), seed=seed,
        )  # fmt: skip
        return self._own(sample, classes, label[0].numel()) if self.processes.several else sample

    def gather(self, rows: Tensor, classes: int = 1) -> Tensor:
        """Rows [classes B k, ...] of every process, in the order of the joined batch, without a gradient."""
        return self.processes.gather(rows, self.labeled, self.images, classes)

    def _places(self) -> tuple[slice, slice]:
        """Where the labelled and the other images of this process stand in the joined batch."""
        share, others = self.processes.share, self.images - self.labeled
        first = self.labeled * share.count + share.rank * others
        return share.of(self.labeled * share.count), slice(first, first + others)

    def _joined(self, maps: Tensor, empty: float) -> Tensor:
        """The maps [B, *spatial] at their places in the joined batch, those of other processes left `empty`."""
        if not self.processes.several:
            return maps
        joined = maps.new_full((self.images * self.processes.share.count, *maps.shape[1:]), empty)
        first, second = self._places()
        joined[first], joined[second] = maps[: self.labeled], maps[self.labeled :]
        return joined

    def _own(self, sample: PixelSample, classes: int, pixels: int) -> PixelSample:
        """What was drawn from this process's images, numbered within its own maps of so many pixels an image."""
        images = self.images * self.processes.share.count
        places = self._places()
        moved = (places[0].start, places[1].start - self.labeled)
        found = []
        for place, images_before in zip(places, moved, strict=True):
            own = sample.index.view(classes, images, -1)[:, place]
            found.append(torch.where(own < 0, own, own - images_before * pixels))
        labels = [sample.label.view(classes, images, -1)[:, place] for place in places]
        return PixelSample(torch.cat(found, 1).flatten(), torch.cat(labels, 1).flatten())
