# SPDX-License-Identifier: Apache-2.0
"""How the operations differentiate: what the forward pass saves and what the backward pass returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from secl_ops import ops
from secl_ops.engines.reference import Origin, scaled
from secl_ops.first_order import first_order, remember
from secl_ops.inputs import Options
from secl_ops.library import release
from secl_ops.spec import ContrastSpec, Pairs

COMPILES = release(torch.__version__) >= (2, 11)
"""Whether torch.compile takes the functions into its graphs; what an older torch compiles calls them between two."""


class Places(NamedTuple):
    """Where in a feature map each side's rows lie, [n] of pixels drawn at most once; None: they are rows already."""

    anchors: Tensor | None = None
    keys: Tensor | None = None


def graphless(*sources: Tensor | None) -> tuple[Tensor | None, ...]:
    """What a function is applied to: under no_grad without the wish for a gradient, which it would prepare."""
    return sources if torch.is_grad_enabled() else tuple(None if one is None else one.detach() for one in sources)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply a function as torch can: in a graph that it compiles no tensor may have two roles.

    Raises:
        RuntimeError: A transform of torch.func is under way, which would need another form of the gradients.
    """
    if torch._C._are_functorch_transforms_active():  # a compiled torch.func.grad would else be zeros, without a word
        raise RuntimeError(
            "secl_ops has its gradients from autograd; torch.func (grad, vjp, jvp, vmap, jacrev, ...) cannot transform "
            "it; take them by loss.backward() or torch.autograd.grad, and in place of vmap loop, or keep the problems "
            "apart by anchor_groups and key_groups"
        )
    if not torch.compiler.is_compiling():
        return remember(function.apply(*arguments), arguments)
    seen: list[Any] = []
    for value in arguments:
        twice = isinstance(value, Tensor) and any(value is other for other in seen)
        seen.append(value.view_as(value) if twice else value)
    learns = torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in seen)
    if not learns:  # torch.compile then lacks half of what a context can
        return function.forward(_Forgetful(len(seen)), *seen)
    return function.apply(*seen)


apply = _apply if COMPILES else _disable_dynamo(_apply)


class _Forgetful:
    """The context of a function that is never differentiated."""

    def __init__(self, arguments: int) -> None:
        self.needs_input_grad = (False,) * arguments

    def save_for_backward(self, *values: Any) -> None:
        """Nothing asks for them."""

    def set_materialize_grads(self, value: bool) -> None:
        """There are none."""

    def mark_non_differentiable(self, *values: Any) -> None:
        """All are."""


class Contrast(torch.autograd.Function):
    """The reduced loss, from raw rows or from feature maps; normalisation, reduction and their gradients are inside.

    A temperature tensor is folded into the rows, r = u * temperature^-share, so that its gradient costs nothing:
    dL/dtemperature = -share * <r, dL/dr> / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,  # [N, D], or [B, D, *spatial]
        keys: Tensor | None,  # [M, D], or [B', D, *spatial']; None: the anchors
        temperature: Tensor | None,  # one element
        weights: Tensor | None,  # [N]
        pairs: Pairs,
        options: ContrastSpec,
        places: Places,
        ordered: bool,
    ) -> Tensor:
        of_anchors, of_keys, of_temperature, of_weights = ctx.needs_input_grad[:4]
        of_anchors, shared = of_anchors or of_temperature, keys is None
        unit, inverse = unit_source(anchors, places.anchors, pairs.anchor_labels, options)
        shrink = shrink_factor(unit, temperature, _share(shared))
        rows = folded(unit, shrink)
        key_rows, key_unit, key_inverse, factor = rows, None, None, None
        if keys is not None:
            key_unit, key_inverse, factor = key_source(keys, places.keys, pairs.key_labels, of_keys, options)
            key_rows = key_unit.to(rows.dtype)
        # The gradient of shared rows needs every row's log-sum-exp first.
        flags = options.flags(shared=shared, anchors=of_anchors and not shared, keys=of_keys, ordered=ordered)
        loss, lse, pull, count, grad_rows, met = ops.contrast(
            rows, key_rows, *pairs, factor, None, options.scale, flags, options.backend
        )
        value, *factors = ops.reduce(loss, pull, count, weights, options.reduction, options.backend)
        weighing = (weights, loss, count, value) if of_weights else (None,) * 4
        if not of_keys:  # frozen keys may change before the backward pass, which has no need of them
            key_unit = key_inverse = None
        ctx.save_for_backward(
            unit, inverse, key_unit, key_inverse, temperature, shrink, grad_rows, lse, *factors, *weighing, *places,
            met if shared else None, *pairs[:5], pairs.key_weights,
        )  # fmt: skip
        ctx.options, ctx.ordered, ctx.range = options, ordered, (pairs.positive_start, pairs.negative_stop)
        ctx.origins = Origin.of(anchors), None if keys is None else Origin.of(keys)
        return value  # type: ignore[no-any-return]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, key_unit, key_inverse, temperature, shrink, grad_rows, lse, *rest = ctx.saved_tensors
        (factor, push, draw), weighing, places, met, pairs = rest[:3], rest[3:7], rest[7:9], rest[9], rest[10:]
        options: ContrastSpec = ctx.options
        of_anchors, of_keys, of_temperature, of_weights = ctx.needs_input_grad[:4]
        shared = ctx.origins[1] is None
        upstream = grad_value.expand(lse.shape)
        rows, grad_keys = folded(unit, shrink), None
        scales: Scales = (factor, upstream)
        if of_keys or (shared and (of_anchors or of_temperature)):
            flags = options.flags(shared=shared, anchors=shared, keys=of_keys, ordered=ctx.ordered)
            grad_both, grad_keys = ops.contrast_backward(
                upstream, push, draw, rows, rows if shared else key_unit.to(rows.dtype), *pairs[:5], *ctx.range,
                pairs[5], lse, options.scale, flags, options.backend, met,
            )  # fmt: skip
            if shared:
                grad_rows, scales = grad_both, None
        grad_anchors, grad_temperature, grad_weights = None, None, None
        if shrink is not None and (of_anchors or of_temperature):
            grad_rows, scales = scaled(grad_rows, scales), None
        if of_temperature:
            grad_temperature = temperature_gradient(grad_rows, rows, temperature, _share(shared))
        if of_anchors:
            grad_rows = grad_rows if shrink is None else grad_rows * shrink
            grad_anchors = to_source(grad_rows, scales, unit, inverse, places[0], ctx.origins[0], options)
        if of_keys and grad_keys is not None:
            grad_keys = to_source(grad_keys, None, key_unit, key_inverse, places[1], ctx.origins[1], options)
        else:
            grad_keys = None
        if of_weights:
            grad_weights = weight_gradient(upstream, weighing, options.reduction)
        return grad_anchors, grad_keys, grad_temperature, grad_weights, *(None,) * 4


def contrast_sources(
    anchors: Tensor,  # [N, D], or [B, D, *spatial]
    keys: Tensor | None,  # [M, D], or [B', D, *spatial']; None: the anchors
    pairs: Pairs,
    options: ContrastSpec,
    *,
    weights: Tensor | None = None,  # [N]
    places: Places = Places(),  # noqa: B008  # immutable
    ordered: bool = False,
) -> Tensor:
    """The loss of checked rows, or of the pixels of checked feature maps at `places`."""
    sources = graphless(anchors, keys, options.learned, weights)
    loss: Tensor = apply(Contrast, *sources, pairs, options, places, ordered)
    return loss


Scales = tuple[Tensor, Tensor] | None  # [n] factor and upstream number of each row


def unit_source(source: Tensor, place: Tensor | None, labels: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    """Rows as the loss compares them, and 1 / norm of each where they were normalised."""
    if place is not None:
        unit, inverse = ops.gather(source, place, options.normalize, source.dtype, options.backend)
    elif options.normalize:
        unit, inverse = ops.unit_rows(source, labels, options.backend)
    else:
        unit, inverse = source, None
    return unit, inverse if options.normalize else None


def key_source(
    source: Tensor, place: Tensor | None, labels: Tensor, learns: bool, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Key rows, 1 / norm of each where they were normalised, and the factor of each where they still are not.

    Frozen rows are read where they lie: no unit copy of a queue or of a teacher's rows exists.
    """
    if place is None and options.normalize and not learns:
        return source, None, ops.row_inverse(source, labels, options.backend)
    return *unit_source(source, place, labels, options), None


def _share(shared: bool) -> float:
    """Power of a temperature tensor that each side of a product takes: half where both sides are the same rows."""
    return 0.5 if shared else 1.0


def shrink_factor(unit: Tensor, temperature: Tensor | None, share: float = 1.0) -> Tensor | None:
    """Factor on every row that a temperature tensor asks for, [1, 1]; None without one."""
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


def temperature_gradient(grad_rows: Tensor, rows: Tensor, temperature: Tensor, share: float = 1.0) -> Tensor:
    """Gradient of a temperature tensor that is folded into these rows."""
    product = torch.where(grad_rows == 0, 0.0, grad_rows * rows)  # a row that does not count may hold a NaN
    total = -share * product.sum() / temperature.detach().to(grad_rows.dtype)
    return total.reshape(temperature.shape).to(temperature.dtype)


def weight_gradient(upstream: Tensor, weighing: tuple[Tensor, Tensor, Tensor, Tensor], reduction: str) -> Tensor:
    """Gradient of the weights, from (weights, loss of each anchor, count, value)."""
    weights, loss, count, value = weighing
    own = loss
    if reduction == "mean":
        total = torch.where(count > 0, weights.to(loss.dtype), 0.0).sum()
        own = torch.where(total > 0, (loss - value) / total, loss)
    return torch.where(count > 0, own * upstream, 0.0).to(weights.dtype)


def to_source(
    grad: Tensor,  # [n, D]
    scales: Scales,
    unit: Tensor,  # [n, D]
    inverse: Tensor | None,  # [n]
    place: Tensor | None,  # [n]
    origin: Origin,
    options: Options,
) -> Tensor:
    """Gradient of what the rows came from, in its dtype and layout."""
    pair = scales or (None, None)
    if place is not None:
        norm = None if inverse is None else unit
        found: Tensor = ops.gather_backward(
            grad, *pair, place, norm, inverse, True, origin.size, origin.stride, origin.dtype, options.backend
        )
        return found
    if inverse is None:
        found = scaled(grad, scales).to(origin.dtype)
    else:
        found = ops.unit_rows_backward(grad, *pair, unit, inverse, options.backend)
    return origin.laid(found)


class Gather(torch.autograd.Function):
    """Rows of a feature map; the gradient is a map in the input's own layout, and the map itself is not kept."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype, unique: bool, backend: str
    ) -> Tensor:
        rows, inverse = ops.gather(features, index, normalize, dtype, backend)
        ctx.save_for_backward(index, *((rows, inverse) if normalize else (None, None)))
        ctx.options = (unique, features.shape, features.stride(), features.dtype, backend)
        return rows  # type: ignore[no-any-return]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = ops.gather_backward(grad.contiguous(), None, None, *ctx.saved_tensors, *ctx.options)
        return found, None, None, None, None, None
