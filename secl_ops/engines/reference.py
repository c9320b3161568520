# SPDX-License-Identifier: Apache-2.0
"""The truth: every operation in plain torch, O(N M), in any floating dtype; the other backends are held against it.

With s_ij = scale <a_i, k_j>, D(i) the denominator's pairs, P(i) the positives and c_i = |P(i)|:

    "all"        L_i = lse_i - mean_P s_ip                lse_i = log sum_D exp s_ij,  D = positives and negatives
    "negatives"  L_i = mean_P softplus(lse_i - s_ip)      D = negatives
    dL_i/ds_ij = push_i exp(s_ij - lse_i) [j in D] - draw_i rho_ij [j in P],  push = pull, draw = 1 / c
    "all": pull = rho = 1;   "negatives": rho_ij = sigmoid(lse_i - s_ij), pull_i = mean_P rho_ip

A key of weight w_j is w_j keys: lse_i = log sum_D w_j exp s_ij, c_i and the means over P are sums over w_p of them, and
dL_i/ds_ij is w_j times as large.

The sigmoid loss, with t_ij = scale <a_i, k_j> + bias and z_ij = 1 for a positive pair, -1 for a negative one:

    L_i = sum_j softplus(-z_ij t_ij)     c_ij = dL_i/dt_ij = -z_ij sigmoid(-z_ij t_ij)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops.engines.draws import sample as sample
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import Flag, Pairs


class ContrastState(NamedTuple):
    """What the forward pass leaves: the losses, and what the backward pass needs."""

    loss: Tensor  # [N] float; 0 where count is 0
    lse: Tensor  # [N] float; -inf where the denominator is empty
    pull: Tensor  # [N] float; 0 where count is 0
    # The name hides tuple.count, which nobody calls on tensors.
    count: Tensor  # type: ignore[assignment]  # [N] int32, positives of each anchor; float, the sum of their weights
    grad_anchors: Tensor  # [N, D] d loss_i / d a_i under ANCHOR_GRADIENT, 0 where count is 0; else [0, D]
    met: Tensor | None = None  # [any] int32, what spares the next pass over the same pairs; only its engine reads it


class SigmoidState(NamedTuple):
    """What the forward pass of the sigmoid loss leaves: the losses, and what makes their gradients."""

    loss: Tensor  # [N] float
    tilt: Tensor  # [N] float, sum of c_ij: d loss_i / d bias
    # The name hides tuple.count, which nobody calls on tensors.
    count: Tensor  # type: ignore[assignment]  # [N] int32, pairs of each anchor
    grad_anchors: Tensor  # [N, D] sum of c_ij k_j under ANCHOR_GRADIENT: d loss_i / d a_i over the scale; else [0, D]


class Reduction(NamedTuple):
    """What a reduction makes of the losses."""

    value: Tensor  # [] float, or [N] under "none"
    factor: Tensor  # [N] d value / d loss_i; 0 where count is 0
    push: Tensor  # [N] factor * pull
    draw: Tensor  # [N] factor / count


class Origin(NamedTuple):
    """The tensor that rows came from, rows themselves or a feature map, as far as its gradient must know it."""

    size: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    is_contiguous: bool = False  # where that is known

    @classmethod
    def of(cls, source: Tensor) -> Origin:
        return cls(source.shape, source.stride(), source.dtype, source.is_contiguous())

    def laid(self, rows: Tensor) -> Tensor:
        """Rows [n, D] as the source's lie: column by column where those do."""
        return rows.t().contiguous().t() if 0 < self.stride[0] < self.stride[1] else rows


def objections(device: str, dtype: torch.dtype, operation: str) -> list[str]:
    """Reasons against this backend: none, it runs everywhere."""
    return []


@contextmanager
def _exact() -> Iterator[None]:
    """Neither autocast nor a lowered matmul precision (TF32, bf16) may touch the truth: casts stop neither."""
    with _full_matmuls(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextmanager
def _full_matmuls() -> Iterator[None]:
    matmuls: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    if matmuls[1] is None:  # an older torch has one setting for both
        lowered = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(lowered)
        return
    before = [matmul.fp32_precision for matmul in matmuls]
    for matmul in matmuls:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        for matmul, precision in zip(matmuls, before, strict=True):
            matmul.fp32_precision = precision


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def _read(rows: Tensor, labels: Tensor) -> Tensor:
    """Rows as computed with: wide, an ignored one as zeros, so that its NaN stays its own."""
    return _wide(rows).masked_fill((labels < 0)[:, None], 0.0)


def pair_masks(pairs: Pairs, flags: Flag) -> tuple[Tensor, Tensor]:
    """The positive and the negative pairs, [N, M] bool each."""
    anchor_labels, key_labels = pairs.anchor_labels[:, None], pairs.key_labels[None, :]
    column = torch.arange(key_labels.shape[1], device=key_labels.device)[None, :]
    comparable = (anchor_labels >= 0) & (key_labels >= 0)
    if Flag.SELF in flags:
        comparable &= column != torch.arange(anchor_labels.shape[0], device=key_labels.device)[:, None]
    if pairs.exclude is not None:
        comparable &= column != pairs.exclude[:, None]
    if pairs.anchor_groups is not None and pairs.key_groups is not None:
        comparable &= pairs.anchor_groups[:, None] == pairs.key_groups[None, :]
    same = anchor_labels == key_labels
    positive = comparable & same & (column >= pairs.positive_start)
    return positive, comparable & ~same & (column < pairs.negative_stop)


def _weighed(values: Tensor, pairs: Pairs) -> Tensor:
    """Values [N, M] as often as each key counts."""
    return values if pairs.key_weights is None else values * pairs.key_weights.to(values.dtype)


def _coefficients(similarity: Tensor, pairs: Pairs, factors: tuple[Tensor, Tensor, Tensor], flags: Flag) -> Tensor:
    """D loss_i / d s_ij, [N, M], from (lse, push, draw), [N] each; 0 for an anchor whose push and draw are 0."""
    positive, negative = pair_masks(pairs, flags)
    lse, push, draw = (value[:, None] for value in factors)
    counted = (push != 0) | (draw != 0)
    inside = negative if Flag.NEGATIVES in flags else positive | negative
    attract = torch.sigmoid(lse - similarity) if Flag.NEGATIVES in flags else torch.ones_like(similarity)
    zero = torch.zeros_like(similarity)
    pushed = torch.where(inside & counted, push * torch.exp(similarity - lse), zero)
    return _weighed(pushed - torch.where(positive & counted, draw * attract, zero), pairs)


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
    """Loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the module's formula.

    `known_lse` [N] replaces the log-sum-exp of the denominator, and grad_anchors is then the gradient at a constant
    one. Under SCAN the log-sum-exp is all: grad_anchors is its gradient, and loss, pull and count are 0. Each key is
    multiplied by its `key_inverse` [M].
    """
    with _exact():
        a, k = _read(anchors, pairs.anchor_labels), _read(keys, pairs.key_labels)
        if key_inverse is not None:
            k = k * key_inverse[:, None].to(k.dtype)
        similarity = scale * (a @ k.T)  # [N, M]
        positive, negative = pair_masks(pairs, flags)
        if known_lse is None:
            inside = negative if Flag.NEGATIVES in flags else positive | negative
            counts = similarity
            if pairs.key_weights is not None:
                counts = similarity + pairs.key_weights.to(a.dtype).log()
            lse = torch.logsumexp(counts.masked_fill(~inside, -torch.inf), dim=1)
        else:
            lse = known_lse.to(a.dtype, copy=True)
        if Flag.SCAN in flags:
            loss, pull, count = (torch.zeros_like(each) for each in (lse, lse, _count(positive, pairs, lse.dtype)))
            push, draw = torch.where(lse == -torch.inf, 0.0, torch.ones_like(lse)), torch.zeros_like(lse)
        else:
            loss, pull, count = _mean_over_positives(similarity, positive, pairs, lse, flags)
            draw = (count > 0) / _divisor(count).to(lse.dtype)
            push = torch.zeros_like(pull) if known_lse is not None else pull
        grad = a.new_empty((0, a.shape[1]))
        if Flag.ANCHOR_GRADIENT in flags:
            grad = scale * (_coefficients(similarity, pairs, (lse, push, draw), flags) @ k)
            grad = grad.masked_fill(((push == 0) & (draw == 0))[:, None], 0.0)
        return ContrastState(loss, lse, pull, count, grad)


def _count(positive: Tensor, pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """How many positives each anchor has, [N] int32, or the sum of their weights."""
    if pairs.key_weights is None:
        return positive.sum(dim=1, dtype=torch.int32)
    return _weighed(positive.to(dtype), pairs).sum(dim=1)


def _divisor(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, torch.ones_like(count))


def _mean_over_positives(
    similarity: Tensor, positive: Tensor, pairs: Pairs, lse: Tensor, flags: Flag
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, pull and count of each anchor, [N] each."""
    count, zero = _count(positive, pairs, similarity.dtype), torch.zeros_like(similarity)

    def mean(values: Tensor) -> Tensor:
        return _weighed(torch.where(positive, values, zero), pairs).sum(dim=1) / _divisor(count)

    if Flag.NEGATIVES in flags:
        gap = lse[:, None] - similarity
        return mean(torch.logaddexp(gap, zero)), mean(torch.sigmoid(gap)), count
    loss = lse - mean(similarity)
    return torch.where(count > 0, loss, torch.zeros_like(loss)), (count > 0).to(loss.dtype), count


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

    The factors are grad_loss, push and draw, [N] each; an anchor whose push and draw are 0 does not count: nothing
    of its row reaches a gradient. Under SELF the first is the gradient of the shared rows in both roles, and the
    second is empty.
    """
    grad_loss, push, draw = factors
    counted = (push != 0) | (draw != 0)
    with _exact():
        a, k = _read(anchors, pairs.anchor_labels), _read(keys, pairs.key_labels)
        similarity = scale * (a @ k.T)
        coefficients = _coefficients(similarity, pairs, (lse, push, draw), flags)
        coefficients = coefficients * (scale * grad_loss.to(a.dtype)[:, None])
        if Flag.SELF in flags:
            shared = ((coefficients + coefficients.T) @ k).masked_fill(~counted.any(), 0.0)
            return shared, a.new_empty((0, a.shape[1]))
        grad_anchors, grad_keys = (a.new_empty((0, a.shape[1])) for _ in range(2))
        if Flag.ANCHOR_GRADIENT in flags:
            grad_anchors = (coefficients @ k).masked_fill(~counted[:, None], 0.0)
        if Flag.KEY_GRADIENT in flags:
            grad_keys = coefficients.T @ a.masked_fill(~counted[:, None], 0.0)
        return grad_anchors, grad_keys


def _sigmoid_pairs(a: Tensor, k: Tensor, pairs: Pairs, logit: Logit, flags: Flag) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and slope c of every pair, 0 where it does not count, and whether it does; [N, M] each."""
    scale, bias = (each.to(a.dtype).reshape(()) if isinstance(each, Tensor) else each for each in logit)
    positive, negative = pair_masks(pairs, flags)
    counted, zero = positive | negative, a.new_zeros(())
    t = scale * (a @ k.T) + bias
    gap = torch.where(positive, -t, t)
    slope = torch.where(positive, -torch.sigmoid(gap), torch.sigmoid(gap))
    return torch.where(counted, torch.logaddexp(gap, zero), zero), torch.where(counted, slope, zero), counted


def sigmoid_forward(
    anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag, key_inverse: Tensor | None = None
) -> SigmoidState:
    """Sigmoid loss of every anchor [N] from anchors [N, D] and keys [M, D]; each key is multiplied by `key_inverse`."""
    with _exact():
        a, k = _read(anchors, pairs.anchor_labels), _read(keys, pairs.key_labels)
        if key_inverse is not None:
            k = k * key_inverse[:, None].to(k.dtype)
        loss, slope, counted = _sigmoid_pairs(a, k, pairs, logit, flags)
        count = counted.sum(dim=1, dtype=torch.int32)
        grad = a.new_empty((0, a.shape[1]))
        if Flag.ANCHOR_GRADIENT in flags:
            grad = (slope @ k).masked_fill((count == 0)[:, None], 0.0)
        return SigmoidState(loss.sum(dim=1), slope.sum(dim=1), count, grad)


def sigmoid_backward(weight: Tensor, anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag) -> Tensor:
    """Gradient of sum_i weight_i L_i of the keys [M, D] over the scale: sum_i weight_i c_ij a_i.

    An anchor of weight 0 [N] does not count: nothing of its row reaches a key. Under SELF the keys are the anchors, and
    this is the gradient of the rows as keys alone.
    """
    pairs = pairs._replace(anchor_labels=torch.where(weight == 0, -1, pairs.anchor_labels))
    with _exact():
        a, k = _read(anchors, pairs.anchor_labels), _read(keys, pairs.key_labels)
        _, slope, counted = _sigmoid_pairs(a, k, pairs, logit, flags)
        grad = (slope * weight[:, None].to(a.dtype)).T @ a
        return grad.masked_fill(~counted.any(dim=0)[:, None], 0.0)


def unit_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, D] over their norms, and 1 / norm [n]; a zero row and an ignored row give zeros."""
    wide = _read(rows, labels)
    inverse = _inverse_norm(wide)
    return (wide * inverse[:, None]).to(rows.dtype), inverse


def _inverse_norm(wide: Tensor) -> Tensor:
    # In fp64 no square overflows or vanishes; the inverse of a subnormal norm is no fp32 number.
    norm = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
    return torch.where(norm == 0, norm, 1 / norm).clamp(max=torch.finfo(wide.dtype).max).to(wide.dtype)


def row_inverse(rows: Tensor, labels: Tensor) -> Tensor:
    """1 / norm [n] of rows [n, D]; 0 for a zero row and an ignored row."""
    return _inverse_norm(_read(rows, labels))


def reduce(loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str) -> Reduction:
    """Value of the weighted losses [N] under a reduction, and what it makes of each anchor."""
    valid = count > 0
    factor = valid.to(loss.dtype) if weights is None else torch.where(valid, weights.to(loss.dtype), 0.0)
    value = loss * factor
    if reduction != "none":
        value = value.sum()
    if reduction == "mean":
        total = factor.sum()
        total = torch.where(total > 0, total, 1.0)
        value, factor = value / total, factor / total
    return Reduction(value, factor, pull * factor, factor / _divisor(count))


def scaled(grad: Tensor, factors: tuple[Tensor, Tensor] | None) -> Tensor:
    """Gradient rows [n, D] times a factor and the upstream number of each row; a zero row stays zero."""
    if factors is None:
        return grad
    factor, upstream = factors
    return torch.where(grad == 0, 0.0, grad * (factor * upstream)[:, None])


def unit_rows_backward(grad: Tensor, factors: tuple[Tensor, Tensor] | None, unit: Tensor, inverse: Tensor) -> Tensor:
    """(g - u <u, g>) / norm for each row g of the scaled gradient, in the dtype of `unit`; 0 where the gradient is."""
    grad = scaled(grad, factors)
    wide = unit.to(grad.dtype)
    radial = (wide * grad).sum(dim=1, keepdim=True)
    live = (grad != 0).any(dim=1, keepdim=True)
    return torch.where(live, (grad - wide * radial) * inverse[:, None], 0.0).to(unit.dtype)


def _coordinates(index: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Image and spatial coordinates of each index into [B, *spatial], -1 read as 0."""
    rest, coordinates = index.clamp(min=0), []
    for size in reversed(shape[1:]):
        coordinates.append(rest % size)
        rest = rest // size
    return rest, *reversed(coordinates)


def gather(features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [n, D] of a map [B, D, *spatial] at index [n] into B * prod(spatial); index -1 gives zeros.

    With `normalize` they are divided by their norms, and 1 / norm [n] comes along; without, [0].
    """
    if features.numel() == 0:
        rows = features.new_zeros((index.shape[0], features.shape[1]))
    else:
        pixels = features.movedim(1, -1)
        rows = pixels[_coordinates(index, pixels.shape[:-1])].masked_fill((index < 0)[:, None], 0.0)
    if not normalize:
        return rows.to(dtype), _wide(rows).new_empty(0)
    unit, inverse = unit_rows(_wide(rows), index)
    return unit.to(dtype), inverse


def gather_backward(
    grad: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    index: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    unique: bool,
    like: Origin,
) -> Tensor:
    """Gradient of the map from that of its rows, through their norm (unit [n, D], 1 / norm [n]) where there is one.

    A pixel drawn twice gets the sum; `unique` promises that there is none.
    """
    rows = scaled(_wide(grad), factors)
    if norm is not None:
        unit, inverse = norm
        rows = unit_rows_backward(rows, None, unit.to(rows.dtype), inverse)
    rows = rows.masked_fill((index < 0)[:, None], 0.0)
    total = rows.new_empty_strided(like.size, like.stride).zero_()
    if total.numel():
        pixels = total.movedim(1, -1)
        pixels.index_put_(_coordinates(index, pixels.shape[:-1]), rows, accumulate=True)
    return total.to(like.dtype)
