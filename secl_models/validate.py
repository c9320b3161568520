# SPDX-License-Identifier: Apache-2.0
"""The quick look at the validation cases: Dice per structure, and how far pseudo-labels can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secl_models.config import RunConfig
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.inference import predict_volume
from secl_models.networks import SegmentationNetwork


@dataclass(frozen=True)
class Validation:
    """Means over the validation patients; NaN where nothing could be scored."""

    dice: float  # mean over structures, in [0, 1]
    structures: tuple[float, ...]  # Dice of class index 1..K
    precision: float  # share of the confident foreground voxels whose class is right


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
    width = classes + 1
    pairs = (truth * width + prediction).flatten()
    table = torch.bincount(pairs, minlength=width * width).view(width, width).double()
    return table.diagonal()[1:], (table.sum(0) + table.sum(1))[1:]


def validate(
    network: SegmentationNetwork,
    preprocess: Preprocess,
    config: RunConfig,
    volumes: Sequence[Volume],
    classes: int,
) -> Validation:
    """Score the network on labelled volumes.

    Dice is taken per volume and averaged over the volumes of a patient, then over patients. A structure that
    only one of prediction and truth shows has Dice 0; one that neither shows is left out.

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
    claimed = right = 0
    for volume in volumes:
        probability, prediction = predict_volume(network, preprocess, config, volume).max(0)
        truth = torch.as_tensor(volume.label)
        both, total = overlap_counts(prediction, truth, classes)
        # Absent in both is 0 / 0, the NaN that the means below leave out.
        patients.setdefault(volume.case.patient, []).append(2.0 * both / total)
        confident = (prediction > 0) & (probability >= config.contrast.confidence)
        claimed += int(confident.sum())
        right += int((confident & (prediction == truth)).sum())
    if not patients:
        return Validation(math.nan, (math.nan,) * classes, math.nan)
    means = torch.stack([torch.stack(scores).nanmean(0) for scores in patients.values()]).nanmean(0)  # [K]
    return Validation(
        float(means.nanmean()), tuple(float(mean) for mean in means), right / claimed if claimed else math.nan
    )
