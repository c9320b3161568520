# SPDX-License-Identifier: Apache-2.0
"""How the operations differentiate: what the forward pass saves and what the backward pass returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops import ops
from secl_ops.spec import Flag, Pairs


class ContrastOptions(NamedTuple):
    """What of the options the passes need."""

    scale: float
    flags: Flag
    normalize: bool
    backend: str

    @property
    def share(self) -> float:
        """Power of a temperature tensor that each side of a product takes: half where both sides are the same rows."""
        return 0.5 if Flag.SELF in self.flags else 1.0


class Contrast(torch.autograd.Function):
    """Loss per anchor and count of positives, from raw rows; normalisation and its Jacobian are inside.

    A temperature tensor is folded into the rows, r = u * temperature^-share, so that its gradient costs nothing:
    dL/dtemperature = -share * <r, dL/dr> / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,  # [N, D]
        keys: Tensor | None,  # [M, D]; None: the anchors
        temperature: Tensor | None,  # one element
        pairs: Pairs,
        options: ContrastOptions,
    ) -> tuple[Tensor, Tensor]:
        unit, inverse = unit_rows(anchors, pairs.anchor_labels, options)
        shrink = shrink_factor(unit, temperature, options.share)
        rows = folded(unit, shrink)
        key_unit, key_inverse = (None, None) if keys is None else unit_rows(keys, pairs.key_labels, options)
        flags = options.flags
        if Flag.SELF in flags:  # the gradient of shared rows needs every row's log-sum-exp first
            flags &= ~Flag.ANCHOR_GRADIENT
        key_rows = rows if key_unit is None else key_unit.to(rows.dtype)
        loss, *state = ops.contrast(rows, key_rows, *pairs, None, None, options.scale, int(flags), options.backend)
        ctx.save_for_backward(unit, inverse, key_unit, key_inverse, temperature, shrink, *pairs[:5], *state)
        ctx.options, ctx.range = options, (pairs.positive_start, pairs.negative_stop)
        ctx.columnwise = columnwise(anchors), keys is not None and columnwise(keys)
        count = state[2]
        ctx.mark_non_differentiable(count)
        return loss, count

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        unit, inverse, key_unit, key_inverse, temperature, shrink, *rest = ctx.saved_tensors
        tensors, (lse, pull, count, grad_rows) = rest[:5], rest[5:]
        options = ctx.options
        shared = Flag.SELF in options.flags
        valid = count > 0
        rows = folded(unit, shrink)
        grad_keys = None
        if options.flags & (Flag.SELF | Flag.KEY_GRADIENT):
            draw = torch.where(valid, 1.0 / count.to(lse.dtype), 0.0)
            flags = options.flags if shared else options.flags & ~Flag.ANCHOR_GRADIENT
            key_rows = rows if key_unit is None else key_unit.to(rows.dtype)
            grad_both, grad_keys = ops.contrast_backward(
                grad_loss, pull, draw, rows, key_rows, *tensors, *ctx.range, lse, options.scale, int(flags),
                options.backend,
            )  # fmt: skip
        if shared:
            grad_rows = grad_both
        elif Flag.ANCHOR_GRADIENT in options.flags:
            grad_rows = grad_rows * grad_loss[:, None]
        grad_temperature = None
        if ctx.needs_input_grad[2]:
            grad_temperature = _temperature_gradient(grad_rows, rows, valid, temperature, options)
        grad_anchors = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad_rows if shrink is None else grad_rows * shrink
            counted = valid.any() if shared else valid[:, None]
            grad_anchors = through_norm(grad_rows, unit, inverse, counted, ctx.columnwise[0], options)
        if ctx.needs_input_grad[1] and grad_keys is not None:
            grad_keys = through_norm(grad_keys, key_unit, key_inverse, valid.any(), ctx.columnwise[1], options)
        else:
            grad_keys = None
        return once(grad_anchors), once(grad_keys), once(grad_temperature), None, None


def unit_rows(rows: Tensor, labels: Tensor, options: ContrastOptions) -> tuple[Tensor, Tensor | None]:
    if not options.normalize:
        return rows, None
    unit, inverse = ops.unit_rows(rows, labels, options.backend)
    return unit, inverse


def shrink_factor(unit: Tensor, temperature: Tensor | None, share: float) -> Tensor | None:
    if temperature is None:
        return None
    wide = torch.float64 if unit.dtype == torch.float64 else torch.float32
    return temperature.detach().reshape(1, 1).to(wide) ** -share


def folded(unit: Tensor, shrink: Tensor | None) -> Tensor:
    """Rows times the folded temperature; fp16 rows become fp32, whose range the product may need."""
    if shrink is None:
        return unit
    rows = unit * shrink
    return rows if unit.dtype == torch.float16 else rows.to(unit.dtype)


def _temperature_gradient(
    grad_rows: Tensor, rows: Tensor, valid: Tensor, temperature: Tensor, options: ContrastOptions
) -> Tensor:
    read = rows if Flag.SELF in options.flags else rows.masked_fill(~valid[:, None], 0.0)
    total = -options.share * (grad_rows * read).sum() / temperature.detach().to(grad_rows.dtype)
    return total.reshape(temperature.shape).to(temperature.dtype)


def through_norm(
    grad: Tensor, rows: Tensor, inverse: Tensor | None, counted: Tensor, columnwise: bool, options: ContrastOptions
) -> Tensor:
    """Gradient of the raw rows, in their layout; 0 where nothing counted, whatever stands in the row."""
    if inverse is None:
        found: Tensor = grad.to(rows.dtype)
    else:
        found = ops.unit_rows_backward(grad, rows, inverse, options.backend)
    found = found.masked_fill(~counted, 0.0)
    return found.t().contiguous().t() if columnwise else found


def columnwise(rows: Tensor) -> bool:
    return 0 < rows.stride(0) < rows.stride(1)


class _Refusal(torch.autograd.Function):
    """A gradient that may be used, not differentiated; once_differentiable says nothing under a constant upstream."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, lever: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(
            "secl_ops has first derivatives only; for a second derivative (a gradient penalty, a Hessian) write that "
            "loss in plain torch"
        )


def once(grad: Tensor | None) -> Tensor | None:
    if grad is None or not torch.is_grad_enabled():
        return grad
    found: Tensor = _Refusal.apply(grad.detach(), grad.new_zeros(()).requires_grad_())  # type: ignore[no-untyped-call]
    return found


class Gather(torch.autograd.Function):
    """Rows of a feature map; the gradient is a map in the input's own layout, and the map itself is not kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, index: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(index)
        ctx.options = (features.shape, features.stride(), backend)
        found: Tensor = ops.gather(features, index, backend)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (index,) = ctx.saved_tensors
        size, stride, backend = ctx.options
        return once(ops.gather_backward(grad.contiguous(), index, size, stride, backend)), None, None
