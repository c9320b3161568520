# SPDX-License-Identifier: Apache-2.0
"""The largest part of each structure: against scikit-image's labels, on a CPU and by the steps of a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import measure
from torch import Tensor

from secl_models.method.largest_part import exchange_numbers, keep_largest, largest_parts, one_part_structures

CLASSES = 4
SHAPES = [(40, 33), (14, 12, 9)]


def blobs(shape: tuple[int, ...], smooth: float, seed: int) -> Tensor:
    """Three maps [3, *shape] of structures in many parts, a tenth of the voxels ignored."""
    rng = np.random.default_rng(seed)
    noise = [[ndimage.gaussian_filter(rng.standard_normal(shape), smooth) for _ in range(CLASSES)] for _ in range(3)]
    label = np.argmax(np.array(noise), 1)
    return torch.from_numpy(np.where(rng.random((3, *shape)) < 0.1, -1, label))


def assert_largest(label: Tensor, kept: Tensor) -> None:
    """What is kept is one part of the largest size; the rest of the structure is background, all else as it was."""
    for before, after in zip(label.numpy(), kept.numpy(), strict=True):
        assert np.array_equal(before[before <= 0], after[before <= 0])
        for index in range(1, CLASSES):
            parts = measure.label(before == index, connectivity=before.ndim)
            left = np.unique(parts[after == index])
            assert len(left) == (1 if parts.any() else 0)
            assert set(np.unique(after[before == index])) <= {0, index}
            sizes = np.bincount(parts.ravel())[1:]
            assert (after == index).sum() == sizes.max(initial=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smooth", [1.0, 2.0, 4.0])
def test_one_part_of_the_largest_size_stays(shape: tuple[int, ...], smooth: float) -> None:
    label = blobs(shape, smooth, seed=0)
    given = label.clone()
    assert_largest(label, largest_parts(label, CLASSES))
    assert_largest(label, exchange_numbers(label, CLASSES))
    assert torch.equal(label, given)


def test_a_structure_that_is_absent_or_whole_stays() -> None:
    label = torch.zeros(2, 6, 6, dtype=torch.int64)
    label[1, 1:3] = 2
    for keep in (largest_parts, exchange_numbers):
        assert torch.equal(keep(label, CLASSES), label)


def test_numbers_leap_across_a_long_part() -> None:
    """A neighbour a round would need 500 of them."""
    label = torch.zeros(1, 3, 500, dtype=torch.int64)
    label[0, 1] = 1
    assert torch.equal(exchange_numbers(label, 2, rounds=16), label)
    assert not torch.equal(exchange_numbers(label, 2, rounds=1), label)


def wound(size: int) -> dict[str, np.ndarray]:
    """Shapes along which a number has a long way: a ring that is open, a spiral, and a line through a whole slice."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    line = np.zeros((size, size), bool)
    line[::2] = True
    for turn in range(1, size - 1, 2):
        line[turn, -1 if turn % 4 == 1 else 0] = True
    return {
        "ring": (abs(radius - size / 3) < 3) & ~((rows > 0) & (abs(columns) < size / 20)),
        "spiral": ((radius - angle / (2 * np.pi) * 12) % 12 < 5) & (radius < size / 2 - 4) & (radius > 5),
        "line": line,
    }


@pytest.mark.parametrize("name", wound(8))
@pytest.mark.parametrize("turn", range(4))
def test_a_part_that_is_wound_stays_whole(name: str, turn: int) -> None:
    label = torch.from_numpy(np.rot90(wound(192)[name], turn).astype(np.int64))[None]
    assert torch.equal(exchange_numbers(label, 2), largest_parts(label, 2))


def test_a_structure_is_one_part_where_every_case_that_shows_it_says_so() -> None:
    one, two = np.zeros((20, 20, 2), np.int64), np.zeros((20, 20, 2), np.int64)
    one[:10, :10], one[15:, :2], one[15:, 6:8] = 1, 2, 2  # structure 2 in two parts
    two[5:, 5:15], two[0, 0, 0] = 1, 1  # a stray voxel of 301
    two[:4, 12:] = 3
    assert one_part_structures([one, two], classes=4) == (1, 3)  # none shows 4
    two[0, 2, 0] = two[0, 4, 0] = two[0, 6, 0] = 1  # more than one in a hundred
    assert one_part_structures([one, two], classes=4) == (3,)
    assert one_part_structures([], classes=2) == ()


def test_only_what_is_named_becomes_one_part() -> None:
    label = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [2, 0, 2, 2]])
    keep_largest(label, only=(2,))
    assert label.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 2, 2]]
    keep_largest(label, only=())
    assert label[0].tolist() == [1, 0, 1, 1]
