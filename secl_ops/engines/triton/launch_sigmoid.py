# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss by its Triton kernel: outputs allocated, tile picked, grid launched, parts added in their order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops.engines.reference import SigmoidState
from secl_ops.engines.triton import sigmoid
from secl_ops.engines.triton.grids import grid_of, launch, on, parts_of, pick, widths_of
from secl_ops.engines.triton.sides import Meeting, Side, arrange, meet, met_by, names_of, rules_of
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import Flag, Pairs


class _Call(NamedTuple):
    """How one side meets the other."""

    meeting: Meeting
    logit: Logit
    switches: dict[str, bool]
    weight: Tensor | None = None  # [C] of the streamed anchors by place; None: the rows are the anchors


def sigmoid_forward(
    anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag, key_inverse: Tensor | None = None
) -> SigmoidState:
    """Sigmoid loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the reference."""
    rules, shared, value = rules_of(pairs), Flag.SELF in flags, Flag.ANCHOR_GRADIENT in flags
    anchor_names, key_names = names_of(pairs)
    exclude = None if pairs.exclude is None or shared else pairs.exclude.contiguous()
    meeting = met_by(meet(anchor_names, anchor_names if shared else key_names, exclude=exclude), rules)
    key_side = arrange(keys, key_names.labels, meeting.other_row, factor=key_inverse)
    anchor_side = key_side if shared else arrange(anchors, anchor_names.labels, meeting.row)
    call = _Call(meeting, logit, {"SELF": shared, "POSITIVE": rules[0], "VALUE": value})
    return _swept(call, anchor_side, key_side, anchors.shape)


def sigmoid_backward(weight: Tensor, anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag) -> Tensor:
    """Gradient of the keys [M, D] over the scale from each anchor's weight [N]; one of weight 0 does not count."""
    rules, shared = rules_of(pairs), Flag.SELF in flags
    if not shared:  # an anchor that does not count is no anchor: no NaN of its row reaches a key
        pairs = pairs._replace(anchor_labels=torch.where(weight == 0, -1, pairs.anchor_labels))
    anchor_names, key_names = names_of(pairs)
    exclude = None if pairs.exclude is None or shared else pairs.exclude.contiguous()
    meeting = met_by(meet(anchor_names if shared else key_names, anchor_names, other_exclude=exclude), rules)
    anchor_side = arrange(anchors, anchor_names.labels, meeting.other_row)
    key_side = anchor_side if shared else arrange(keys, key_names.labels, meeting.row)
    placed = weight.float().index_select(0, meeting.other_row)
    call = _Call(meeting, logit, {"SELF": shared, "POSITIVE": rules[0], "VALUE": True}, placed)
    grad = _swept(call, key_side, anchor_side, keys.shape).grad_anchors
    return torch.where((weight != 0).any(), grad, 0.0) if shared else grad


def _swept(call: _Call, rows: Side, columns: Side, size: torch.Size) -> SigmoidState:
    """What one side's rows [n, D] find of the other; of rows that are keys the gradient alone."""
    (count, width), meeting, value, of_anchors = size, call.meeting, call.switches["VALUE"], call.weight is None
    others, padded = len(meeting.other_row), rows.rows.shape[1] if value else 0
    purpose = "sigmoid_loss" if not value else "sigmoid" if of_anchors else "sigmoid_keys"
    tile = pick(rows.rows, width, purpose, count, others)
    parts = parts_of(rows.rows, tile, count, padded, others)
    fresh = torch.empty((2, parts, count if of_anchors else 0), dtype=torch.float32, device=rows.rows.device)
    met = meeting.row.new_empty(count if of_anchors else 0)
    grad = fresh.new_empty((parts, count if value else 0, width))
    scale, bias, learned_scale, learned_bias = call.logit.arguments()
    with on(grad):
        launch(
            sigmoid.sigmoid_kernel, tile, grid_of(count, padded, parts),
            rows.rows, columns.rows, call.weight, meeting.run, meeting.own, meeting.zone, meeting.excluded, meeting.row,
            *((*fresh, met) if of_anchors else (None, None, None)), grad, learned_scale, learned_bias,
            count, others, scale, bias, **widths_of(rows.rows, width), **call.switches,
        )  # fmt: skip
    loss, tilt = fresh.sum(dim=1)
    return SigmoidState(loss, tilt, met, grad.squeeze(0) if parts == 1 else grad.sum(dim=0))
