# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss of labelled rows: what it means, and how it differentiates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from secl_ops import ops, sigmoid_ops
from secl_ops.autograd import (
    Places,
    Scales,
    apply,
    graphless,
    key_source,
    to_source,
    unit_source,
    weight_gradient,
)
from secl_ops.engines.reference import Origin, SigmoidState
from secl_ops.engines.select import select
from secl_ops.first_order import first_order
from secl_ops.inputs import ContrastInput, Shard
from secl_ops.merging import of_counted, weighted
from secl_ops.sigmoid_spec import Logit, SigmoidSpec
from secl_ops.spec import Pairs

FIRST_KEY = 7  # place of the first shard among the arguments of `SigmoidContrast`


def sigmoid_contrast(
    anchors: Tensor,  # [N, D] floating
    keys: Tensor | Sequence[Tensor] | None = None,  # [M, D] floating
    *,
    anchor_labels: Tensor,  # [N] integer
    key_labels: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    normalize: bool = True,
    weights: Tensor | None = None,  # [N] floating
    positives: Tensor | None = None,  # [P, D] floating
    positive_labels: Tensor | None = None,  # [P] integer
    positive_groups: Tensor | None = None,  # [P] integer
    anchor_groups: Tensor | None = None,  # [N] integer
    key_groups: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    exclude: Tensor | None = None,  # [N] integer
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Tell pairs of one label from pairs of two, each pair on its own: the sigmoid loss of SigLIP for labelled rows.

    With similarity s_ij = a_i . k_j and z_ij = 1 where the labels are equal, -1 where they are not:

        L_i = sum over j of softplus(-z_ij (scale s_ij + bias))

    After Zhai et al. (ICCV 2023, arXiv:2303.15343), where each row has one positive. As there "mean" divides by the
    number of anchors, not by that of pairs: the loss grows as M with more keys. No softmax joins the pairs: keys in
    several places add up, and an anchor counts as soon as it meets a key, be it a positive or a negative one. A scale
    and a bias that are tensors get their gradients; there both start at 10 and -10, and log(scale) learns. The bias is
    the log-odds of a pair of similarity 0: -log(C - 1) fits C classes of like size, -10 one positive among 20,000.
    Memory is O((N + M) D) on every backend but "reference"; the same call gives the same bits; nothing waits for the
    device.

    Args:
        anchors: Rows [N, D] that learn, as in `info_nce`; and so are all arguments that are not named here.
        keys: Rows [M, D], or a list of such tensors; None: the anchors themselves, each blind to itself.
        anchor_labels: See `info_nce`.
        key_labels: See `info_nce`.
        scale: Multiplies the similarity: a float, or a one-element tensor, which then gets a gradient.
        bias: Is added to it: a float, or a one-element tensor, which then gets a gradient.
        normalize: See `info_nce`.
        weights: See `info_nce`.
        positives: See `info_nce`.
        positive_labels: See `info_nce`.
        positive_groups: See `info_nce`.
        anchor_groups: See `info_nce`.
        key_groups: See `info_nce`.
        exclude: See `info_nce`.
        reduction: "mean" over the anchors that meet a key (weighted by `weights`), "sum" or "none".
        backend: "auto", "reference", "native" or "triton".
        validate: See `info_nce`; scale and bias must then be finite.

    Returns:
        The loss in fp32 (fp64 for fp64 rows): a scalar, or [N] under "none"; without a pair 0, with a graph.

    Raises:
        TypeError: An argument of the wrong kind or dtype.
        ValueError: An argument of the wrong shape, device or value, or one without its partner.
        RuntimeError: A named backend cannot run here; each of its reasons is listed.

    Example:
        >>> import torch, secl_ops
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> bias = torch.tensor(-1.0, requires_grad=True)
        >>> loss = secl_ops.sigmoid_contrast(rows, anchor_labels=torch.tensor([0, 0, 1, 1]), scale=2.0, bias=bias)
        >>> loss.backward()
        >>> print(f"{loss:.4f} {bias.grad:.4f}")
        2.0200 0.6875
    """
    options = SigmoidSpec(scale, bias, normalize, reduction, backend, validate)
    given = ContrastInput(
        anchors, keys, anchor_labels, key_labels, weights,
        positives, positive_labels, positive_groups, anchor_groups, key_groups, exclude,
    )  # fmt: skip
    given.check(options)
    return sigmoid_shards(anchors, given.arrange(), options, weights=weights)


def sigmoid_shards(
    anchors: Tensor,  # [N, D], or [B, D, *spatial]
    shards: Sequence[Shard],
    options: SigmoidSpec,
    *,
    weights: Tensor | None = None,  # [N]
    places: Places = Places(),  # noqa: B008  # immutable
) -> Tensor:
    """The loss of checked rows, or of the pixels of checked feature maps at `places`, against all shards."""
    if options.backend != "auto" and not torch.compiler.is_compiling():  # else its rows are refused to another loss
        select(options.backend, anchors.device, anchors.dtype, sigmoid_ops.OPERATION)
    learned = [options.tensors.get(name) for name in ("scale", "bias")]
    given, keys = graphless(anchors, *learned, weights), graphless(*(shard.keys for shard in shards))
    loss: Tensor = apply(SigmoidContrast, *given, [shard.pairs for shard in shards], options, places, *keys)
    return loss


class SigmoidContrast(torch.autograd.Function):
    """The reduced loss over all shards; normalisation, reduction and their gradients are inside.

    With c_ij = -z_ij sigmoid(-z_ij t_ij) and the anchors' factors g: dA = scale g C K, dK = scale (g C)^T A,
    dscale = sum_i g_i <a_i, (C K)_i>, dbias = sum_ij g_i c_ij. C K comes with the loss. In self-contrast C is
    symmetric: where all factors are one, the rows' gradient as keys is that as anchors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,  # [N, D], or [B, D, *spatial]
        scale: Tensor | None,  # one element
        bias: Tensor | None,  # one element
        weights: Tensor | None,  # [N]
        pairs: Sequence[Pairs],
        options: SigmoidSpec,
        places: Places,
        *keys: Tensor | None,  # [M, D] each, the first perhaps of [B', D, *spatial']; None: the anchors
    ) -> Tensor:
        of_anchors, of_scale, _, of_weights = ctx.needs_input_grad[:4]
        learning = ctx.needs_input_grad[FIRST_KEY:]
        unit, inverse = unit_source(anchors, places.anchors, pairs[0].anchor_labels, options)
        states: list[SigmoidState] = []
        kept: list[Tensor | None] = []
        for key, pair, learns, place in zip(keys, pairs, learning, _key_places(places, len(keys)), strict=True):
            side, factor, flags = unit, None, options.flags(shared=key is None, anchors=of_anchors or of_scale)
            key_inverse = None
            if key is not None:
                side, key_inverse, factor = key_source(key, place, pair.key_labels, learns, options)
            given = (unit, side, *pair[:7], factor, *options.logit.arguments(), flags, options.backend)
            states.append(SigmoidState(*sigmoid_ops.sigmoid(*given)))
            kept += [side, key_inverse] if learns else [None, None]  # frozen keys may change before the backward pass
        loss, tilt, count, grad_rows = _total(states)
        value, factor, push, _ = ops.reduce(loss, tilt, count, weights, options.reduction, options.backend)
        weighing = (weights, loss, count, value) if of_weights else (None,) * 4
        ctx.save_for_backward(
            unit, inverse, scale, bias, grad_rows, factor, push, *weighing, *places, *kept,
            *(tensor for pair in pairs for tensor in pair[:5]),
        )  # fmt: skip
        ctx.options, ctx.shared, ctx.ranges = options, keys[0] is None, [pair[5:7] for pair in pairs]
        ctx.is_symmetric = len(keys) == 1 and ctx.shared and weights is None and options.reduction != "none"
        ctx.origins = [None if each is None else Origin.of(each) for each in (anchors, *keys)]
        return value  # type: ignore[no-any-return]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        saved, shards = iter(ctx.saved_tensors), len(ctx.ranges)
        unit, inverse, scale, bias, grad_rows, factor, push = islice(saved, 7)
        weighing, places, kept = tuple(islice(saved, 4)), Places(*islice(saved, 2)), [*islice(saved, 2 * shards)]
        pairs = [Pairs(*islice(saved, 5), *each) for each in ctx.ranges]
        options: SigmoidSpec = ctx.options
        of_anchors, of_scale, of_bias, of_weights = ctx.needs_input_grad[:4]
        upstream = grad_value.expand(factor.shape)
        logit = Logit(options.scale if scale is None else scale, options.bias if bias is None else bias)
        steep = factor * (options.scale if scale is None else scale.detach().to(factor.dtype).reshape(()))
        weight = of_counted(steep, upstream)

        def of_keys(side: Tensor, pair: Pairs, shared: bool) -> Tensor:
            given = (weight, unit, side, *pair[:7], *logit.arguments(), options.flags(shared=shared), options.backend)
            found: Tensor = sigmoid_ops.sigmoid_backward(*given)
            return found

        grads: list[Tensor | None] = [None] * (4 + shards)
        if of_anchors:
            grad = grad_rows
            scales: Scales = (steep * (2 if ctx.is_symmetric else 1), upstream)
            if ctx.shared and not ctx.is_symmetric:
                grad, scales = weighted(grad, weight) + of_keys(unit, pairs[0], True), None
            grads[0] = to_source(grad, scales, unit, inverse, places.anchors, ctx.origins[0], options)
        if of_scale:
            own = torch.where(grad_rows == 0, 0.0, grad_rows * unit).sum(dim=1)
            grads[1] = _to_number(of_counted(factor, upstream), own, scale)
        if of_bias:
            grads[2] = of_counted(push, upstream).sum().reshape(bias.shape).to(bias.dtype)
        if of_weights:
            grads[3] = weight_gradient(upstream, weighing, options.reduction)
        for k, place in enumerate(_key_places(places, shards)):
            if ctx.needs_input_grad[FIRST_KEY + k]:
                side, key_inverse = kept[2 * k : 2 * k + 2]
                grad = of_keys(side, pairs[k], False)
                grads[4 + k] = to_source(grad, None, side, key_inverse, place, ctx.origins[1 + k], options)
        return *grads[:4], None, None, None, *grads[4:]


def _key_places(places: Places, shards: int) -> Iterator[Tensor | None]:
    """Where each shard's rows lie in a map, which only the first may come from."""
    yield places.keys
    for _ in range(1, shards):
        yield None


def _total(states: Sequence[SigmoidState]) -> SigmoidState:
    """What one pass over the keys of all would have found."""
    total = states[0]
    for state in states[1:]:
        total = SigmoidState(*(one + other for one, other in zip(total, state, strict=True)))
    return total


def _to_number(weight: Tensor, own: Tensor, number: Tensor) -> Tensor:
    """Gradient of a one-element tensor from that of each anchor's loss; one of weight 0 may hold a NaN."""
    return of_counted(weight, own).sum().reshape(number.shape).to(number.dtype)
