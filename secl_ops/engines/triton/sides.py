# SPDX-License-Identifier: Apache-2.0
"""The two sides of a contrast as the kernels stream them: rows by group and class, and where each finds the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from secl_ops import tiles
from secl_ops.engines.triton.arrange import arrange_kernel
from secl_ops.engines.triton.grids import cells, on
from secl_ops.engines.triton.order import order_kernel
from secl_ops.spec import Pairs

IGNORED = 2**63 - 1  # the rank of an ignored row: behind all others
_LABELS = 2**32  # above every label: the ranks of one group


class Names(NamedTuple):
    """What tells the rows of one side apart."""

    labels: Tensor  # [n] int32
    groups: Tensor | None  # [n] int32


class Meeting(NamedTuple):
    """The order of two sides by group and label, ignored rows last, and where each row of the first finds the second.

    Runs are places [first, stop) on the other side, [2, n] int32 by place.
    """

    row: Tensor  # [n] int32: the row at each place
    other_row: Tensor  # [m] int32
    run: Tensor  # of the rows that may be compared
    own: Tensor  # of those of the same label
    zone: Tensor | None  # between which those lie that an exclusion parts from the row
    excluded: Tensor | None = None  # [m] int32: the row that each place of the other side excludes, -1 for none
    met: Tensor | None = None  # all but `excluded` as one buffer, for a later pass over the same sides

    @classmethod
    def of(cls, met: Tensor, rows: int, others: int | None, zoned: bool) -> Meeting:
        """The parts of a buffer of `tiles.met_places`; others None: the same side twice."""
        behind = tiles.whole(rows) + tiles.whole(4 * rows)
        row = met.narrow(0, 0, rows)
        run, own = met.narrow(0, tiles.whole(rows), 4 * rows).view(4, rows).split(2)
        other_row = row if others is None else met.narrow(0, behind, others)
        behind += 0 if others is None else tiles.whole(others)
        zone = met.narrow(0, behind, 2 * rows).view(2, rows) if zoned else None
        return cls(row, other_row, run, own, zone, met=met)


def meet(side: Names, other: Names, *, exclude: Tensor | None = None, other_exclude: Tensor | None = None) -> Meeting:
    """Order both sides, the same one or two; rows of either may exclude one of the other's, by its number."""
    rows, shared = side.labels.shape[0], side is other
    others, zoned = None if shared else other.labels.shape[0], exclude is not None or other_exclude is not None
    if not tiles.counts(rows, other.labels.shape[0]):
        found, excluded = _sort(side, other, exclude=exclude, other_exclude=other_exclude)
        return Meeting.of(found, rows, others, zoned)._replace(excluded=excluded)
    gaps = rows % 4 or (others or 0) % 4  # between the parts, which no kernel writes
    fresh = side.labels.new_zeros if gaps else side.labels.new_empty
    meeting = Meeting.of(fresh(tiles.met_places(rows, others, zoned)), rows, others, zoned)
    excluded = None if other_exclude is None else torch.empty_like(meeting.other_row)
    blocks = cells(rows, tiles.ORDER_ROWS) + (0 if others is None else cells(others, tiles.ORDER_ROWS))
    with on(meeting.row):
        order_kernel[(blocks,)](
            *side, exclude, *other, other_exclude, meeting.row, None if shared else meeting.other_row, meeting.run,
            meeting.zone, excluded,
            rows, other.labels.shape[0], BLOCK_N=tiles.ORDER_ROWS, BLOCK_M=tiles.ORDER_OTHERS,
        )  # fmt: skip
    return meeting._replace(excluded=excluded)


def _sort(
    side: Names, other: Names, *, exclude: Tensor | None, other_exclude: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The same of many rows: the buffer of the meeting, and the row that each place of the other side excludes."""
    row, rank = _sorted(side)
    other_row, other_rank = (row, rank) if side is other else _sorted(other)
    own = [torch.searchsorted(other_rank, rank, right=right) for right in (False, True)]
    if side.groups is not None:
        group = rank - rank % _LABELS
        run = [torch.searchsorted(other_rank, group), torch.searchsorted(other_rank, group + _LABELS)]
    else:
        last = torch.searchsorted(other_rank, rank.new_full((1,), IGNORED))
        run = [torch.zeros_like(own[0]), last.expand_as(own[0])]
    parts = [row, torch.where(rank < IGNORED, torch.stack([*run, *own]), 0).flatten()]
    parts += [] if side is other else [other_row]
    excluded = None
    if exclude is not None:
        places = excluded_places(exclude, row, other_row)
        parts += [places, torch.where(places < 0, places, places + 1)]
    if other_exclude is not None:
        excluded = excluded_places(other_exclude, other_row, row)
        parts += [_zone_of_excluding(excluded, len(row)).flatten()]
    aligned = [functional.pad(part, (0, -len(part) % 4)) for part in parts[: 2 if side is other else 3]]
    return torch.cat([*aligned, *parts[len(aligned) :]]).int(), excluded


def _zone_of_excluding(excluded: Tensor, count: int) -> Tensor:
    """Between which places of the other side those lie that exclude each of `count` rows: [2, count] int32."""
    target, place = torch.sort(excluded, stable=True)
    rows = torch.arange(count, device=excluded.device, dtype=excluded.dtype)
    first, stop = (torch.searchsorted(target, rows, right=right) for right in (False, True))
    ends = place[first.clamp(max=len(place) - 1)], place[(stop - 1).clamp(min=0)] + 1
    return torch.where(first < stop, torch.stack(ends), 0).int()


def excluded_places(exclude: Tensor, row: Tensor, other_row: Tensor) -> Tensor:
    """The place on the other side that each row must not see, by place [n] int32; -1 for none."""
    place = torch.empty_like(other_row).index_copy_(
        0, other_row.long(), torch.arange(len(other_row), dtype=other_row.dtype, device=row.device)
    )
    wanted = exclude[row]
    exists = (wanted >= 0) & (wanted < len(other_row))
    return torch.where(exists, place[torch.where(exists, wanted, 0)], -1).int()


def _sorted(side: Names) -> tuple[Tensor, Tensor]:
    """The row at each place, and the ranks in ascending order: group * 2^32 + label."""
    rank = side.labels.long()
    if side.groups is not None:
        rank = rank + side.groups.long() * _LABELS
    rank, row = torch.sort(torch.where(side.labels < 0, IGNORED, rank), stable=True)
    return row, rank


class State(NamedTuple):
    """What a backward pass knows of each anchor, by place."""

    numbers: Tensor  # [4, n']: log-sum-exp in base 2, push, draw, push / 2^lse
    live: Tensor  # [tiles] int32: whether an anchor of the tile counts


class Side(NamedTuple):
    """Arranged rows [n', WIDTH], padded with zeros to whole tiles and to the kernels' width."""

    rows: Tensor
    sums: Tensor | None  # [tiles, WIDTH] fp32: sum of each tile
    state: State | None
    copies: Tensor | None  # [n'] fp32: how often each row counts


class Upstream(NamedTuple):
    """What the backward pass is given of each anchor, [n] each, and the scale of the similarity."""

    grad: Tensor  # of any stride
    push: Tensor
    draw: Tensor
    lse: Tensor
    scale: float


def arrange(
    rows: Tensor,  # [n, D]
    labels: Tensor,  # [n]
    order: Tensor,  # [n]
    *,
    factor: Tensor | None = None,  # [n]
    copies: Tensor | None = None,  # [n], how often each row counts
    sums: bool = False,
    upstream: Upstream | None = None,
) -> Side:
    """Copy the rows into their order, ignored ones as zeros, each times its factor where there is one."""
    count, width = rows.shape
    padded, places = tiles.padded_width(width), cells(count, tiles.MOST_ROWS) * tiles.MOST_ROWS
    blocks = places // tiles.SUM_ROWS
    out = rows.new_empty((places, padded))
    wide = out.new_empty((blocks, padded) if sums else 0, dtype=torch.float32)
    state, placed = None, None
    if copies is not None:
        placed = functional.pad(copies.float().index_select(0, order), (0, places - count), value=1.0)
    if upstream is not None:
        state = State(wide.new_empty((4, places)), labels.new_empty(blocks))
    columns = min(tiles.COPY_COLUMNS, padded)
    grad, push, draw, lse, scale = (None, None, None, None, 0.0) if upstream is None else upstream
    with on(rows):
        arrange_kernel[(blocks, padded // columns)](
            rows, labels, order, factor, placed, out, wide if sums else None, grad, push, draw, lse,
            *(state or (None, None)),
            count, places, *rows.stride(), 0 if grad is None else grad.stride(0), float(scale),
            OUT=width, WIDTH=padded, BLOCK_N=tiles.SUM_ROWS, BLOCK_D=columns,
        )  # fmt: skip
    return Side(out, wide if sums else None, state, placed)


def rules_of(pairs: Pairs) -> tuple[bool, bool]:
    """Whether keys of an anchor's own label attract it, and whether the others repel it.

    Raises:
        ValueError: Some keys attract or repel and others do not: the kernels know one rule for all.
    """
    count = pairs.key_labels.shape[0]
    for name in ("positive_start", "negative_stop"):
        if getattr(pairs, name) not in (0, count):
            raise ValueError(f"{name} must be 0 or the number of keys, {count}; got {getattr(pairs, name)}")
    return pairs.positive_start < count, pairs.negative_stop > 0


def names_of(pairs: Pairs) -> tuple[Names, Names]:
    """Labels and groups of the anchors and of the keys; groups count where both sides have them."""
    if pairs.anchor_labels is None or pairs.key_labels is None:
        raise TypeError("anchor_labels and key_labels must be tensors; got None")
    grouped = pairs.anchor_groups is not None and pairs.key_groups is not None
    anchors, keys = (
        Names(labels.contiguous(), groups.contiguous() if grouped and groups is not None else None)
        for labels, groups in ((pairs.anchor_labels, pairs.anchor_groups), (pairs.key_labels, pairs.key_groups))
    )
    return anchors, keys


def met_by(meeting: Meeting, rules: tuple[bool, bool]) -> Meeting:
    """Keys that do not repel are met by their own class alone."""
    return meeting if rules[1] else meeting._replace(run=meeting.own)
