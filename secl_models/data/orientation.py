# SPDX-License-Identifier: Apache-2.0
"""Which way the axes of a stored array run through the patient, and turning it the way the training images run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from secl_models.data.volumes import Volume

AUTO, STORED = "auto", "stored"


@dataclass(frozen=True)
class Turn:
    """Flips and a permutation of three spatial axes, without any interpolation.

    Attributes:
        order: Stored axis that becomes axis 0, 1, 2.
        flipped: Stored axes whose direction is reversed.
    """

    order: tuple[int, ...] = (0, 1, 2)
    flipped: tuple[int, ...] = ()

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A turned view of `[..., X, Y, Z]`; what is written into it lands in the array."""
        if self == Turn():
            return array
        lead = array.ndim - len(self.order)
        flipped = np.flip(array, tuple(lead + axis for axis in self.flipped))
        return np.transpose(flipped, (*range(lead), *(lead + axis for axis in self.order)))

    def permuted(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """One value per stored axis, such as shape or spacing, in the turned order."""
        return tuple(values[axis] for axis in self.order) if len(values) == len(self.order) else values


def codes(volume: Volume) -> str | None:
    """Nearest anatomical direction of each axis, such as `RAS`; None where the file stores no grid or is one slice.

    Args:
        volume: Its affine decides, by the rule of `nibabel.aff2axcodes`.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> from secl_models.data.volumes import load_volume
        >>> data = read_data_set(Path("phantom"))
        >>> codes(load_volume(data.cases[0], data))
        'RAS'
    """
    if volume.spacing is None or volume.image.ndim != 4:
        return None
    return "".join(nib.orientations.aff2axcodes(volume.affine))  # type: ignore[no-untyped-call]


def turn_to(orientation: str, volume: Volume) -> Turn:
    """What brings a volume as stored into an orientation, to the nearest axes.

    Args:
        orientation: Three letters such as `LPS`, or `stored`.
        volume: As read.

    Returns:
        The identity for `stored`, and for a volume without a known grid.
    """
    if orientation == STORED or codes(volume) is None:
        return Turn()
    tools: Any = nib.orientations
    moves = tools.ornt_transform(tools.io_orientation(volume.affine), tools.axcodes2ornt(orientation))
    flipped = tuple(int(axis) for axis in np.flatnonzero(moves[:, 1] < 0))
    return Turn(tuple(int(axis) for axis in np.argsort(moves[:, 0])), flipped)


def commonest(volumes: Iterable[Volume]) -> str:
    """The orientation that most of the volumes have, the first of equals; `stored` where none has any."""
    counted = Counter(found for volume in volumes if (found := codes(volume)) is not None)
    return counted.most_common(1)[0][0] if counted else STORED
