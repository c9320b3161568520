# SPDX-License-Identifier: Apache-2.0
"""The truth about float64 is itself held against scalar loops and against differences, both in fifty digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.budget import Wide, assert_within_budget
from tests.cases import CASES, KEY_WEIGHTED
from tests.exact import DIGITS, exact
from tests.oracle import DIFFERENTIABLE, Call, one_loss, scalar_pairs

EPS = torch.finfo(torch.float64).eps
TWO_FLOATS = EPS * EPS  # of a number, is what the sum of two float64 may lack
STEP = 2.0**-14  # times it a temperature of 0.75 and rows of 32nds stay exact
EVERY = CASES | KEY_WEIGHTED
SMALL = {"anchors": 5, "keys": 6, "positives": 4}


def scalar(call: Call) -> list[Any]:
    """The loss by scalar loops and by a weighted mean or sum, in fifty digits."""
    pairs = scalar_pairs(call, DIGITS, DIGITS.mpf)
    losses = [one_loss(*pair, call.denominator, DIGITS) for pair in pairs]
    weights = [1.0] * len(losses) if call.weights is None else call.weights.tolist()
    weighted = [DIGITS.mpf(weight) * loss for weight, loss in zip(weights, losses, strict=True)]
    if call.reduction == "none":
        return weighted
    total = sum(weight for weight, (positive, _) in zip(weights, pairs, strict=True) if positive)
    return [sum(weighted) / ((total or 1.0) if call.reduction == "mean" else 1.0)]


def difference(call: Call, name: str, place: int) -> Any:
    """Derivative of the loss's sum by one element: central differences, extrapolated three times to h = 0."""

    def at(step: float) -> Any:
        moved = getattr(call, name).clone()
        before = float(moved.view(-1)[place])
        moved.view(-1)[place] += step
        assert float(moved.view(-1)[place]) - before == step
        return sum(scalar(replace(call, **{name: moved})))

    found = [(at(h) - at(-h)) / (2 * DIGITS.mpf(h)) for h in (STEP, STEP / 2, STEP / 4, STEP / 8)]
    for order in (4, 16, 64):
        found = [(order * finer - coarser) / (order - 1) for coarser, finer in itertools.pairwise(found)]
    return found[0]


def digits(values: Wide) -> list[Any]:
    pairs = zip(values.high.flatten().tolist(), values.low.flatten().tolist(), strict=True)
    return [DIGITS.mpf(high) + DIGITS.mpf(low) for high, low in pairs]


def small(call: Call) -> Call:
    """The first few rows of a call, and a temperature that learns."""
    owner = {
        "anchor_labels": "anchors", "anchor_groups": "anchors", "exclude": "anchors", "weights": "anchors",
        "key_labels": "keys", "key_groups": "keys", "positive_labels": "positives", "positive_groups": "positives",
        "key_weights": "anchors" if call.keys is None else "keys",
    }  # fmt: skip
    given = {name: value for name, value in call.__dict__.items() if isinstance(value, Tensor)}
    cut: dict[str, Any] = {name: value[: SMALL[owner.get(name, name)]] for name, value in given.items()}
    cut |= {name: cut[name][:, :5] for name in SMALL if name in cut}
    return replace(call, **cut, temperature=torch.tensor(0.75)).to(torch.float64)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize(
    ("name", "reduction"),
    [*((name, "mean") for name in EVERY), *itertools.product(["weighted", "prototypes with groups"], ["sum", "none"])],
)
def test_loss_and_gradients_equal_scalar_loops_and_their_differences(
    name: str, denominator: str, reduction: str
) -> None:
    call = replace(small(EVERY[name]()), denominator=denominator, reduction=reduction)
    loss, gradients = exact(call)
    for found, expected in zip(digits(loss), scalar(call), strict=True):
        assert abs(found - expected) <= TWO_FLOATS * max(abs(expected), EPS)  # the loops leave 1e-52 of a 0
    learning = [each for each in DIFFERENTIABLE if isinstance(getattr(call, each), Tensor)]
    for leaf, gradient in zip(learning, gradients, strict=True):
        values = getattr(call, leaf)
        assert gradient.high.shape == values.shape
        if not values.numel():
            continue
        rows = values.reshape(len(values) if values.ndim else 1, -1)
        for row in {0, len(rows) // 2}:
            if leaf in SMALL and call.normalize and not rows[row].any():
                continue  # the norm of a zero row has no derivative; the contract says 0
            place = row * rows.shape[1] + rows.shape[1] // 3
            largest = max(map(abs, digits(gradient)))
            # The first term left out is of the order of (step / temperature)^8.
            assert abs(digits(gradient)[place] - difference(call, leaf, place)) <= 1e-24 * max(1, largest), leaf


def test_a_zero_row_has_no_gradient() -> None:
    call = small(CASES["zero rows"]())
    _, (anchors, keys, _) = exact(call)
    for rows, gradient in ((call.anchors, anchors), (call.keys, keys)):
        assert rows is not None
        zero = ~rows.any(dim=1)
        assert zero.any()
        assert not gradient.high[zero].any()


def test_float64_is_refused_as_a_truth_about_itself() -> None:
    values = torch.ones(2).double()
    with pytest.raises(AssertionError, match=r"gauge: float64 is no truth about float64"):
        assert_within_budget("gauge", values, values, values)


@pytest.mark.parametrize("off", [lambda high: high + 2.0**-52, lambda high: high - 2.0**-52])
def test_what_float64_cannot_hold_counts(off: Callable[[Tensor], Tensor]) -> None:
    truth = Wide(torch.ones(1).double(), torch.full((1,), 2.0**-53).double())
    near = torch.full((1,), 1 + 2.0**-52).double()
    assert_within_budget("half an ulp off", truth.high, truth, near)
    assert_within_budget("half an ulp off", near, truth, truth.high)
    with pytest.raises(AssertionError, match="above its budget"):
        assert_within_budget("more", off(off(off(near))), truth, truth.high)
