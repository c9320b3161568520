# SPDX-License-Identifier: Apache-2.0
"""The contrast and its reduction by Triton kernels: outputs allocated, tiles picked, grids launched."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.ordering import rank
from secl_ops.engines.reference import ContrastState, Reduction
from secl_ops.engines.triton import contrast, rows
from secl_ops.engines.triton.grids import cells, on
from secl_ops.spec import Flag, Pairs

LOG2E = 1.4426950408889634
BOUNDED_SCALE = 40.0  # exp(-2 * 40) is a normal fp32 number: a fixed maximum loses no pair of unit rows


def _tile_options(tile: tiles.Tile) -> dict[str, int]:
    return {
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_D": tile.block_d,
        "BLOCK_OUT": tile.block_out,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _launch(kernel: Any, tile: tiles.Tile, count: int, columns: int, *arguments: object, **options: object) -> None:
    grid = (cells(count, tile.block_n), cells(columns, tile.block_out))
    kernel[grid](*arguments, **options, **_tile_options(tile))


def _dense(pairs: Pairs) -> Pairs:
    """The pair tensors as the kernels index them: contiguous, groups on both sides or none."""
    grouped = pairs.anchor_groups is not None and pairs.key_groups is not None
    tensors = (value if value is None else value.contiguous() for value in pairs[:5])
    labels, key_labels, groups, key_groups, exclude = tensors
    if labels is None or key_labels is None:
        raise TypeError("anchor_labels and key_labels must be tensors; got None")
    return pairs._replace(
        anchor_labels=labels,
        key_labels=key_labels,
        anchor_groups=groups if grouped else None,
        key_groups=key_groups if grouped else None,
        exclude=exclude,
    )


class _Visits(NamedTuple):
    """In which order the second pass visits rows that stay where they lie; None: one after another."""

    anchors: Tensor | None = None  # [N] int64
    keys: Tensor | None = None  # [M] int64
    key_rank: Tensor | None = None  # [M], ascending


def _visits(anchors: Tensor, keys: Tensor, pairs: Pairs, flags: Flag) -> _Visits:
    """By group and label where a sort pays: each block of anchors then has its positives in one run of keys."""
    attracting = max(0, keys.shape[0] - pairs.positive_start)
    if Flag.ORDERED in flags or not tiles.sorts(anchors.shape[0], attracting, anchors.shape[1], anchors.dtype):
        return _Visits()
    key_rank, key_order = torch.sort(rank(pairs.key_labels, pairs.key_groups), stable=True)
    if Flag.SELF in flags:
        return _Visits(key_order, key_order, key_rank)
    anchor_order = torch.sort(rank(pairs.anchor_labels, pairs.anchor_groups), stable=True).indices
    return _Visits(anchor_order, key_order, key_rank)


def contrast_forward(
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    scale: float,
    flags: Flag,
    known_lse: Tensor | None = None,
    key_inverse: Tensor | None = None,
) -> ContrastState:
    """Loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the reference's formula and arguments."""
    anchors, keys, pairs = anchors.contiguous(), keys.contiguous(), _dense(pairs)
    count, width = anchors.shape
    value, scan = Flag.ANCHOR_GRADIENT in flags, Flag.SCAN in flags
    fresh = anchors.new_zeros if scan else anchors.new_empty  # a scan leaves the loss alone
    loss, pull = (fresh(count, dtype=torch.float32) for _ in range(2))
    lse = anchors.new_empty(count, dtype=torch.float32) if known_lse is None else known_lse.float().clone()
    grad = anchors.new_empty((count if value else 0, width), dtype=torch.float32)
    state = ContrastState(loss, lse, pull, fresh(count, dtype=torch.int32), grad)
    sides = (anchors, keys, *pairs[:5], None if key_inverse is None else key_inverse.contiguous())
    sizes = (count, keys.shape[0], pairs.positive_start, pairs.negative_stop, float(scale) * LOG2E)
    options = {"WIDTH": width, "NEGATIVES": Flag.NEGATIVES in flags, "SELF": Flag.SELF in flags, "VALUE": value}
    columns = width if value else 1
    bounded = Flag.UNIT in flags and scale <= BOUNDED_SCALE
    with on(anchors):
        if known_lse is None:
            tile = tiles.pick(width, anchors.dtype, "value" if value else "scan")
            arguments = (*sides, lse, grad, *sizes, float(scale) * LOG2E, float(scale) if scan else 1.0)
            _launch(contrast.denominator_kernel, tile, count, columns, *arguments, BOUNDED=bounded, **options)
        if not scan:
            options["KNOWN"] = known_lse is not None
            tile = tiles.pick(width, anchors.dtype, "positive")
            visits = _visits(anchors, keys, pairs, flags)
            _launch(
                contrast.positive_kernel, tile, count, columns, *sides, *visits, *state, *sizes, float(scale), **options
            )  # fmt: skip
    return state


def contrast_backward(
    factors: tuple[Tensor, Tensor, Tensor],
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    lse: Tensor,
    scale: float,
    flags: Flag,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i grad_loss_i L_i: of the anchors [N, D] and of the keys [M, D], [0, D] where not asked for.

    The factors are grad_loss (of any stride), push and draw, [N] each; an anchor whose push and draw are 0 does not
    count. Under SELF the first is the gradient of the shared rows in both roles, and the second is empty.
    """
    pairs = _dense(pairs)
    grad_loss, push, draw = factors
    saved = (grad_loss, push.contiguous(), draw.contiguous(), lse.contiguous())
    anchor_side = _Side(anchors.contiguous(), pairs.anchor_labels, pairs.anchor_groups)
    key_side = _Side(keys.contiguous(), pairs.key_labels, pairs.key_groups)
    shared = Flag.SELF in flags
    grad_anchors, grad_keys = (anchors.new_empty((0, anchors.shape[1]), dtype=torch.float32) for _ in range(2))
    if shared or Flag.ANCHOR_GRADIENT in flags:
        grad_anchors = _gradient(anchor_side, key_side, pairs, saved, scale, flags, anchors=True, keys=shared)
    if not shared and Flag.KEY_GRADIENT in flags:
        grad_keys = _gradient(key_side, anchor_side, pairs, saved, scale, flags, anchors=False, keys=True)
    return grad_anchors, grad_keys


class _Side(NamedTuple):
    rows: Tensor
    labels: Tensor
    groups: Tensor | None


def _gradient(
    side: _Side, other: _Side, pairs: Pairs, saved: tuple[Tensor, ...], scale: float, flags: Flag, *,
    anchors: bool, keys: bool,
) -> Tensor:  # fmt: skip
    """Gradient of one side's rows in their roles, the other side streaming past."""
    count, width = side.rows.shape
    result = side.rows.new_empty((count, width), dtype=torch.float32)
    with on(result):
        _launch(
            contrast.gradient_kernel, tiles.pick(width, side.rows.dtype, "gradient"), count, width,
            side.rows, other.rows, side.labels, other.labels, side.groups, other.groups, pairs.exclude, *saved, result,
            count, other.rows.shape[0], pairs.positive_start, pairs.negative_stop, saved[0].stride(0),
            float(scale) * LOG2E, float(scale),
            WIDTH=width, NEGATIVES=Flag.NEGATIVES in flags, SELF=Flag.SELF in flags,
            ROWS_ARE_ANCHORS=anchors, ROWS_ARE_KEYS=keys,
        )  # fmt: skip
    return result


def reduce(loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str) -> Reduction:
    """Value of the weighted losses [N] under a reduction, and what it makes of each anchor, in one launch."""
    size = loss.shape[0]
    value = loss.new_empty(size if reduction == "none" else ())
    factor, push, draw = (torch.empty_like(loss) for _ in range(3))
    given = (loss, pull, count, None if weights is None else weights.contiguous())
    with on(loss):
        rows.reduce_kernel[(1,)](
            *given, value, factor, push, draw, size,
            MEAN=reduction == "mean", NONE=reduction == "none", BLOCK_N=tiles.REDUCE_ROWS, num_warps=8,
        )  # fmt: skip
    return Reduction(value, factor, push, draw)
