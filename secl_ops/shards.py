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
    once,
    shrink_factor,
    temperature_gradient,
    to_source,
    unit_source,
    weight_gradient,
)
from secl_ops.engines.reference import Origin
from secl_ops.inputs import Shard
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
    count: Tensor  # type: ignore[assignment]  # [N] int32, positives of each anchor


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
            _Call(rows, side.to(rows.dtype), pair, factor, options, ordered)
            for (side, _, factor), pair in zip(sides, pairs, strict=True)
        ]
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        mean, lse = None, known_lse
        if lse is None:
            calls, lse, mean = _scan(calls, wanted)
        loss, pull, count, near = _near(calls, lse, wanted)
        value, factor, push, draw = ops.reduce(loss, pull, count, weights, options.reduction, options.backend)
        weighing = (weights, loss, count, value) if ctx.needs_input_grad[3] else (None,) * 4
        ctx.save_for_backward(
            unit, inverse, shrink, temperature, lse, factor, push, draw, *weighing, mean, near,
            *(side[0] if learns else None for side, learns in zip(sides, learning, strict=True)),
            *(side[1] for side in sides), *(tensor for pair in pairs for tensor in pair[:5]),
        )  # fmt: skip
        ctx.options, ctx.ordered, ctx.shards, ctx.known = options, ordered, len(keys), known_lse is not None
        ctx.ranges = [(pair.positive_start, pair.negative_stop) for pair in pairs]
        ctx.origins = [Origin.of(source) for source in (anchors, *keys)]
        ctx.mark_non_differentiable(count)
        return value, lse.clone() if known_lse is not None else lse, count

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_lse: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        unit, inverse, shrink, temperature, lse, factor, push, draw, *rest = ctx.saved_tensors
        weighing, (mean, near), rest = rest[:4], rest[4:6], rest[6:]
        shards, options = ctx.shards, ctx.options
        units, inverses, tensors = rest[:shards], rest[shards : 2 * shards], rest[2 * shards :]
        upstream = torch.zeros_like(lse) if grad_value is None else grad_value.expand(lse.shape)
        grad_loss, push, draw = (_of_counted(number, upstream) for number in (factor, push, draw))
        if grad_lse is not None:  # torch's logsumexp sends NaN where all that it merges is -inf
            push = push + torch.where(lse == -torch.inf, 0.0, grad_lse)
        grad_known, rows = None, folded(unit, shrink)
        if ctx.known:
            grad_known, push = push, torch.zeros_like(push)
        grad_keys: list[Tensor | None] = [None] * shards
        flags = options.flags(keys=True, ordered=ctx.ordered)
        for k in range(shards):
            if not ctx.needs_input_grad[FIRST_KEY + k]:
                continue
            _, grad = ops.contrast_backward(
                torch.ones((), dtype=lse.dtype, device=lse.device).expand(lse.shape), push, draw, rows,
                units[k].to(rows.dtype), *tensors[5 * k : 5 * k + 5], *ctx.ranges[k], lse, options.scale,
                flags, options.backend,
            )  # fmt: skip
            grad_keys[k] = once(to_source(grad, None, units[k], inverses[k], None, ctx.origins[1 + k], options))
        grad_anchors = grad_temperature = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_rows = (
                _weighted(near, grad_loss) if mean is None else _weighted(near, grad_loss) + _weighted(mean, push)
            )
            if ctx.needs_input_grad[1]:
                grad_temperature = once(temperature_gradient(grad_rows, rows, temperature))
            if ctx.needs_input_grad[0]:
                grad_rows = grad_rows if shrink is None else grad_rows * shrink
                grad_anchors = once(to_source(grad_rows, None, unit, inverse, None, ctx.origins[0], options))
        grad_weights = None
        if ctx.needs_input_grad[3]:
            grad_weights = once(weight_gradient(upstream, weighing, options.reduction))
        return grad_anchors, grad_temperature, once(grad_known), grad_weights, None, None, None, *grad_keys


class _Call(NamedTuple):
    """The anchors against one shard."""

    rows: Tensor
    keys: Tensor
    pairs: Pairs
    factor: Tensor | None
    options: ContrastSpec
    ordered: bool
    met: Tensor | None = None  # what an earlier pass over the shard found of its order

    def run(self, known_lse: Tensor | None, gradient: bool) -> tuple[Tensor, ...]:
        """The log-sum-exp alone, or the positives at a known one; with its gradient, or without."""
        flags = self.options.flags(anchors=gradient, scan=known_lse is None, ordered=self.ordered)
        found: tuple[Tensor, ...] = ops.contrast(
            self.rows, self.keys, *self.pairs, self.factor, known_lse, self.options.scale, flags,
            self.options.backend, self.met,
        )  # fmt: skip
        return found

    @property
    def attracts(self) -> bool:
        """Whether a key of the shard may be a positive one."""
        return self.pairs.positive_start < self.keys.shape[0]

    @property
    def repels(self) -> bool:
        """Whether a key of the shard may be in the denominator."""
        return self.pairs.negative_stop > 0 or (self.attracts and self.options.denominator == "all")


def _scan(calls: Sequence[_Call], wanted: bool) -> tuple[list[_Call], Tensor, Tensor | None]:
    """The calls with what they met, the log-sum-exp over all shards [N] and, where wanted, its gradient [N, D]."""
    ran = [call.run(None, wanted) if call.repels else None for call in calls]
    again = [call if each is None else call._replace(met=each[5]) for call, each in zip(calls, ran, strict=True)]
    found = [each for each in ran if each is not None]
    if not found:
        rows, wide = calls[0].rows, calls[0].rows if calls[0].rows.dtype == torch.float64 else calls[0].rows.float()
        empty = wide.new_full((rows.shape[0],), -torch.inf)
        return again, empty, torch.zeros_like(wide) if wanted else None
    lse = torch.logsumexp(torch.stack([each[1] for each in found]), dim=0)
    if not wanted:
        return again, lse, None
    shares = [torch.where(each[1] == -torch.inf, 0.0, torch.exp(each[1] - lse)) for each in found]
    return again, lse, _total([_weighted(each[4], share) for share, each in zip(shares, found, strict=True)])


def _near(calls: Sequence[_Call], lse: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Loss, pull and count [N] over all positives and, where wanted, the gradient [N, D] at a constant lse."""
    found = [call.run(lse, wanted) for call in calls if call.attracts]
    if not found:
        nothing = torch.zeros_like(lse)
        gradient = torch.zeros_like(calls[0].rows, dtype=lse.dtype) if wanted else None
        return nothing, nothing.clone(), nothing.to(torch.int32), gradient
    count = _total([each[3] for each in found])
    shares = [each[3] / count.clamp(min=1).to(lse.dtype) for each in found]
    loss, pull = (
        _total([torch.where(share > 0, share * each[place], 0.0) for share, each in zip(shares, found, strict=True)])
        for place in (0, 2)
    )
    gradient = (
        _total([_weighted(each[4], share) for share, each in zip(shares, found, strict=True)]) if wanted else None
    )
    return loss, pull, count, gradient


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _weighted(rows: Tensor, factor: Tensor) -> Tensor:
    """Each row times its factor; a factor of 0 leaves nothing of a NaN."""
    column = factor.unsqueeze(1)
    return torch.where(column == 0, 0.0, rows * column)


def _of_counted(number: Tensor, upstream: Tensor) -> Tensor:
    """Their product; an anchor that does not count takes nothing of an infinite upstream."""
    return torch.where(number == 0, 0.0, number * upstream)


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
