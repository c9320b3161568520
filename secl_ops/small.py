# SPDX-License-Identifier: Apache-2.0
"""Few rows: the loss is found with its gradients at once, and the backward pass only brings them to their source.

On a CPU either is one operation of the extension (`small_native`), on a GPU a plan of launches (`small_triton`). What
these do not serve, and every call that breaks a rule, goes the long way, which knows each rule by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secl_ops import small_native, small_triton
from secl_ops.engines import reference
from secl_ops.engines.reference import Origin
from secl_ops.first_order import first_order, remember
from secl_ops.inputs import ContrastInput
from secl_ops.small_call import Back, Call, Check, Kept, Pixels, Wanted
from secl_ops.spec import ContrastSpec, SampleSpec


def serves(options: ContrastSpec, rows: object) -> bool:
    """Whether a call with these options may be one of few rows, wherever it runs."""
    return (
        not torch.compiler.is_compiling()
        and options.reduction != "none"
        and not options.validate
        and options.learned is None
        and isinstance(rows, Tensor)
        and rows.ndim > 1
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def info_nce(given: ContrastInput, options: ContrastSpec, check: Check) -> Tensor | None:
    """The loss of few rows; None where it goes the long way."""
    if not serves(options, given.anchors) or given.positives is not None or given.positive_labels is not None:
        return None
    if given.key_weights is not None:
        return None
    if given.positive_groups is not None or (isinstance(given.weights, Tensor) and given.weights.requires_grad):
        return None
    call: Call | None = small_native.info_nce(given, options) or small_triton.info_nce(given, options, check)
    return None if call is None else _differentiable(given.anchors, given.keys, call)


def pixel_contrast(
    anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec, check: Check
) -> Tensor | None:
    """The whole pixel step of few draws; None where it goes the long way."""
    if not serves(options, anchors.features) or (sampling.strategy == "hard") != (anchors.scores is not None):
        return None
    call: Call | None = small_native.pixel_contrast(anchors, keys, sampling, options)
    call = call or small_triton.pixel_contrast(anchors, keys, sampling, options, check)
    return None if call is None else _differentiable(anchors.features, None if keys is None else keys.features, call)


class UnservedError(Exception):
    """This call goes the long way."""


NOTHING = (None,) * len(Kept._fields)


class SmallContrast(torch.autograd.Function):
    """A loss whose gradients, but for the upstream number, are found with it."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, call: Call) -> Tensor:
        found = call.find(Wanted(*ctx.needs_input_grad[:2]))
        if found is None:
            raise UnservedError
        ctx.save_for_backward(*(found.anchors or NOTHING), *(found.keys or NOTHING))
        ctx.back, ctx.origins = call.back, tuple(None if one is None else Origin.of(one) for one in (anchors, keys))
        return found.value

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None, None, None]
        for side in (0, 1):
            if ctx.needs_input_grad[side]:
                kept = Kept(*ctx.saved_tensors[4 * side : 4 * side + 4])
                gradients[side] = _to_source(ctx.back[side], kept, ctx.origins[side], upstream)
        return tuple(gradients)


def _to_source(back: Back, kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
    if _is_batch(upstream):
        return _batched(kept, origin, upstream)
    found = back(kept, origin, upstream)
    return found if kept.pixels is not None else origin.laid(found)


def _batched(kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
    """The same of many upstream numbers at once, by operations that torch repeats for each."""
    grad = torch.where(kept.rows == 0, 0.0, kept.rows * upstream)
    if kept.unit is not None and kept.inverse is not None:
        grad = reference.unit_rows_backward(grad, None, kept.unit, kept.inverse)
    grad = grad.to(origin.dtype)
    if kept.pixels is None:
        return grad
    images, width, *spatial = origin.size
    pixels = math.prod(spatial)  # a row of no pixel, -1, is 0: the last pixel gets nothing by it
    place = kept.pixels // pixels, kept.pixels % pixels
    found = grad.new_zeros(images, pixels, width).index_put(place, grad, accumulate=True)
    return found.transpose(1, 2).reshape(origin.size)


def _is_batch(upstream: Tensor) -> bool:
    """Whether it stands for many numbers, as under `is_grads_batched`, which no operation of the extension knows."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(upstream)
    return batched or torch._C._are_functorch_transforms_active()


def _differentiable(anchors: Tensor, keys: Any, call: Call) -> Tensor | None:
    """The loss that the call finds, with its gradient where one is asked for."""
    if not torch.is_grad_enabled():
        found = call.find(Wanted(False, False))
        return None if found is None else found.value
    try:
        loss: Tensor = SmallContrast.apply(anchors, keys, call)  # type: ignore[no-untyped-call]
    except UnservedError:
        return None
    return remember(loss, (anchors, keys))
