# SPDX-License-Identifier: Apache-2.0
"""The contract in fifty digits: what float64 itself is held against, for small calls.

    C_ij = dL_i / ds_ij = w_j (p_i exp(s_ij - lse_i) [j in D(i)] - rho_ij / c_i [j in P(i)])
    "all": p_i = rho_ij = 1;   "negatives": rho_ij = 1 / (1 + exp(s_ij - lse_i)), p_i = mean_P rho_ij

The loss is that of `tests.oracle.scalar_loss`, which `test_exact.py` holds the closed form against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.budget import Wide
from tests.oracle import DIFFERENTIABLE, Call, comparable, owns

Exact = npt.NDArray[np.object_]  # of numbers of DIGITS
DIGITS = mpmath.mp.clone()
DIGITS.dps = 50
BITS = 320  # after the point, of the factors of a product: an exponential of -200 has as many digits as matter
_number = np.vectorize(DIGITS.mpf, otypes=[object])
_exp = np.vectorize(DIGITS.exp, otypes=[object])


def exactly(values: Tensor) -> Exact:
    """The values of a tensor, none rounded."""
    return _empty(values.shape) if values.numel() == 0 else _number(values.detach().double().numpy())


def wide(values: Exact | Any) -> Wide:
    """Numbers of fifty digits as the sum of two float64."""
    values = np.asarray(values, dtype=object)
    high = values.astype(np.float64)
    low = values - _number(high) if values.size else values
    return Wide(torch.from_numpy(np.array(high)), torch.from_numpy(np.array(low, dtype=np.float64)))


_fixed = np.vectorize(lambda value: int(DIGITS.ldexp(value, BITS)), otypes=[object])
_floating = np.vectorize(lambda value: DIGITS.ldexp(DIGITS.mpf(value), -2 * BITS), otypes=[object])


def product(left: Exact, right: Exact) -> Exact:
    """The matrix product [N, K] x [K, M] in fixed point, ten times as fast."""
    if 0 in (*left.shape, *right.shape):
        return _empty((left.shape[0], right.shape[1]))
    return np.asarray(_floating(_fixed(left) @ _fixed(right)))


def _empty(shape: Sequence[int]) -> Exact:
    return np.full(tuple(shape), DIGITS.zero, dtype=object)


class _Unit(NamedTuple):
    """Rows [n, D] over their norms where the call normalises, and 1 / norm [n, 1]; a zero row stays zero."""

    rows: Exact
    inverse: Exact | None

    def backward(self, grad: Exact) -> Exact:
        """(g - u <u, g>) / norm."""
        if self.inverse is None:
            return grad
        radial = (self.rows * grad).sum(axis=1, keepdims=True)
        return np.asarray((grad - self.rows * radial) * self.inverse)


def _unit(rows: Tensor, normalize: bool) -> _Unit:
    given = exactly(rows)
    if not normalize:
        return _Unit(given, None)
    norms = [DIGITS.sqrt(DIGITS.fsum(value * value for value in row)) for row in given]
    inverse = np.array([[1 / norm if norm else DIGITS.zero] for norm in norms], dtype=object).reshape(-1, 1)
    return _Unit(given * inverse, inverse)


def _masks(call: Call) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of the keys, then of the prototypes, attract and repel each anchor."""
    anchors, keys = call.anchor_labels.tolist(), call.columns().labels.tolist()
    prototypes = 0 if call.positives is None else len(call.positives)
    positive, negative = (np.zeros((len(anchors), len(keys) + prototypes), dtype=bool) for _ in range(2))
    for i, label in enumerate(anchors):
        for j, other in enumerate(keys):
            if label >= 0 and other >= 0 and comparable(call, i, j):
                positive[i, j] = other == label and call.positives is None
                negative[i, j] = other != label
        for p in range(prototypes):
            positive[i, len(keys) + p] = owns(call, i, p)
    return positive, negative


def _per_anchor(
    similarity: Exact, positive: Any, negative: Any, copies: Exact, denominator: str
) -> tuple[Exact, Exact]:
    """Loss [N] and C [N, M] of the anchors that have a positive; 0 for the others."""
    losses, coefficients = _empty(similarity.shape[:1]), _empty(similarity.shape)
    for i in range(len(similarity)):
        row, attract = similarity[i], positive[i]
        shares = copies[attract] / (copies[attract].sum() or 1)
        inside = negative[i] if denominator == "negatives" else attract | negative[i]
        if not attract.any() or not inside.any():
            continue  # log(1 + an empty sum) = 0
        peak = max(row[inside])
        lse = peak + DIGITS.log((copies[inside] * _exp(row[inside] - peak)).sum())
        if denominator == "all":
            losses[i], pull = lse - (shares * row[attract]).sum(), DIGITS.one
            coefficients[i, attract] -= shares
        else:
            push = _exp(lse - row[attract])
            losses[i] = DIGITS.fsum(shares * [DIGITS.log1p(value) for value in push])
            pull = (shares * push / (1 + push)).sum()
            coefficients[i, attract] -= shares * push / (1 + push)
        coefficients[i, inside] += pull * copies[inside] * _exp(row[inside] - lse)
    return losses, coefficients


def exact(call: Call, names: Sequence[str] = DIFFERENTIABLE) -> tuple[Wide, list[Wide]]:
    """The loss and the gradients of its sum, as `tests.oracle.dense` gives them in a dtype."""
    columns = call.columns()
    anchors, keys = _unit(call.anchors, call.normalize), _unit(columns.rows, call.normalize)
    others = [keys] if call.positives is None else [keys, _unit(call.positives, call.normalize)]
    stacked = np.concatenate([part.rows for part in others])
    temperature = DIGITS.mpf(float(call.temperature))
    positive, negative = _masks(call)
    similarity = product(anchors.rows, stacked.T) / temperature
    copies = _number(np.array([*columns.copies, *[1.0] * (len(stacked) - len(columns.copies))], dtype=object))
    losses, coefficients = _per_anchor(similarity, positive, negative, copies, call.denominator)
    valid = positive.any(axis=1)
    weights = _empty(losses.shape) + 1 if call.weights is None else exactly(call.weights)
    total = weights[valid].sum() if call.reduction == "mean" else DIGITS.zero
    factor = np.where(valid, weights, DIGITS.zero) / (total or DIGITS.one)
    value, pairs = factor * losses, factor[:, None] * coefficients
    loss = value if call.reduction == "none" else value.sum()
    grad_anchors, grad_columns = product(pairs, stacked) / temperature, product(pairs.T, anchors.rows) / temperature
    parts = [part.backward(grad) for part, grad in zip(others, np.split(grad_columns, [len(keys.rows)]), strict=False)]
    mean = loss if total else DIGITS.zero
    gradients = {
        "anchors": anchors.backward(grad_anchors) + (parts[0] if call.keys is None else 0),
        "keys": parts[0], "positives": parts[-1],
        "temperature": -np.sum(pairs * similarity, dtype=object) / temperature,
        "weights": np.where(valid, losses - mean, DIGITS.zero) / (total or DIGITS.one),
    }  # fmt: skip
    learned = [name for name in names if isinstance(getattr(call, name), Tensor)]
    return wide(loss), [_like(wide(gradients[name]), getattr(call, name)) for name in learned]


def _like(found: Wide, leaf: Tensor) -> Wide:
    return Wide(*(part.reshape(leaf.shape) for part in found))
