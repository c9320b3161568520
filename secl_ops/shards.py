# SPDX-License-Identifier: Apache-2.0
"""Keys in several pieces: each is read where it lies, and the pieces' log-sum-exps are merged exactly.

A first pass over the shards finds lse_k of each and lse = log sum_k exp lse_k; a second, over the positives alone,
finds the loss of each shard's positives at that lse. With c_k positives of an anchor in shard k, of c in all:

    L = sum_k c_k L_k(lse) / c
    dL/da = sum_k c_k / c dL_k/da [lse constant] + pull sum_k exp(lse_k - lse) dlse_k/da

which are the loss and the gradient over the joined keys. Frozen keys cost as many operations as in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops import ops
from secl_ops.autograd import (
    apply,
    folded,
    graphless,
    key_source,
    shrink_factor,
    temperature_gradient,
    to_source,
    unit_source,
    weight_gradient,
)
from secl_ops.engines.reference import Origin
from secl_ops.first_order import first_order
from secl_ops.inputs import Shard
from secl_ops.merging import Call, chained, near, of_counted, scan
from secl_ops.spec import ContrastSpec, Pairs

FIRST_KEY = 7  # place of the first shard among the arguments of `ShardedContrast`


class ContrastParts(NamedTuple):
    """What merges the loss over keys that lie in several places; see `info_nce_parts`.

    Example:
        >>> import torch, secl_ops
        >>> parts = secl_ops.info_nce_parts(torch.eye(2), anchor_labels=torch.tensor([0, 1]))
        >>> parts.count.tolist(), parts.loss.tolist(), tuple(parts.lse.shape)
        ([0, 0], [0.0, 0.0], (2,))
    """

    loss: Tensor  # [N], 0 where count is 0
    lse: Tensor  # [N], -inf where the denominator is empty
    # The name hides tuple.count, which nobody calls on tensors.
    count: Tensor  # type: ignore[assignment]  # [N] int32, positives of each anchor; float, the sum of their weights


class ShardedContrast(torch.autograd.Function):
    """The reduced loss over all shards, log-sum-exp and count; the first two have gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,  # [N, D]
        temperature: Tensor | None,  # one element
        known_lse: Tensor | None,  # [N]: in place of the shards' own
        weights: Tensor | None,  # [N]
        pairs: Sequence[Pairs],
        options: ContrastSpec,
        ordered: bool,
        *keys: Tensor,  # [M, D] each
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        unit, inverse = unit_source(anchors, None, pairs[0].anchor_labels, options)
        shrink = shrink_factor(unit, temperature)
        rows = folded(unit, shrink)
        learning = ctx.needs_input_grad[-len(keys) :]
        sides = [
            key_source(key, None, pair.key_labels, learns, options)
            for key, pair, learns in zip(keys, pairs, learning, strict=True)
        ]
        calls = [
            Call(rows, side.to(rows.dtype), pair, factor, options, ordered)
            for (side, _, factor), pair in zip(sides, pairs, strict=True)
        ]
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        mean, lse = None, known_lse
        if lse is None:
            calls, (lse, mean) = scan(calls, wanted)
        loss, pull, count, attracted = near(calls, lse, wanted)
        value, factor, push, draw = ops.reduce(loss, pull, count, weights, options.reduction, options.backend)
        weighing = (weights, loss, count, value) if ctx.needs_input_grad[3] else (None,) * 4
        ctx.save_for_backward(
            unit, inverse, shrink, temperature, lse, factor, push, draw, *weighing, mean, attracted,
            *(side[0] if learns else None for side, learns in zip(sides, learning, strict=True)),
            *(side[1] for side in sides), *(tensor for pair in pairs for tensor in (*pair[:5], pair.key_weights)),
        )  # fmt: skip
        ctx.options, ctx.ordered, ctx.shards, ctx.known = options, ordered, len(keys), known_lse is not None
        ctx.ranges = [(pair.positive_start, pair.negative_stop) for pair in pairs]
        ctx.origins = [Origin.of(source) for source in (anchors, *keys)]
        ctx.mark_non_differentiable(count)
        return value, lse.clone() if known_lse is not None else lse, count

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_value: Tensor | None, grad_lse: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        unit, inverse, shrink, temperature, lse, factor, push, draw, *rest = ctx.saved_tensors
        weighing, (mean, attracted), rest = rest[:4], rest[4:6], rest[6:]
        shards, options = ctx.shards, ctx.options
        units, inverses, tensors = rest[:shards], rest[shards : 2 * shards], rest[2 * shards :]
        upstream = torch.zeros_like(lse) if grad_value is None else grad_value.expand(lse.shape)
        grad_loss, push, draw = (of_counted(number, upstream) for number in (factor, push, draw))
        if grad_lse is not None:  # torch's logsumexp sends NaN where all that it merges is -inf
            push = push + torch.where(lse == -torch.inf, 0.0, grad_lse)
        grad_known, rows = None, folded(unit, shrink)
        if ctx.known:
            grad_known, push = push, torch.zeros_like(push)
        grad_keys: list[Tensor | None] = [None] * shards
        for k in range(shards):
            if not ctx.needs_input_grad[FIRST_KEY + k]:
                continue
            *five, key_weights = tensors[6 * k : 6 * k + 6]
            pairs = Pairs(*five, *ctx.ranges[k])._replace(key_weights=key_weights)
            grad = Call(rows, units[k].to(rows.dtype), pairs, None, options, ctx.ordered).key_gradient(push, draw, lse)
            grad_keys[k] = to_source(grad, None, units[k], inverses[k], None, ctx.origins[1 + k], options)
        grad_anchors = grad_temperature = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_rows = chained(attracted, mean, grad_loss, push)
            if ctx.needs_input_grad[1]:
                grad_temperature = temperature_gradient(grad_rows, rows, temperature)
            if ctx.needs_input_grad[0]:
                grad_rows = grad_rows if shrink is None else grad_rows * shrink
                grad_anchors = to_source(grad_rows, None, unit, inverse, None, ctx.origins[0], options)
        grad_weights = None
        if ctx.needs_input_grad[3]:
            grad_weights = weight_gradient(upstream, weighing, options.reduction)
        return grad_anchors, grad_temperature, grad_known, grad_weights, None, None, None, *grad_keys


def contrast_shards(
    anchors: Tensor,  # [N, D]
    shards: Sequence[Shard],
    options: ContrastSpec,
    *,
    weights: Tensor | None = None,  # [N]
    lse: Tensor | None = None,  # [N]
    ordered: bool = False,
) -> ContrastParts:
    """The reduced loss, and log-sum-exp and count of each anchor, over all shards; a given lse replaces theirs."""
    own = torch.arange(anchors.shape[0], device=anchors.device)  # whom an anchor must not see
    keys = [anchors if shard.keys is None else shard.keys for shard in shards]
    pairs = [shard.pairs if shard.keys is not None else shard.pairs._replace(exclude=own) for shard in shards]
    given = graphless(anchors, options.learned, lse, weights), graphless(*keys)
    return ContrastParts(*apply(ShardedContrast, *given[0], pairs, options, ordered, *given[1]))
