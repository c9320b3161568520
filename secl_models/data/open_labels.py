# SPDX-License-Identifier: Apache-2.0
"""Voxels around the labelled structures of a case that does not label all: what they may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secl_models.data.labels import IGNORED, OPEN


def settled(truth: Tensor, prediction: Tensor, unlabeled: Sequence[int]) -> Tensor:
    """A truth to hold a prediction against: an open voxel is background where it was called a labelled structure.

    Args:
        truth: Class index [*spatial], -1 and -2 as in a `Volume`.
        prediction: Class index [*spatial].
        unlabeled: Structures that the case does not label.

    Returns:
        Class index, -1 where the prediction can be neither right nor wrong.

    Example:
        >>> settled(torch.tensor([1, -2, -2, -2]), torch.tensor([1, 1, 2, 0]), [2]).tolist()
        [1, 0, -1, -1]
    """
    may_be = torch.zeros_like(prediction, dtype=torch.bool)
    for index in (0, *unlabeled):
        may_be |= prediction == index
    return torch.where(truth <= OPEN, torch.where(may_be, IGNORED, 0), truth)


def class_sets(sets: Sequence[Sequence[int]], classes: int) -> Tensor | None:
    """What a voxel of label -2 - p may be: background and the p-th set of structures.

    Args:
        sets: Unlabelled structures; none where every case labels all.
        classes: Structures K.

    Returns:
        [P, K + 1] bool.

    Example:
        >>> class_sets([(2,)], classes=3).tolist()
        [[True, False, True, False]]
    """
    if not sets:
        return None
    table = torch.zeros(len(sets), classes + 1, dtype=torch.bool)
    table[:, 0] = True
    for row, structures in zip(table, sets, strict=True):
        row[list(structures)] = True
    return table
