# SPDX-License-Identifier: Apache-2.0
"""Copy-paste between labelled and unlabelled images: a box of the one in the other, or one of the two whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secl_models.data.sampling import WHOLE, Share

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Mixture:
    """Which pixels of each mixture come from its labelled image, and which unlabelled image fills the rest."""

    inside: Tensor  # [L, *patch] bool, True: from the labelled image
    partner: Tensor  # [L] int64, place of the unlabelled image

    def of(self, labeled: Tensor, unlabeled: Tensor) -> Tensor:
        """Mix images [L, C, *patch] with [U, C, *patch], or label maps [L, *patch] with [U, *patch].

        Args:
            labeled: Of the labelled images.
            unlabeled: Of the unlabelled images, of the same type.

        Returns:
            The mixtures, shaped like `labeled`.
        """
        inside = self.inside if labeled.ndim == self.inside.ndim else self.inside.unsqueeze(1)
        return torch.where(inside, labeled, unlabeled[self.partner])


def draw_mixture(
    labeled: int,
    unlabeled: int,
    patch: tuple[int, ...],
    side: float,
    generator: torch.Generator,
    share: Share = WHOLE,
    *,
    whole: float = 0.0,
    before: int = 0,
) -> Mixture:
    """Draw a box for each labelled image: it shows the labelled image in one mixture of a pair, else its partner.

    Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023: a box of two
    thirds of each side, labelled into unlabelled and the other way round. Theirs mix every image.

    Args:
        labeled: Labelled images L of this process; as many mixtures are made.
        unlabeled: Unlabelled images U of this process, at least 1; mixture i shows number floor(i U / L), or one after
            it where there are more of them than mixtures: all take their turns over the steps.
        patch: Spatial shape in voxels.
        side: Share of each side that the box covers, in (0, 1).
        generator: Source of all randomness.
        share: The part of a joined batch that this one is; every part draws for all.
        whole: Share of the pairs of images, spread evenly, of which one is a whole labelled image and the other a
            whole unlabelled one, in [0, 1].
        before: Mixtures of the joined batches of earlier steps; the counting goes on from there, so that batches of
            one pair, or of one image, take their turns over the steps.

    Returns:
        The mixture, on the generator's device.

    Example:
        >>> mixture = draw_mixture(2, 1, (6, 6), 2 / 3, torch.Generator().manual_seed(0))
        >>> mixture.of(torch.ones(2, 6, 6), torch.zeros(1, 6, 6)).sum((1, 2)).tolist()
        [16.0, 20.0]
    """
    joined, device = labeled * share.count, generator.device
    drawn = torch.rand((joined, len(patch)), generator=generator, device=device)[share.of(joined)]  # [L, dims]
    box = torch.ones((), dtype=torch.bool, device=device)
    for axis, length in enumerate(patch):
        size = max(1, round(side * length))
        first = (drawn[:, axis] * (length - size + 1)).floor()
        voxel = torch.arange(length, device=device)
        covered = (voxel >= first.unsqueeze(1)) & (voxel < first.unsqueeze(1) + size)  # [L, length]
        view = [length if other == axis else 1 for other in range(len(patch))]
        box = box & covered.view(labeled, *view)
    number = torch.arange(labeled, device=device)
    place = (before + share.rank * labeled + number).view(-1, *[1] * len(patch))  # among those of all steps
    pair = (place // 2).double()
    unmixed = ((pair + 1) * whole).floor() > (pair * whole).floor()
    # An irrational step repeats in no rhythm, such as that of the samples that are centred on a structure.
    turned = (pair * GOLDEN) % 1.0 >= 0.5
    later = before // share.count % unlabeled
    return Mixture((box | unmixed) ^ (place % 2 == 1) ^ turned, (number * unlabeled + later) // labeled)
