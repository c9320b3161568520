# SPDX-License-Identifier: Apache-2.0
"""The contrast and its reduction by Triton kernels: outputs allocated, tiles picked, grids launched."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.reference import ContrastState, Reduction
from secl_ops.engines.triton import contrast, gradient, rows, weighing
from secl_ops.engines.triton.grids import cells, grid_of, launch, on, parts_of, pick, widths_of
from secl_ops.engines.triton.sides import Meeting, Side, Upstream, arrange, meet, met_by, names_of, rules_of
from secl_ops.spec import Flag, Pairs

LOG2E = 1.4426950408889634
BOUNDED_SCALE = 40.0  # exp(-2 * 40) is a normal fp32 number: a fixed maximum loses no pair of unit rows


def _of_weights(pairs: Pairs, flags: Flag) -> Flag:
    """The flags of a pass: a bound of the similarities is none of those of weighted keys."""
    return flags if pairs.key_weights is None else flags & ~Flag.UNIT


class _Parts(NamedTuple):
    """The sums of the denominator's parts: maximum, sum and mean key of each anchor."""

    top: Tensor | None  # [parts, N]
    sum: Tensor | None  # [parts, N]
    mean: Tensor | None  # [parts, N, D]
    number: int
    placed: bool  # the means lie where the rows of the call do, not in their order


def contrast_forward(
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    scale: float,
    flags: Flag,
    known_lse: Tensor | None = None,
    key_inverse: Tensor | None = None,
    met: Tensor | None = None,
) -> ContrastState:
    """Loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the reference's formula and arguments."""
    flags = _of_weights(pairs, flags)
    rules, shared, scan = rules_of(pairs), Flag.SELF in flags, Flag.SCAN in flags
    anchor_names, key_names = names_of(pairs)
    exclude = None if pairs.exclude is None or shared else pairs.exclude.contiguous()
    if met is None:
        meeting = meet(anchor_names, anchor_names if shared else key_names, exclude=exclude)
    else:
        meeting = Meeting.of(met, *_sizes(anchors, keys, flags), exclude is not None)
    kept = meeting.met if met is None and (shared or scan) else None
    meeting = met_by(meeting, rules)
    sums = Flag.NEGATIVES not in flags and not scan
    copies = pairs.key_weights
    key_side = arrange(keys, key_names.labels, meeting.other_row, factor=key_inverse, copies=copies, sums=sums)
    anchor_side = key_side if shared else arrange(anchors, anchor_names.labels, meeting.row)
    state = _state(anchors, Flag.ANCHOR_GRADIENT in flags, scan, torch.int32 if copies is None else torch.float32)
    parts = _Parts(None, None, None, 0, True)
    if known_lse is None:
        hole = meeting.own if Flag.NEGATIVES in flags or not rules[0] else None
        parts = _denominator(anchor_side, key_side, meeting, hole, state.grad_anchors, scale, flags)
    if not rules[0]:
        meeting = meeting._replace(own=torch.zeros_like(meeting.own))
    call = _Forward(anchor_side, key_side, meeting, parts, known_lse, state, scale, flags)
    if copies is not None and not scan:
        _weigh(call)
    finish = _merge if scan else _class_mean if sums else _positive
    finish(call)
    return state._replace(met=kept)


def _sizes(anchors: Tensor, keys: Tensor, flags: Flag) -> tuple[int, int | None]:
    """Rows of either side of a meeting; None: of the same one."""
    return anchors.shape[0], None if Flag.SELF in flags else keys.shape[0]


def _state(anchors: Tensor, value: bool, scan: bool, counted: torch.dtype) -> ContrastState:
    count, width = anchors.shape
    fresh = anchors.new_zeros if scan else anchors.new_empty  # a scan leaves the loss alone
    loss, pull = (fresh(count, dtype=torch.float32) for _ in range(2))
    lse = anchors.new_empty(count, dtype=torch.float32)
    grad = anchors.new_empty((count if value else 0, width), dtype=torch.float32)
    return ContrastState(loss, lse, pull, fresh(count, dtype=counted), grad)


def _bounded(flags: Flag, scale: float) -> bool:
    return Flag.UNIT in flags and scale <= BOUNDED_SCALE


def _denominator(
    anchors: Side, keys: Side, meeting: Meeting, hole: Tensor | None, grad: Tensor, scale: float, flags: Flag
) -> _Parts:
    """Sums over the denominator's keys, less a hole; one part leaves its means where the gradient will be."""
    value, bounded = Flag.ANCHOR_GRADIENT in flags, _bounded(flags, scale)
    count, width = len(meeting.row), grad.shape[1]
    columns = anchors.rows.shape[1] if value else 0
    purpose = "scan" if not value else "value" if bounded else "value_running"
    tile = pick(anchors.rows, width, purpose, count, len(meeting.other_row))
    parts = parts_of(anchors.rows, tile, count, columns, len(meeting.other_row))
    top, total = (grad.new_empty((parts, count)) for _ in range(2))
    mean = grad if parts == 1 or not value else grad.new_empty((parts, count, width))
    with on(grad):
        launch(
            contrast.denominator_kernel, tile, grid_of(count, columns, parts),
            anchors.rows, keys.rows, meeting.run, hole, meeting.zone,
            None if keys.copies is None else keys.copies.log2(),
            meeting.row if parts == 1 else None, top, total, mean,
            count, float(scale) * LOG2E, float(scale) * LOG2E,
            **widths_of(anchors.rows, width), SELF=Flag.SELF in flags, BOUNDED=bounded, VALUE=value,
        )  # fmt: skip
    return _Parts(top, total, mean, parts, parts == 1)


class _Forward(NamedTuple):
    """What the rest of the forward pass works on."""

    anchors: Side
    keys: Side
    meeting: Meeting  # its own runs are the positives
    parts: _Parts
    known_lse: Tensor | None
    state: ContrastState
    scale: float
    flags: Flag

    @property
    def width(self) -> int:
        """Of the rows as the call has them."""
        return self.state.grad_anchors.shape[1]

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows of either side."""
        return len(self.meeting.row), len(self.meeting.other_row)

    def purpose(self, usual: str) -> str:
        """What a kernel's tile is picked for."""
        return usual if self.keys.copies is None else f"{usual}_weighted"

    @property
    def options(self) -> dict[str, int]:
        """What the kernels are compiled for."""
        value = Flag.ANCHOR_GRADIENT in self.flags
        own = {"SELF": Flag.SELF in self.flags, "VALUE": value, "PLACED": self.parts.placed}
        return {**widths_of(self.anchors.rows, self.width), **own}


def _merge(call: _Forward) -> None:
    """The log-sum-exp of the parts, and its gradient."""
    count, value, state = len(call.meeting.row), Flag.ANCHOR_GRADIENT in call.flags, call.state
    if call.known_lse is not None:
        state.lse.copy_(call.known_lse)
        return
    tile = tiles.MERGE_TILE
    with on(state.lse):
        contrast.merge_kernel[(cells(count, tile.block_n), cells(call.width, tile.block_out) if value else 1)](
            call.meeting.row, *call.parts[:3], state.lse, state.grad_anchors,
            count, call.parts.number, float(call.scale),
            OUT=call.width, VALUE=value, PLACED=call.parts.placed, BLOCK_N=tile.block_n, BLOCK_OUT=tile.block_out,
        )  # fmt: skip


def _weigh(call: _Forward) -> None:
    """What the positives of each anchor weigh together, as their count."""
    copies, meeting = call.keys.copies, call.meeting
    assert copies is not None, "keys of one weight are counted where their loss is"
    weights = copies.view(-1, tiles.SUM_ROWS).sum(1)
    with on(copies):
        weighing.weigh_kernel[(cells(len(meeting.row), tiles.WEIGHED_ROWS),)](
            meeting.own, meeting.zone, copies, weights, meeting.row, call.state.count, len(meeting.row),
            SELF=Flag.SELF in call.flags,
            BLOCK_N=tiles.WEIGHED_ROWS, BLOCK_M=tiles.SUM_ROWS, BATCH=tiles.LIVE_BATCH,
        )  # fmt: skip


def _positive(call: _Forward) -> None:
    """The rest under "negatives": each pair of one class."""
    rows, meeting = call.anchors.rows, call.meeting
    columns = rows.shape[1] if Flag.ANCHOR_GRADIENT in call.flags else 0
    with on(rows):
        launch(
            contrast.positive_kernel, pick(rows, call.width, call.purpose("positive"), *call.sizes),
            grid_of(len(meeting.row), columns),
            rows, call.keys.rows, meeting.own, meeting.zone, call.keys.copies, meeting.row, _fp32(call.known_lse),
            *call.parts[:3], *call.state[:5],
            len(meeting.row), call.parts.number, float(call.scale) * LOG2E, float(call.scale), **call.options,
        )  # fmt: skip


def _class_mean(call: _Forward) -> None:
    """The rest under "all": the sum of each class."""
    rows, meeting = call.anchors.rows, call.meeting
    tile = pick(rows, call.width, call.purpose("classes"), *call.sizes)
    with on(rows):
        launch(
            contrast.class_mean_kernel, tile, grid_of(len(meeting.row), 0),
            rows, call.keys.rows, call.keys.sums, meeting.own, meeting.zone, call.keys.copies, meeting.row,
            _fp32(call.known_lse), *call.parts[:3], *call.state[:5],
            len(meeting.row), call.parts.number, float(call.scale), SUM_ROWS=tiles.SUM_ROWS, **call.options,
        )  # fmt: skip


def _fp32(known_lse: Tensor | None) -> Tensor | None:
    return None if known_lse is None else known_lse.float().contiguous()


def contrast_backward(
    factors: tuple[Tensor, Tensor, Tensor],
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    lse: Tensor,
    scale: float,
    flags: Flag,
    met: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i grad_loss_i L_i: of the anchors [N, D] and of the keys [M, D], [0, D] where not asked for.

    The factors are grad_loss (of any stride), push and draw, [N] each; an anchor whose push and draw are 0 does not
    count. Under SELF the first is the gradient of the shared rows in both roles, and the second is empty.
    """
    flags = _of_weights(pairs, flags)
    shared, (grad_loss, push, draw) = Flag.SELF in flags, factors
    if not shared:  # an anchor that does not count is no anchor: no NaN of its row reaches a key
        counted = (push != 0) | (draw != 0)
        pairs = pairs._replace(anchor_labels=torch.where(counted, pairs.anchor_labels, -1))
    rules, (anchor_names, key_names) = rules_of(pairs), names_of(pairs)
    exclude = None if pairs.exclude is None or shared else pairs.exclude.contiguous()
    upstream = Upstream(grad_loss, push.contiguous(), draw.contiguous(), lse.contiguous(), scale)
    grad_anchors, grad_keys = (anchors.new_empty((0, anchors.shape[1]), dtype=torch.float32) for _ in range(2))
    if shared or Flag.ANCHOR_GRADIENT in flags:
        if shared and met is not None:
            meeting = Meeting.of(met, *_sizes(anchors, keys, flags), False)
        else:
            meeting = meet(anchor_names, anchor_names if shared else key_names, exclude=exclude)
        meeting = met_by(meeting, rules)
        anchor_side = arrange(anchors, anchor_names.labels, meeting.row, upstream=upstream)
        key_side = anchor_side if shared else arrange(keys, key_names.labels, meeting.other_row)
        grad_anchors = _gradient(anchor_side, key_side, meeting, anchors.shape, scale, flags, rules, keys=shared)
    if not shared and Flag.KEY_GRADIENT in flags:
        meeting = meet(key_names, anchor_names, other_exclude=exclude)
        key_side = arrange(keys, key_names.labels, meeting.row)
        anchor_side = arrange(anchors, anchor_names.labels, meeting.other_row, upstream=upstream)
        grad_keys = _gradient(
            key_side, anchor_side, met_by(meeting, rules), keys.shape, scale, flags, rules, anchors=False, keys=True
        )
        if pairs.key_weights is not None:
            grad_keys *= pairs.key_weights.unsqueeze(1)
    return grad_anchors, grad_keys


def _gradient(
    side: Side, other: Side, meeting: Meeting, size: torch.Size, scale: float, flags: Flag, rules: tuple[bool, bool], *,
    anchors: bool = True, keys: bool,
) -> Tensor:  # fmt: skip
    """Gradient of one side's rows in their roles, the other side streaming past."""
    (count, width), state = size, side.state or other.state
    if state is None:
        raise TypeError("the anchors of a backward pass must be arranged with their state")
    bounded, columns, others = _bounded(flags, scale), side.rows.shape[1], len(meeting.other_row)
    tile = pick(side.rows, width, "gradient" if bounded else "gradient_running", count, others)
    parts = parts_of(side.rows, tile, count, columns, others)
    result = side.rows.new_empty((count, width), dtype=torch.float32)
    written = result if parts == 1 else result.new_empty((parts, count, width))
    with on(result):
        launch(
            gradient.gradient_kernel, tile, grid_of(count, columns, parts),
            side.rows, other.rows, state.numbers, state.live, meeting.run, meeting.own, meeting.zone, meeting.excluded,
            meeting.row if parts == 1 else None, written,
            count, others, state.numbers.shape[1], state.live.shape[0], float(scale) * LOG2E,
            **widths_of(side.rows, width), SELF=Flag.SELF in flags, BOUNDED=bounded, NEGATIVES=Flag.NEGATIVES in flags,
            POSITIVE=rules[0], ROWS_ARE_ANCHORS=anchors, ROWS_ARE_KEYS=keys, BATCH=tiles.LIVE_BATCH,
        )  # fmt: skip
        if parts > 1:
            merge = tiles.MERGE_TILE
            gradient.sum_parts_kernel[(cells(count, merge.block_n), cells(width, merge.block_out))](
                written, meeting.row, result, count, parts,
                OUT=width, BLOCK_N=merge.block_n, BLOCK_D=merge.block_out,
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
