# SPDX-License-Identifier: Apache-2.0
"""The operations of the sigmoid loss as `torch.library` sees them; `ops` has those of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from secl_ops.engines.reference import SigmoidState
from secl_ops.engines.select import Backend, select
from secl_ops.ops import PAIRS, demand, demand_pairs, empty_gradient, fake, implement
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import Flag, Pairs

OPERATION = "sigmoid_contrast"
_PAIRS = PAIRS.removesuffix(", Tensor? key_weights")
_LOGIT = "float scale, float bias, Tensor? learned_scale, Tensor? learned_bias"
SCHEMAS = {
    "sigmoid": f"(Tensor anchors, Tensor keys, {_PAIRS}, Tensor? key_inverse, {_LOGIT}, int flags, str backend)"
    " -> (Tensor loss, Tensor tilt, Tensor count, Tensor grad_anchors)",
    "sigmoid_backward": f"(Tensor weight, Tensor anchors, Tensor keys, {_PAIRS}, {_LOGIT}, int flags, str backend)"
    " -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"secl::{_name}", _schema)


def _demand_logit(logit: Logit) -> None:
    for name, value in logit._asdict().items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"learned_{name} must have one element; got shape {tuple(value.shape)}")


def _chosen(backend: str, rows: Tensor) -> Backend:
    return select(backend, rows.device, rows.dtype, OPERATION, rows.shape[1])


def _outputs(anchors: Tensor, flags: int) -> SigmoidState:
    demand("anchors", anchors, None, None)
    grad = empty_gradient(anchors, bool(flags & Flag.ANCHOR_GRADIENT))
    loss, tilt = (grad.new_empty(anchors.shape[0]) for _ in range(2))
    return SigmoidState(loss, tilt, anchors.new_empty(anchors.shape[0], dtype=torch.int32), grad)


@implement("sigmoid")
def _sigmoid(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, key_inverse: Tensor | None,
    scale: float, bias: float, learned_scale: Tensor | None, learned_bias: Tensor | None, flags: int, backend: str,
) -> SigmoidState:  # fmt: skip
    pairs = Pairs(anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop)
    logit = Logit.of(scale, bias, learned_scale, learned_bias)
    demand_pairs(anchors, keys, pairs)
    _demand_logit(logit)
    if key_inverse is not None:
        demand("key_inverse", key_inverse, keys.shape[0])
    module = _chosen(backend, anchors)
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        return SigmoidState(*(value.zero_() for value in _outputs(anchors, flags)))
    return module.sigmoid_forward(anchors, keys, pairs, logit, Flag(flags), key_inverse)


@fake("sigmoid")
def _sigmoid_fake(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, key_inverse: Tensor | None,
    scale: float, bias: float, learned_scale: Tensor | None, learned_bias: Tensor | None, flags: int, backend: str,
) -> SigmoidState:  # fmt: skip
    return _outputs(anchors, flags)


@implement("sigmoid_backward")
def _sigmoid_backward(
    weight: Tensor, anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int,
    scale: float, bias: float, learned_scale: Tensor | None, learned_bias: Tensor | None, flags: int, backend: str,
) -> Tensor:  # fmt: skip
    pairs = Pairs(anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop)
    logit = Logit.of(scale, bias, learned_scale, learned_bias)
    demand_pairs(anchors, keys, pairs)
    demand("weight", weight, anchors.shape[0])
    _demand_logit(logit)
    module = _chosen(backend, anchors)
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        return empty_gradient(keys, True).zero_()
    return module.sigmoid_backward(weight, anchors, keys, pairs, logit, Flag(flags))


@fake("sigmoid_backward")
def _sigmoid_backward_fake(
    weight: Tensor, anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int,
    scale: float, bias: float, learned_scale: Tensor | None, learned_bias: Tensor | None, flags: int, backend: str,
) -> Tensor:  # fmt: skip
    demand("keys", keys, None, None)
    return empty_gradient(keys, True)


sigmoid = torch.ops.secl.sigmoid.default
sigmoid_backward = torch.ops.secl.sigmoid_backward.default
