# SPDX-License-Identifier: Apache-2.0
"""Files that hold one slice each: the scan that each belongs to, its place there, and the label of the whole scan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from secl_models.data.sampling import Integers
from secl_models.data.volumes import Volume

_SLICE_NAME = re.compile(r"(?P<scan>.+?)_slice_?(?P<number>\d+)")  # SSL4MIS: patient001_frame01_slice_7


def scan_places(names: list[str]) -> tuple[Integers, Integers, Integers]:
    """Number of the scan, index of the slice and count of slices, for files that may hold one slice each."""
    parts = [_SLICE_NAME.fullmatch(name) for name in names]
    owners = [match["scan"] if match else name for match, name in zip(parts, names, strict=True)]
    number = np.array([int(match["number"]) if match else 0 for match in parts], np.int64)
    _, first, scan = np.unique(np.array(owners, np.str_), return_index=True, return_inverse=True)
    lowest, highest = np.full(len(first), np.iinfo(np.int64).max), np.zeros(len(first), np.int64)
    np.minimum.at(lowest, scan, number)
    np.maximum.at(highest, scan, number)
    # Scans are numbered in the order of their first file.
    rank = np.argsort(np.argsort(first))
    return rank[scan], (number - lowest[scan]), (highest - lowest)[scan] + 1


def scan_labels(volumes: Iterable[Volume]) -> Iterator[npt.NDArray[np.int64]]:
    """The labels of volumes, and of slices those of the scans that they make up; a missing slice shows nothing.

    Args:
        volumes: With labels; the slices of one scan have one shape.

    Yields:
        Class index [*spatial].
    """
    slices: list[tuple[str, npt.NDArray[np.int64]]] = []
    for volume in volumes:
        label = np.asarray(volume.label)
        if label.ndim == 3:
            yield label
        else:
            slices.append((volume.case.name, label))
    scan, height, extent = scan_places([name for name, _ in slices])
    for number in range(int(scan.max(initial=-1)) + 1):
        own = np.flatnonzero(scan == number)
        whole = np.zeros((*slices[own[0]][1].shape, int(extent[own[0]])), np.int64)
        for place in own:
            whole[..., int(height[place])] = slices[place][1]
        yield whole
