# SPDX-License-Identifier: Apache-2.0
"""Rows class by class for kernels that skip tiles: most tiles then hold no positive, or nothing else, and need no mask.

The copies are O((N + M) D). A kernel that is fed by contiguous reads (TMA) cannot take rows by index.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.spec import Flag, Pairs


def pays(anchors: Tensor, keys: Tensor, flags: Flag) -> bool:
    """Whether the rows should be sorted first: they may lie in any order, and are many; no value is looked at.

    Example:
        >>> pays(torch.empty(1024, 64), torch.empty(1024, 64), Flag(0))
        False
    """
    return Flag.ORDERED not in flags and tiles.sorts(anchors.shape[0], keys.shape[0], anchors.shape[1], anchors.dtype)


class Order(NamedTuple):
    """The row of each side that comes i-th."""

    anchors: Tensor  # [N] int64
    keys: Tensor  # [M] int64

    def pairs(self, pairs: Pairs) -> Pairs:
        """The same pairs, of the rows in this order."""
        exclude = pairs.exclude
        if exclude is not None:
            place = torch.empty_like(self.keys).index_copy_(
                0, self.keys, torch.arange(self.keys.shape[0], device=self.keys.device)
            )
            exclude = exclude[self.anchors]
            inside = (exclude >= 0) & (exclude < place.shape[0])
            exclude = torch.where(inside, place[torch.where(inside, exclude, 0)], -1)
        return pairs._replace(
            anchor_labels=pairs.anchor_labels[self.anchors],
            key_labels=pairs.key_labels[self.keys],
            anchor_groups=taken(pairs.anchor_groups, self.anchors),
            key_groups=taken(pairs.key_groups, self.keys),
            exclude=exclude,
            key_weights=taken(pairs.key_weights, self.keys),
        )


def by_class(pairs: Pairs, flags: Flag) -> Order:
    """By group and label; keys stay on their side of positive_start and of negative_stop."""
    count = pairs.key_labels.shape[0]
    edges = sorted({0, min(max(pairs.positive_start, 0), count), min(max(pairs.negative_stop, 0), count), count})
    keys = _sorted(pairs.key_labels, pairs.key_groups, edges)
    if Flag.SELF in flags:
        return Order(keys, keys)
    return Order(_sorted(pairs.anchor_labels, pairs.anchor_groups, [0, pairs.anchor_labels.shape[0]]), keys)


def rank(labels: Tensor, groups: Tensor | None) -> Tensor:
    """One number [n] of each row's group and label, in ascending order of both."""
    return labels if groups is None else (groups.long() << 32) + labels


def _sorted(labels: Tensor, groups: Tensor | None, edges: list[int]) -> Tensor:
    ranks = rank(labels, groups)
    return torch.cat([torch.sort(ranks[first:last], stable=True).indices + first for first, last in pairwise(edges)])


def taken(values: Tensor | None, order: Tensor) -> Tensor | None:
    """Values [n, ...] in an order [n]."""
    return None if values is None else values[order]


def restored(values: Tensor, order: Tensor) -> Tensor:
    """Values [n, ...] that stand in an order [n], where they belong; those of no row stay none."""
    return torch.empty_like(values).index_copy_(0, order, values) if values.shape[0] else values
