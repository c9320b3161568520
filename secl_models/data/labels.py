# SPDX-License-Identifier: Apache-2.0
"""From the values of a label file to class indices, and how many of them there may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.options.errors import InputError

IGNORED = -1  # class index of padding and of everything unlabelled
OPEN = -2  # and below: background, or one of the structures that the case does not label
MOST_CLASSES = np.iinfo(np.int16).max - 1  # an axis of a NIfTI file holds the probabilities of all and the background
LARGEST_VALUE = np.iinfo(np.int32).max  # what a segmentation can be written with
WHOLE = 1e-3  # a label stored through slope and intercept is off its integer by their rounding
FIELD = "labeled"  # of dataset.json and of a table: the structures that the label of a case shows
ALSO_FIELD = "labelled"  # says the same
_MANY, _ALIKE = 16, 0.5  # values of a label, and share of equal neighbours inside it, from which it looks like an image


def class_type(count: int) -> type[np.integer[Any]]:
    """The smallest type that holds class indices 0..count.

    Args:
        count: Structures, at most `MOST_CLASSES`.

    Example:
        >>> class_type(255).__name__, class_type(256).__name__
        ('uint8', 'int16')
    """
    return np.uint8 if count < 256 else np.int16


def value_type(largest: int) -> type[np.integer[Any]]:
    """The smallest type that holds label values 0..largest, at most `LARGEST_VALUE`."""
    return np.uint8 if largest < 256 else np.int16 if largest < 32768 else np.int32


def class_index(
    stored: npt.NDArray[Any], classes: Mapping[int, str], path: Path, ignored: int | None = None
) -> npt.NDArray[np.int64]:
    """Label values to class indices: 0 stays 0, the i-th smallest value becomes i, the ignored one -1.

    Args:
        stored: Of the file; within 1e-3 of a whole number counts as that.
        classes: Label value to name.
        path: The file.
        ignored: Label value of voxels of which nothing is said; None: there is none.

    Raises:
        InputError: A value is not whole or not among the classes.
    """
    values = np.array([0, *sorted(classes)])
    whole, exact = _whole(stored)
    index = np.minimum(np.searchsorted(values, whole), len(values) - 1)
    known = (values[index] == whole) & exact
    if ignored is not None:
        left_out = (whole == ignored) & exact
        known |= left_out
        index[left_out] = IGNORED
    strange = stored[~known]
    if strange.size:
        found = ", ".join(map(_in_full, np.unique(strange)[:5]))
        more = "" if ignored is None else f", or {ignored} where nothing is said"
        rule = f"label values are among {_shortened(values)}{more}"
        got = f"{found} in {strange.size} voxels"
        raise InputError(path, rule=rule, got=got, cure="correct the label or list the value among the classes")
    return index.astype(np.int64, copy=False)


def opened(
    label: npt.NDArray[np.int64], unlabeled: Collection[int], classes: Mapping[int, str], path: Path
) -> npt.NDArray[np.int64]:
    """A label in which background may be a structure that it leaves out: -2 in the place of 0.

    Args:
        label: Class index [*spatial], -1 where nothing is said.
        unlabeled: Class indices of the structures that are left out.
        classes: Label value to structure.
        path: Its file.

    Raises:
        InputError: The label shows a structure that it is said to leave out.

    Example:
        >>> opened(np.array([0, 1, -1]), [2], {1: "liver", 2: "spleen"}, Path("a.nii")).tolist()
        [-2, 1, -1]
    """
    if not unlabeled:
        return label
    counts = {index: int((label == index).sum()) for index in unlabeled}
    if shown := [index for index, count in counts.items() if count]:
        name = classes[sorted(classes)[shown[0] - 1]]
        rule = f"a label shows none of the structures that `{FIELD}` leaves out"
        cure = f"add {name} to `{FIELD}` of this case, or clear its voxels"
        raise InputError(path, rule=rule, got=f"{counts[shown[0]]} voxels of {name}", cure=cure)
    return np.where(label == 0, OPEN, label)


def whole_values(stored: npt.NDArray[Any]) -> set[int]:
    """The whole numbers above 0 in a label; other values are for `class_index` to refuse."""
    values, exact = _whole(np.unique(stored))
    return {int(value) for value in values[exact & (values > 0)]}


def looks_like_intensities(stored: npt.NDArray[Any]) -> bool:
    """Whether many values change from voxel to voxel, as those of an image do and those of structures do not.

    Args:
        stored: `[*spatial]`.

    Example:
        >>> looks_like_intensities(np.arange(100)), looks_like_intensities(np.arange(100).repeat(4))
        (True, False)
    """
    if len(np.unique(stored)) < _MANY:
        return False
    lines = [np.moveaxis(stored, axis, 0) for axis in range(min(2, stored.ndim))]
    pairs = [(line[:-1], line[1:]) for line in lines]
    inside = sum(int(np.count_nonzero((one != 0) & (other != 0))) for one, other in pairs)
    equal = sum(int(np.count_nonzero((one == other) & (one != 0))) for one, other in pairs)
    return inside > 0 and equal < _ALIKE * inside


def _whole(stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Each value rounded, and whether it was near that; NaN and infinity are not."""
    if stored.dtype.kind != "f":
        return stored, np.ones(stored.shape, bool)
    whole = np.rint(stored)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        exact = np.abs(stored - whole) <= WHOLE
    return np.where(exact, whole, 0), exact


def _in_full(value: Any) -> str:
    """All digits where six would show another number."""
    short = f"{value:g}"
    return short if float(short) == float(value) or value != value else repr(value.item())


def _shortened(values: npt.NDArray[np.int64]) -> str:
    listed = [str(value) for value in values]
    return ", ".join(listed if len(listed) <= 20 else [*listed[:10], "...", listed[-1]])
