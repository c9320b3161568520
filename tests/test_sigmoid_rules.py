# SPDX-License-Identifier: Apache-2.0
"""The edges of the sigmoid loss, and its manners: refusals by name, NaN where it belongs, one graph, no second pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import secl_ops
from secl_ops import sigmoid_ops
from secl_ops.spec import Flag
from tests.budget import assert_within_budget
from tests.cases import labels, rows, separate
from tests.conftest import skip_or_fail
from tests.device_step import fake_cuda
from tests.oracle import Call, present
from tests.sigmoid_oracle import case, dense, sigmoid
from tests.test_backends import on
from tests.test_ops import CHECKS, permuted
from tests.test_sigmoid import BACKENDS, run

untyped: Any = secl_ops
A, Y = torch.ones(4, 3), torch.tensor([0, 0, 1, 1])
K, Z = torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 1])


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@BACKENDS
@pytest.mark.parametrize("name", ["all ignored", "all keys ignored", "no anchor", "no key"])
def test_without_a_pair_the_loss_is_zero_with_a_graph(name: str, backend: str, device: str) -> None:
    loss, gradients = run(case(name), backend, device)
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in gradients)


@BACKENDS
def test_an_anchor_counts_that_meets_any_key(backend: str, device: str) -> None:
    """Without a positive too; one that is alone in its group does not."""
    call = sigmoid(Call(rows(3, 4, 0), torch.tensor([0, 1, 2]), rows(2, 4, 1), torch.tensor([7, 7])), bias=-1.0)
    call = replace(call, anchor_groups=torch.tensor([0, 0, 1]), key_groups=torch.tensor([0, 0]), reduction="none")
    each, _ = run(call, backend, device)
    mean, gradients = run(replace(call, reduction="mean"), backend, device)
    assert (each > 0).tolist() == [True, True, False]
    assert_within_budget("mean", mean, each.double().sum() / 2, each.sum() / 2)
    assert gradients[0].any(dim=1).tolist() == [True, True, False]


@BACKENDS
def test_nan_in_an_ignored_row_stays_there(backend: str, device: str) -> None:
    call = case("ragged")
    clean = run(call, backend, device)
    anchors, keys = call.anchors.clone(), present(call.keys).clone()
    anchors[call.anchor_labels < 0], keys[present(call.key_labels) < 0] = torch.nan, torch.inf
    dirty = run(replace(call, anchors=anchors, keys=keys), backend, device)
    assert torch.equal(clean[0], dirty[0])
    assert all(map(torch.equal, clean[1], dirty[1]))


@BACKENDS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_in_a_read_row_travels_into_its_loss_alone(value: float, backend: str, device: str) -> None:
    call = sigmoid(replace(separate(30, 41, 12, ignored=0.0), normalize=False, reduction="none"), scale=1.0)
    anchors = call.anchors.clone()
    anchors[3, 2] = value
    loss, _ = run(replace(call, anchors=anchors), backend, device)
    assert not loss[3].isfinite()
    assert loss[torch.arange(30) != 3].isfinite().all()


@BACKENDS
def test_nan_in_an_anchor_of_weight_0_stays_there(backend: str, device: str) -> None:
    call = sigmoid(separate(30, 41, 12, ignored=0.0), scale=torch.tensor(3.0), bias=torch.tensor(-1.0))
    call = replace(call, weights=torch.ones(30).index_fill(0, torch.tensor([4]), 0.0))
    anchors = call.anchors.clone()
    anchors[4] = torch.nan
    _, clean = run(replace(call, reduction="none"), backend, device)
    _, dirty = run(replace(call, anchors=anchors, reduction="none"), backend, device)
    assert torch.equal(clean[1], dirty[1])  # of the keys


@BACKENDS
def test_a_zero_row_and_a_scale_of_zero(backend: str, device: str) -> None:
    _, gradients = run(case("zero rows"), backend, device)
    assert not gradients[0][::3].any()
    for leaf in run(case("ragged", scale=torch.tensor(0.0)), backend, device)[1][:2]:
        assert not leaf.any()


@BACKENDS
def test_gradients_come_back_in_the_layout_of_the_rows(backend: str, device: str) -> None:
    call = on(sigmoid(separate(19, 23, 8)), device)
    straight, leaf = call.anchors.clone().requires_grad_(), call.anchors.T.contiguous().T.requires_grad_()
    one, other = (
        secl_ops.sigmoid_contrast(**replace(call, anchors=each).arguments(), backend=backend)
        for each in (straight, leaf)
    )
    (gradient,) = torch.autograd.grad(other, leaf)
    assert torch.equal(one, other)
    assert torch.equal(gradient, torch.autograd.grad(one, straight)[0])
    assert gradient.stride() == leaf.stride()


@BACKENDS
def test_fp16_rows_and_a_large_scale_do_not_overflow(backend: str, device: str) -> None:
    call = sigmoid(
        Call((torch.eye(4) * 6000).half(), Y, (torch.eye(4) * 0.02).half(), Y), normalize=False, scale=1000.0
    )
    loss, _ = run(call, backend, device)
    truth = dense(call.to(torch.float64), ())[0]
    assert_within_budget("loss", loss, truth, truth.float(), amplification=8)


@BACKENDS
def test_autocast_does_not_reach_inside(backend: str, device: str) -> None:
    call = on(case("ragged"), device)
    expected = secl_ops.sigmoid_contrast(**call.arguments(), backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(secl_ops.sigmoid_contrast(**call.arguments(), backend=backend), expected)


@BACKENDS
def test_keys_may_change_before_the_backward_pass_where_they_are_frozen(backend: str, device: str) -> None:
    call, found = on(case("ragged"), device), list[Tensor]()
    for changes in (False, True):
        anchors, keys = call.anchors.clone().requires_grad_(), present(call.keys).clone()
        loss = secl_ops.sigmoid_contrast(**replace(call, anchors=anchors, keys=keys).arguments(), backend=backend)
        if changes:
            keys.fill_(7.0)
        found += torch.autograd.grad(loss, anchors)
    assert torch.equal(*found)


@BACKENDS
def test_a_second_derivative_is_refused(backend: str, device: str) -> None:
    call, (anchors, *_) = on(case("ragged"), device).leaves()
    (gradient,) = torch.autograd.grad(
        secl_ops.sigmoid_contrast(**call.arguments(), backend=backend), anchors, create_graph=True
    )
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_transform_of_torch_func_is_refused_by_name(transform: Callable[..., Any]) -> None:
    given = A[None] if transform is torch.func.vmap else A
    with pytest.raises(RuntimeError, match=r"torch\.func \(grad, .*\) cannot transform it; take them by loss"):
        transform(lambda x: secl_ops.sigmoid_contrast(x, anchor_labels=Y))(given)


def loss(anchors: object = A, keys: object = None, **options: object) -> Callable[[], object]:
    given = {"anchor_labels": Y, **options}
    return lambda: untyped.sigmoid_contrast(anchors, keys, **given)


REFUSALS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (loss([[1.0]]), TypeError, "anchors must be a torch.Tensor; got list"),
    (loss(A, K), ValueError, "keys needs key_labels as well"),
    (loss(A, K.half(), key_labels=Z), TypeError, "keys and anchors must have one dtype"),
    (loss(scale="10"), TypeError, "scale must be a float or a one-element tensor; got str"),
    (loss(scale=True), TypeError, "scale must be a float or a one-element tensor; got bool"),
    (loss(scale=float("inf")), ValueError, "scale must be finite; got inf"),
    (loss(bias=float("nan")), ValueError, "bias must be finite; got nan"),
    (loss(bias=torch.ones(2)), ValueError, r"bias must be a float or a floating tensor of one .* shape \(2,\) and"),
    (loss(scale=torch.ones(1).int()), ValueError, r"scale must be a float or a floating .* dtype torch.int32"),
    (loss(bias=torch.full((1,), torch.inf), validate=True), ValueError, "bias must be finite; got inf"),
    (loss(scale=torch.ones(1, device="meta")), ValueError, "scale and anchors must be on one device; got meta and cpu"),
    (loss(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none'; got 'avg'"),
    (loss(backend="cuda"), ValueError, "backend must be one of"),
    (loss(normalize=1), TypeError, "normalize must be a bool; got int"),
    (loss(validate=1), TypeError, "validate must be a bool; got int"),
    (loss(weights=-torch.ones(4), validate=True), ValueError, "weights must be finite and at least 0"),
    (loss(exclude=Y), ValueError, "exclude goes with keys"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[row[2][:40] for row in REFUSALS])
def test_refusal(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("backend", ["native", "triton"], indirect=True)
def test_float64_is_for_the_reference_backend(backend: str) -> None:
    with pytest.raises(RuntimeError, match=f"'{backend}' cannot run sigmoid_contrast on cpu float64: .*reference"):
        secl_ops.sigmoid_contrast(A.double(), anchor_labels=Y, backend=backend)


def test_a_wrong_number_is_refused_by_the_operation_too() -> None:
    given = (A, A, Y.int(), Y.int(), None, None, None, 0, 4)
    with pytest.raises(ValueError, match=r"learned_scale must have one element; got shape \(2,\)"):
        sigmoid_ops.sigmoid(*given, None, 1.0, 0.0, torch.ones(2), None, 0, "reference")
    with pytest.raises(ValueError, match=r"weight must have shape \[4\]; got \(3,\)"):
        sigmoid_ops.sigmoid_backward(torch.ones(3), *given, 1.0, 0.0, None, None, 0, "reference")
    with pytest.raises(ValueError, match=r"key_inverse must have shape \[4\]; got \(3,\)"):
        sigmoid_ops.sigmoid(*given, torch.ones(3), 1.0, 0.0, None, None, 0, "reference")


@pytest.mark.parametrize("permute", [False, True])
def test_opcheck(permute: bool) -> None:
    call = separate(9, 13, 8)
    sides = (permuted(value) if permute else value for value in (call.anchors, call.keys))
    pairs = (
        call.anchor_labels.int(),
        call.key_labels.int(),
        labels(9, 2, 0).int(),
        labels(13, 2, 1).int(),
        None,
        0,
        13,
    )
    given = (*sides, *pairs)
    for learned in ((None, None), (torch.tensor(3.0), torch.tensor([-1.0]))):
        forward = (*given, None, 2.0, -1.0, *learned, int(Flag.ANCHOR_GRADIENT), "auto")
        torch.library.opcheck(sigmoid_ops.sigmoid, forward, test_utils=CHECKS)
        backward = (torch.ones(9), *given, 2.0, -1.0, *learned, 0, "auto")
        torch.library.opcheck(sigmoid_ops.sigmoid_backward, backward, test_utils=CHECKS)


@pytest.mark.parametrize("shared", [False, True])
def test_one_graph_serves_any_size_with_the_same_bits(shared: bool) -> None:
    def value(anchors: Tensor, keys: Tensor | None, scale: Tensor, bias: Tensor, *named: Tensor) -> Tensor:
        others = None if keys is None else named[1]
        return secl_ops.sigmoid_contrast(
            anchors, keys, anchor_labels=named[0], key_labels=others, scale=scale.exp(), bias=bias
        )

    counter = CompileCounter()
    graph = torch.compile(value, fullgraph=True, backend=counter)
    for size in range(8, 20):
        found = []
        for run_it in (value, graph):
            leaves = [
                rows(size, 8, 0),
                *([] if shared else [rows(size + 3, 8, 1)]),
                torch.tensor(1.0),
                torch.tensor(-2.0),
            ]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            given = [leaves[0], None, *leaves[1:]] if shared else leaves
            loss = run_it(*given, labels(size, 3, 0), labels(size + 3, 3, 1))
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        assert all(map(torch.equal, *found))
    assert 1 <= counter.frame_count <= 2


def test_an_evaluation_compiles_to_one_graph() -> None:
    graph = torch.compile(
        lambda x: secl_ops.sigmoid_contrast(x, [x, K], anchor_labels=Y, key_labels=[Y, Z]),
        fullgraph=True,
        backend="eager",
    )
    with torch.no_grad():
        assert torch.equal(graph(A), secl_ops.sigmoid_contrast(A, [A, K], anchor_labels=Y, key_labels=[Y, Z]))


def test_no_gradient_is_prepared_where_none_is_asked_for() -> None:
    call = case("ragged")
    assert not secl_ops.sigmoid_contrast(**call.arguments()).requires_grad
    with torch.no_grad():
        assert not secl_ops.sigmoid_contrast(**call.leaves()[0].arguments()).requires_grad


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["self", "keys", "pieces"])
def test_nothing_waits_for_the_device(kind: str, weighted: bool) -> None:
    if reasons := secl_ops.backends()["triton"]:
        skip_or_fail("triton", "; ".join(reasons))
    with fake_cuda() as (mode, tape):
        anchors, *keys = (torch.empty(count, 16, device="cuda").requires_grad_() for count in (40, 70, 30))
        named, *key_labels = (torch.zeros(count, dtype=torch.int64, device="cuda") for count in (40, 70, 30))
        scale, bias = (torch.empty(1, device="cuda").requires_grad_() for _ in range(2))
        given: dict[str, Any] = {"anchor_labels": named, "scale": scale, "bias": bias}
        given["weights"] = torch.empty(40, device="cuda") if weighted else None
        if kind != "self":
            sides = {"keys": keys, "key_labels": key_labels}
            given |= {name: side[0] if kind == "keys" else side for name, side in sides.items()}
        value = secl_ops.sigmoid_contrast(anchors, **given, backend="triton")
        for leaf in (anchors, scale, bias, *({"self": [], "keys": keys[:1], "pieces": keys}[kind])):
            gradient = tape.backward(value, torch.ones_like(value), leaf)
            assert (gradient.shape, gradient.device.type) == (leaf.shape, "cuda")
        passes = mode.launches.count("sigmoid_kernel")
    # The gradients of each leaf are found anew: those of the keys, and in self-contrast with weights as many times.
    leaves = {"self": 3, "keys": 4, "pieces": 5}[kind]
    assert passes == {"self": 1 + leaves * weighted, "keys": 1 + leaves, "pieces": 2 + 2 * leaves}[kind]
