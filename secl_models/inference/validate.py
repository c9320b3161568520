# SPDX-License-Identifier: Apache-2.0
"""The quick look at the validation cases: Dice per structure, and how far pseudo-labels can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secl_models.data.labels import IGNORED
from secl_models.data.open_labels import settled
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.inference.panels import slice_panels
from secl_models.inference.windows import predict_volume
from secl_models.method.networks import TappedModule
from secl_models.options.schema import RunConfig


@dataclass(frozen=True)
class Validation:
    """Means over the validation patients; NaN where nothing could be scored.

    What would be pseudo-labels are held against the truth: the voxels whose probability reaches
    `contrast.confidence`, each structure on its own.
    """

    dice: float  # mean over structures, in [0, 1]
    structures: tuple[float, ...]  # Dice of class index 1..K
    precision: float  # share of the confident foreground voxels whose class is right
    coverage: tuple[float, ...]  # of class index 1..K: share of its true voxels that get a confident class, any
    purity: tuple[float, ...]  # of class index 1..K: share of the voxels confidently called so that are it
    picture: npt.NDArray[np.uint8] | None = None  # the first case, see `slice_panels`

    def row(self, names: Sequence[str]) -> dict[str, float]:
        """Columns of the history.

        Args:
            names: Structures in the order of the class index 1..K.

        Returns:
            `val_dice`, `val_precision`, and `dice`, `coverage` and `purity` of each structure.
        """
        values = {"val_dice": self.dice, "val_precision": self.precision}
        for kind, numbers in (("dice", self.structures), ("coverage", self.coverage), ("purity", self.purity)):
            values |= {f"{kind} {name}": number for name, number in zip(names, numbers, strict=True)}
        return values


def overlap_counts(prediction: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Voxels of the intersection and summed voxels of both masks, for each structure.

    Args:
        prediction: [*spatial] class index.
        truth: [*spatial] class index.
        classes: Structures K.

    Returns:
        Two float64 [K]; Dice = 2 intersection / sum.

    Example:
        >>> [count.tolist() for count in overlap_counts(torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0]), 1)]
        [[1.0], [3.0]]
    """
    table = _confusion(prediction.flatten(), truth.flatten(), classes)
    return table.diagonal()[1:], (table.sum(0) + table.sum(1))[1:]


def _confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Voxels by true and predicted class, [K + 1, K + 1] float64."""
    width = classes + 1
    return torch.bincount(truth * width + prediction, minlength=width * width).view(width, width).double()


def validate(
    network: TappedModule,
    preprocess: Preprocess,
    config: RunConfig,
    volumes: Sequence[Volume],
    classes: int,
) -> Validation:
    """Score the network on labelled volumes.

    Dice is taken per volume and averaged over the volumes of a patient, then over patients. A structure that
    only one of prediction and truth shows has Dice 0; one that neither shows or that the label leaves out is left out,
    and so is every voxel of which the label says nothing.

    Args:
        network: In evaluation mode.
        preprocess: The one of the training run.
        config: The one of the training run.
        volumes: Labelled validation volumes.
        classes: Structures K.

    Returns:
        The means.
    """
    patients: dict[str, list[Tensor]] = {}
    trusted = torch.zeros(classes + 1, classes + 1, dtype=torch.float64)  # confident voxels by truth and claim
    true = torch.zeros(classes + 1, dtype=torch.float64)
    picture = None
    for volume in volumes:
        probability, prediction = predict_volume(network, preprocess, config, volume).max(0)
        truth, unlabeled = torch.as_tensor(volume.label), volume.case.unlabeled
        if picture is None:
            picture = slice_panels(volume.image[0], truth.numpy(), prediction.numpy())
        truth = settled(truth, prediction, unlabeled)
        said = truth != IGNORED
        probability, prediction, truth = probability[said], prediction[said], truth[said]
        both, total = overlap_counts(prediction, truth, classes)
        # Absent in both is 0 / 0, the NaN that the means below leave out.
        dice = 2.0 * both / total
        dice[[index - 1 for index in unlabeled]] = math.nan
        patients.setdefault(volume.case.patient, []).append(dice)
        confident = probability >= config.contrast.confidence
        trusted += _confusion(prediction[confident], truth[confident], classes)
        true += torch.bincount(truth, minlength=classes + 1)
    if not patients:
        unknown = (math.nan,) * classes
        return Validation(math.nan, unknown, math.nan, unknown, unknown)
    means = torch.stack([torch.stack(scores).nanmean(0) for scores in patients.values()]).nanmean(0)  # [K]
    right, claimed = trusted.diagonal()[1:], trusted.sum(0)[1:]
    return Validation(
        float(means.nanmean()),
        tuple(means.tolist()),
        float(right.sum() / claimed.sum()),  # 0 / 0, which is NaN, where nothing is confident
        tuple((trusted.sum(1)[1:] / true[1:]).tolist()),
        tuple((right / claimed).tolist()),
        picture,
    )
