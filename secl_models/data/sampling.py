# SPDX-License-Identifier: Apache-2.0
"""Which slices a step shows and where it crops them: small host arrays, functions of (seed, stream, step)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


class Share(NamedTuple):
    """The part of a joined batch that one of several processes takes: whole by default."""

    rank: int = 0
    # The name hides tuple.count, which nobody calls on two numbers.
    count: int = 1  # type: ignore[assignment]

    def of(self, joined: int) -> slice:
        """Places of this part among `joined` samples.

        Args:
            joined: Samples of all processes, a multiple of `count`.

        Example:
            >>> Share(rank=1, count=2).of(8)
            slice(4, 8, None)
        """
        own = joined // self.count
        return slice(self.rank * own, (self.rank + 1) * own)


WHOLE = Share()


def epoch_sequence(seed: int, stream: int, first: int, count: int, items: Integers) -> Integers:
    """Entries `first` to `first + count` of an endless run of permutations of `items`, a fresh one per epoch.

    Args:
        seed: Of the run.
        stream: Separates sequences of one seed.
        first: Entries drawn before, over all steps.
        count: Entries to draw.
        items: What an epoch shows; may be empty only where nothing is drawn.

    Example:
        >>> sorted(epoch_sequence(0, 0, first=6, count=3, items=np.array([4, 5, 6])).tolist())
        [4, 5, 6]
    """
    epochs, places = np.divmod(np.arange(first, first + count), max(1, len(items)))
    drawn = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        drawn[now] = items[_permutation(seed, stream, int(epoch), len(items))[places[now]]]
    return drawn


@lru_cache(maxsize=16)
def _permutation(seed: int, stream: int, epoch: int, size: int) -> Integers:
    order = np.random.default_rng((seed, stream, epoch)).permutation(size).astype(np.int64)
    order.flags.writeable = False
    return order


def random_starts(shapes: Integers, patch: Integers, random: np.random.Generator) -> Integers:
    """First voxel of a patch `[B, dims]`: anywhere inside a larger image, centred around a smaller one.

    Args:
        shapes: Image shapes in voxels `[B, dims]`.
        patch: Patch shape `[dims]`.
        random: Source of randomness; draws the same amount whatever the shapes.
    """
    slack = shapes - patch
    inside = (random.random(shapes.shape) * (slack + 1)).astype(np.int64)
    return np.where(slack >= 0, inside, _padded(slack))


def centred_starts(shapes: Integers, patch: Integers, centres: Integers) -> Integers:
    """First voxel of a patch `[B, dims]` centred on a voxel, moved back where it would leave the image."""
    slack = shapes - patch
    inside = np.clip(centres - patch // 2, 0, np.maximum(slack, 0))
    return np.where(slack >= 0, inside, _padded(slack))


def _padded(slack: Integers) -> Integers:
    # An odd row of padding goes behind the image, as in MONAI's sliding window at prediction.
    return -(-slack // 2)


class Partners:
    """Finds for each item a random one of another scan in the same group of relative slice position.

    Args:
        group: Partition of each item `[n]`.
        scan: Scan of each item `[n]`.

    Example:
        >>> partners = Partners(group=np.array([0, 1, 0, 1]), scan=np.array([0, 0, 1, 1]))
        >>> partners.draw(np.array([0, 3]), np.random.default_rng(0)).tolist()
        [2, 1]
    """

    def __init__(self, group: Integers, scan: Integers) -> None:
        self._order = np.lexsort((scan, group))
        # Sorted so, the items of one scan are neighbours within their group: a run that a draw can jump over.
        groups = group[self._order]
        runs = groups * (int(scan.max(initial=0)) + 1) + scan[self._order]
        self._place = np.argsort(self._order)
        self._group_first, self._group_end = (np.searchsorted(groups, groups, side) for side in ("left", "right"))
        self._run_first, self._run_end = (np.searchsorted(runs, runs, side) for side in ("left", "right"))

    def draw(self, items: Integers, random: np.random.Generator) -> Integers:
        """A partner for each item `[B]`: of another scan, else another of the group, else the item itself."""
        place = self._place[items]
        first, size = self._group_first[place], self._group_end[place] - self._group_first[place]
        own, own_size = self._run_first[place], self._run_end[place] - self._run_first[place]
        alone = own_size == size
        own, own_size = np.where(alone, place, own), np.where(alone, 1, own_size)
        others = size - own_size
        chosen = first + (random.random(len(items)) * others).astype(np.int64)
        chosen = np.where(chosen >= own, chosen + own_size, chosen)
        return self._order[np.where(others > 0, chosen, place)]
