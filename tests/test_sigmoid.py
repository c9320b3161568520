# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss on every backend: every case, every dtype, within the error budget; the reference by its digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import secl_ops
from secl_ops import sigmoid_ops
from secl_ops.spec import Flag
from tests import lanes
from tests.budget import assert_within_budget
from tests.cases import alone, rows, separate
from tests.draws import examples
from tests.exact import DIGITS, wide
from tests.oracle import Call
from tests.sigmoid_oracle import CASES, LEARNABLE, SigmoidCall, case, dense, dense_sigmoid, scalar_sigmoid, sigmoid
from tests.test_backends import on

pytestmark = pytest.mark.usefixtures("poisoned")
TRUTH = (torch.float64, torch.float32)
ENGINES = ["native", "triton", "reference"]
BACKENDS = pytest.mark.parametrize("backend", ENGINES, indirect=True)
CUDA = [name for name in lanes.here() if lanes.PATHS[name] == "portable"]
"""The native CUDA kernels, on this machine's GPU or on the emulated one: of rows of 16 bits."""


def reference(call: SigmoidCall) -> Tensor:
    return secl_ops.sigmoid_contrast(**call.arguments(), backend="reference")


def run(call: SigmoidCall, backend: str, device: str) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a backend, on the CPU."""
    call, leaves = on(call, device).leaves()
    loss = secl_ops.sigmoid_contrast(**call.arguments(), backend=backend)
    gradients = torch.autograd.grad(loss.sum(), leaves)
    return loss.detach().cpu(), [gradient.cpu() for gradient in gradients]


def check(call: SigmoidCall, backend: str, device: str) -> None:
    loss, gradients = run(call, backend, device)
    truth, true_gradients = dense(call.to(torch.float64))
    rough, rough_gradients = dense(call)
    amplification = 4 * max(1.0, float(call.scale))
    assert loss.dtype == torch.float32
    assert_within_budget("loss", loss, truth, rough, amplification=amplification)
    names = [name for name in LEARNABLE if isinstance(getattr(call, name), Tensor)]
    for name, *found in zip(names, gradients, true_gradients, rough_gradients, strict=True):
        assert found[0].dtype == getattr(call, name).dtype
        magnitude = float(truth.abs().max()) if name in ("scale", "bias", "weights") else 0.0  # sums that cancel
        assert_within_budget(f"gradient of {name}", *found, amplification=amplification, magnitude=magnitude)


@pytest.mark.parametrize("name", CASES)
def test_loss_of_each_anchor_equals_scalar_loops(name: str) -> None:
    call = case(name, reduction="none", weights=None).to(torch.float64)
    expected = wide(scalar_sigmoid(call, DIGITS, DIGITS.mpf))
    assert_within_budget(name, reference(call), expected, dense_sigmoid(call), amplification=3)


def test_closed_forms() -> None:
    same = sigmoid(Call(torch.ones(12, 4).double(), torch.arange(12) % 3), scale=2.0, bias=-1.5, reduction="none")
    near, far = (DIGITS.log1p(DIGITS.exp(sign * DIGITS.mpf("0.5"))) for sign in (-1, 1))
    assert_within_budget("alike", reference(same), wide([3 * near + 8 * far] * 12), dense_sigmoid(same))
    total = replace(same, reduction="sum")
    assert_within_budget("sum", reference(total), wide(12 * (3 * near + 8 * far)), dense_sigmoid(total))
    undecided = replace(same, scale=0.0, bias=0.0)
    assert_within_budget("undecided", reference(undecided), wide([11 * DIGITS.log(2)] * 12), dense_sigmoid(undecided))


@pytest.mark.parametrize(
    "name", ["ragged", "self", "self prototypes", "grouped", "prototypes", "weighted", "one class", "excluding"]
)
def test_gradients_equal_finite_differences(name: str) -> None:
    call = case(name).to(torch.float64)
    names = [name for name in LEARNABLE if isinstance(getattr(call, name), Tensor)]
    _, leaves = call.leaves(names)

    def loss(*values: Tensor) -> Tensor:
        changes: dict[str, Any] = dict(zip(names, values, strict=True))
        return reference(replace(call, **changes))

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.drawn
@examples(
    60, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.booleans(),
    st.sampled_from(["mean", "sum", "none"]), st.floats(-20, 20), st.floats(-20, 20),
)  # fmt: skip
def test_any_small_call_equals_scalar_loops(
    n: int, m: int, d: int, seed: int, normalize: bool, reduction: str, scale: float, bias: float
) -> None:
    call = sigmoid(separate(n, m, d, seed), normalize=normalize, scale=scale, bias=bias).to(torch.float64)
    losses = scalar_sigmoid(call, DIGITS, DIGITS.mpf)
    meets = [anchor >= 0 and bool((call.columns().labels >= 0).any()) for anchor in call.anchor_labels.tolist()]
    total = sum(losses)
    expected = {"none": losses, "sum": total, "mean": total / max(1, sum(meets))}[reduction]
    call = replace(call, reduction=reduction)
    amplification = 8 * (1 + abs(scale) + abs(bias)) * (1 if normalize else 4 * d)
    assert_within_budget("loss", reference(call), wide(expected), dense_sigmoid(call), amplification=amplification)


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_every_case(name: str, backend: str, device: str) -> None:
    check(case(name), backend, device)


@pytest.mark.parametrize("backend", [*ENGINES, *CUDA], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_low_precision(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    check(case(name).to(dtype), backend, device)


@BACKENDS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["ragged", "weighted", "self", "self prototypes", "all keys ignored"])
def test_reductions(name: str, reduction: str, backend: str, device: str) -> None:
    check(case(name, reduction=reduction), backend, device)


@BACKENDS
def test_rows_in_both_roles_have_a_weight_in_one(backend: str, device: str) -> None:
    check(case("self", weights=torch.arange(61) % 4 / 2.0), backend, device)


@BACKENDS
@pytest.mark.parametrize(("start", "stop"), [(0, 70), (70, 70), (0, 0)], ids=["both", "repel", "attract"])
def test_what_an_operation_leaves_of_each_anchor(start: int, stop: int, backend: str, device: str) -> None:
    """Of one that meets no key nothing, and of each how many it meets, those of one tile or of several."""
    call, found = separate(40, 70, 8, ignored=0.4), []
    names = [value.int() for value in (call.anchor_labels, call.key_labels)]
    if start:  # all keys are of another class than all anchors: no pair of them is looked at
        names = [names[0].clamp(max=0), torch.ones(70, dtype=torch.int32)]
    options = (None, 3.0, -1.5, None, None, int(Flag.ANCHOR_GRADIENT))
    for place, name, dtype in ((device, backend, torch.float32), *[("cpu", "reference", each) for each in TRUTH]):
        rows = [value.to(place, dtype) for value in (call.anchors, call.keys)]
        pairs = (*(value.to(place) for value in names), None, None, None, start, stop)
        found.append([value.cpu() for value in sigmoid_ops.sigmoid(*rows, *pairs, *options, name)])
    assert torch.equal(found[0][2], found[1][2])
    for output in (0, 1, 3):
        assert_within_budget(f"output {output}", *(each[output] for each in found), amplification=12)
        assert not found[0][output][call.anchor_labels < 0].any()


@BACKENDS
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (-4.0, 0.5), (0.0, 0.0), (200.0, -200.0), (1e4, 3e4)])
@pytest.mark.parametrize("call", [separate(21, 70, 8), alone(70, 8)], ids=["separate", "self"])
def test_scales_and_biases(call: Call, scale: float, bias: float, backend: str, device: str) -> None:
    check(sigmoid(call, scale=torch.tensor(scale), bias=torch.tensor(bias)), backend, device)


@BACKENDS
@pytest.mark.parametrize("bias", [-80.0, -30.0, 30.0, 80.0, 1e30])
def test_a_pair_that_is_long_decided_neither_overflows_nor_vanishes(bias: float, backend: str, device: str) -> None:
    """Relative precision: exp(-80) is what a negative pair of logit -80 costs, and 1e30 a wrong one."""
    for label in (0, 1):
        call = sigmoid(Call(torch.tensor([[1.0]]), torch.tensor([0]), torch.tensor([[1.0]]), torch.tensor([label])))
        call = replace(call, scale=0.0, bias=torch.tensor(bias))
        loss, gradients = run(call, backend, device)
        exact, true_gradients = dense(call.to(torch.float64))
        assert_within_budget("loss", loss, exact, exact.float(), amplification=100)
        assert_within_budget("bias", gradients[2], true_gradients[2], true_gradients[2].float(), amplification=100)
        assert float(loss) >= 0.0


@BACKENDS
@pytest.mark.parametrize("name", ["self", "ragged", "weighted"])
def test_the_same_call_twice_gives_the_same_bits(name: str, backend: str, device: str) -> None:
    first, second = (run(case(name), backend, device) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


@BACKENDS
def test_keys_in_pieces_add_up(backend: str, device: str) -> None:
    call = on(case("excluding"), device)
    whole = secl_ops.sigmoid_contrast(**call.arguments(), backend=backend)
    keys, key_labels = ([*value.split([20, 0, 17])] for value in (call.columns().rows, call.columns().labels))
    pieces = secl_ops.sigmoid_contrast(**{**call.arguments(), "keys": keys, "key_labels": key_labels}, backend=backend)
    assert_within_budget("pieces", pieces.cpu(), whole.double().cpu(), whole.cpu(), amplification=4)


@BACKENDS
def test_rows_that_are_keys_too_get_the_gradient_of_both_roles(backend: str, device: str) -> None:
    """Self-contrast against a list of the anchors, each blind to itself by `exclude`."""
    call = on(case("self"), device)
    found = []
    for weights in (None, torch.ones(61, device=device)):  # one pass, or two
        anchors = call.anchors.clone().requires_grad_()
        loss = secl_ops.sigmoid_contrast(
            **{**call.arguments(), "anchors": anchors, "weights": weights}, backend=backend
        )
        found.append(torch.autograd.grad(loss, anchors)[0].cpu())
    anchors = call.anchors.clone().requires_grad_()
    loss = secl_ops.sigmoid_contrast(
        anchors, [anchors], anchor_labels=call.anchor_labels, key_labels=[call.anchor_labels], scale=3.0, bias=-1.5,
        exclude=torch.arange(61, device=device), backend=backend,
    )  # fmt: skip
    apart = torch.autograd.grad(loss, anchors)[0].cpu()
    for gradient in found:
        assert_within_budget("roles", gradient, apart.double(), apart, amplification=20)


@BACKENDS
def test_frozen_keys_are_normalised_as_they_are_read(backend: str, device: str) -> None:
    call = on(replace(case("ragged"), scale=3.0, bias=-1.5), device)
    frozen = secl_ops.sigmoid_contrast(**call.arguments(), backend=backend)
    keys = call.columns().rows.clone().requires_grad_()
    learning = secl_ops.sigmoid_contrast(**{**call.arguments(), "keys": keys}, backend=backend)
    assert_within_budget(
        "frozen", frozen.cpu(), learning.detach().double().cpu(), learning.detach().cpu(), amplification=4
    )


@BACKENDS
def test_only_the_gradients_asked_for(backend: str, device: str) -> None:
    call = case("ragged")
    for name in ("anchors", "keys", "scale", "bias"):
        moved = on(call, device)
        leaf = getattr(moved, name).clone().requires_grad_()
        secl_ops.sigmoid_contrast(**{**moved.arguments(), name: leaf}, backend=backend).backward()
        (truth,), (rough,) = (dense(value, (name,))[1] for value in (call.to(torch.float64), call))
        assert_within_budget(name, leaf.grad.cpu(), truth, rough, amplification=12, magnitude=10)


def test_a_larger_scale_and_more_keys_are_worth_more() -> None:
    """It is the number of anchors that divides, and not that of pairs."""
    call = sigmoid(Call(rows(6, 4, 0), torch.arange(6) % 2, rows(8, 4, 1), torch.arange(8) % 2))
    twice = replace(call, keys=call.columns().rows.repeat(2, 1), key_labels=call.columns().labels.repeat(2))
    loss = reference(call)
    assert_within_budget("twice the keys", reference(twice), 2 * loss.double(), 2 * loss)
