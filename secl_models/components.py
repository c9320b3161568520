# SPDX-License-Identifier: Apache-2.0
"""Keeping the largest connected part of every structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import measure

label_parts: Any = measure.label  # skimage types it in part


def keep_largest(label: npt.NDArray[Any]) -> None:
    """Make all but the largest part of each structure background, in place.

    Voxels belong together where they touch by a face, an edge or a corner: 26 neighbours in a volume, 8 in a slice.
    Of equally large parts the first in voxel order is kept.

    Args:
        label: Class index [*spatial].

    Example:
        >>> label = np.array([[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 1]])
        >>> keep_largest(label)
        >>> label.tolist()
        [[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 0]]
    """
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        view = label[box]
        parts: npt.NDArray[np.int32] = label_parts(view == index, connectivity=view.ndim)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        view[(parts > 0) & (parts != sizes.argmax())] = 0
