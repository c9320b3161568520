# SPDX-License-Identifier: Apache-2.0
"""Which way the axes of a stored array run through the patient, and turning it the way the training images run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.volumes import Volume

THICK = 1.5  # times the other sides: a stack of slices


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


def directions(volume: Volume) -> tuple[float, ...] | None:
    """Unit vectors of the three stored axes in the world, one after the other; None for h5 and for single slices.

    Args:
        volume: Its affine decides.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> from secl_models.data.volumes import load_volume
        >>> data = read_data_set(Path("phantom"))
        >>> len(directions(load_volume(data.cases[0], data)))
        9
    """
    if volume.spacing is None or volume.image.ndim != 4:
        return None
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    return tuple(round(float(part), 4) for part in axes.T.ravel())


def turn_to(orientation: tuple[float, ...] | None, volume: Volume) -> Turn:
    """The flips and permutation that bring a volume's axes nearest to those of an orientation.

    Nearest to the training images and not to the planes of the scanner: oblique stacks, as of hearts, lie between
    these, and would be turned differently from patient to patient.

    Args:
        orientation: What `directions` gives for the wanted order; None for the order as stored.
        volume: As read.

    Returns:
        The identity for None, and for a volume without a known grid.
    """
    return turn_between(orientation, directions(volume))


def turn_between(orientation: tuple[float, ...] | None, own: tuple[float, ...] | None) -> Turn:
    """The same for the directions of a volume.

    Args:
        orientation: The wanted directions.
        own: Those of the volume.
    """
    if orientation is None or own is None:
        return Turn()
    cosines = np.array(orientation).reshape(3, 3) @ np.array(own).reshape(3, 3).T  # [wanted axis, stored axis]
    orders = list(itertools.permutations(range(3)))  # the identity first: it wins a tie
    order = max(orders, key=lambda axes: sum(abs(cosines[wanted, axis]) for wanted, axis in enumerate(axes)))
    return Turn(order, tuple(sorted(axis for wanted, axis in enumerate(order) if cosines[wanted, axis] < 0)))


def untold(orientation: tuple[float, ...] | None, volume: Volume) -> bool:
    """Whether of network and volume one alone knows how its axes run, so that neither can be turned to the other.

    Args:
        orientation: As for `turn_to`.
        volume: As read.
    """
    return (orientation is None) != (directions(volume) is None) and volume.image.ndim == 4


def thick_axis(volume: Volume) -> int | None:
    """The stored axis across thick slices; None where no side of a voxel is far longer than both others."""
    if volume.spacing is None or len(volume.spacing) < 3:
        return None
    *_, second, longest = sorted(volume.spacing)
    return volume.spacing.index(longest) if longest >= THICK * second else None


def cut_across(orientation: tuple[float, ...] | None, volume: Volume) -> bool:
    """Whether the slices of a network in two dimensions run across the thick slices of a stack.

    So it is where these lie more than 45 degrees off those of the training images, or are not stored along the last
    axis.

    Args:
        orientation: As for `turn_to`.
        volume: As read.
    """
    axis = thick_axis(volume)
    return axis is not None and turn_to(orientation, volume).order[2] != axis


def reference(volumes: Iterable[Volume]) -> tuple[float, ...] | None:
    """The directions of the volume that most others lie like, the first of equals; None where none has any."""
    known = [volume for volume in volumes if directions(volume) is not None]
    alike = [sum(turn_to(directions(one), other) == Turn() for other in known) for one in known]
    return directions(known[alike.index(max(alike))]) if known else None
