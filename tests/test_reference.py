# SPDX-License-Identifier: Apache-2.0
"""The truth is itself held against scalar loops, closed forms and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import secl_ops
from tests.budget import assert_within_budget
from tests.cases import CASES, KEY_WEIGHTED, alone, separate
from tests.draws import examples
from tests.exact import DIGITS, exact, wide
from tests.oracle import DIFFERENTIABLE, Call, dense_loss, present, scalar_loss

EVERY = CASES | KEY_WEIGHTED


def reference(call: Call) -> torch.Tensor:
    return secl_ops.info_nce(**call.arguments(), backend="reference")


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", EVERY)
def test_loss_of_each_anchor_equals_scalar_loops(name: str, denominator: str) -> None:
    call = replace(EVERY[name](), denominator=denominator, reduction="none", weights=None).to(torch.float64)
    expected = wide(scalar_loss(call, DIGITS, DIGITS.mpf))
    assert_within_budget(name, reference(call), expected, dense_loss(call), amplification=1 / call.degree)


def test_closed_forms() -> None:
    same = Call(torch.ones(12, 4).double(), torch.arange(12) % 3, reduction="none", temperature=0.5)
    negatives, every = wide([DIGITS.log(1 + 8)] * 12), wide([DIGITS.log(11)] * 12)
    assert_within_budget("negatives", reference(same), negatives, dense_loss(same), amplification=2)
    same = replace(same, denominator="all")
    assert_within_budget("all", reference(same), every, dense_loss(same))
    opposite = Call(torch.tensor([[1.0], [1.0], [-1.0]]).double(), torch.tensor([0, 0, 1]), temperature=0.5)
    expected = wide(DIGITS.log1p(DIGITS.exp(-4)))
    assert_within_budget("two against one", reference(opposite), expected, dense_loss(opposite), amplification=2)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize(
    "name", ["ragged", "self", "self prototypes", "grouped", "prototypes", "weighted", "one class", *KEY_WEIGHTED]
)
def test_gradients_equal_finite_differences(name: str, denominator: str) -> None:
    call = replace(EVERY[name](), denominator=denominator, temperature=0.7).to(torch.float64)
    names = [name for name in DIFFERENTIABLE if isinstance(getattr(call, name), torch.Tensor)]
    _, leaves = call.leaves(names)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        changes: dict[str, Any] = dict(zip(names, values, strict=True))
        return reference(replace(call, **changes))

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("call", [separate(12, 15, 6), alone(12, 6)], ids=["separate", "self"])
def test_temperature_tensor_gets_its_gradient(call: Call, shape: tuple[int, ...]) -> None:
    call = call.to(torch.float64)

    def loss(temperature: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        return reference(replace(call, temperature=temperature, anchors=anchors))

    temperature = torch.full(shape, 0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (temperature, call.anchors.clone().requires_grad_()))
    with_tensor, fixed = loss(temperature, call.anchors), replace(call, temperature=0.6)
    assert_within_budget("loss", with_tensor.detach(), exact(fixed, ())[0], dense_loss(fixed), amplification=2)


def test_weights_get_their_gradient() -> None:
    call = CASES["weighted"]().to(torch.float64)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return reference(replace(call, weights=weights))

    assert torch.autograd.gradcheck(loss, present(call.weights).double().requires_grad_())


@pytest.mark.drawn
@examples(
    60, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.booleans(),
    st.sampled_from(["negatives", "all"]), st.sampled_from(["mean", "sum", "none"]), st.floats(0.05, 3),
)  # fmt: skip
def test_any_small_call_equals_plain_torch(
    n: int, m: int, d: int, seed: int, normalize: bool, denominator: str, reduction: str, temperature: float
) -> None:
    call = replace(
        separate(n, m, d, seed), normalize=normalize, denominator=denominator, reduction=reduction,
        temperature=temperature,
    ).to(torch.float64)  # fmt: skip
    assert_within_budget("loss", reference(call), exact(call, ())[0], dense_loss(call), amplification=8 / temperature)


def test_reference_ignores_autocast() -> None:
    call = separate(33, 47, 32)
    expected = reference(call)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reference(call), expected)


def test_reference_ignores_a_lowered_matmul_precision() -> None:
    call = separate(133, 147, 64)
    expected, before = reference(call), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(reference(call), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_key_order_does_not_matter() -> None:
    call = separate(15, 22, 8).to(torch.float64)
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))
    shuffled = replace(call, keys=call.keys[order], key_labels=call.key_labels[order])
    assert_within_budget("shuffled", reference(shuffled), exact(call, ())[0], reference(call), amplification=10)
