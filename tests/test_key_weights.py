# SPDX-License-Identifier: Apache-2.0
"""Keys that count more or less than once: one of weight 2 is a key that stands twice, one of weight 0 is not there."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import ops
from secl_ops.engines import ordering
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import KEY_WEIGHTED, alone, copies, labels, separate
from tests.lanes import Fit
from tests.oracle import Call, Separate, dense, present
from tests.test_backends import check, on, run

pytestmark = pytest.mark.usefixtures("poisoned")
DENOMINATORS = ["negatives", "all"]
CUTS = (0, 5, 5, 31, 45)


def weighted(denominator: str = "negatives", **options: Any) -> Separate:
    call = replace(separate(31, 45, 16, 3), denominator=denominator, key_weights=copies(45, 6))
    return replace(replace(call, anchor_groups=labels(31, 2, 8), key_groups=labels(45, 2, 9)), **options)


@pytest.mark.thinned(6, backend="triton")
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("name", KEY_WEIGHTED)
def test_every_case(name: str, denominator: str, backend: str, device: str) -> None:
    check(replace(KEY_WEIGHTED[name](), denominator=denominator), backend, device)


@pytest.mark.thinned(6, backend="triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("name", [name for name in KEY_WEIGHTED if name != "unlike weights"])  # beyond fp16
@pytest.mark.cuda_kernels
@pytest.mark.thinned(4, backend="emulated-cuda")
@pytest.mark.thinned(4, backend="emulated-hopper")
def test_low_precision(name: str, denominator: str, dtype: torch.dtype, backend: str, device: str, fitted: Fit) -> None:
    check(fitted(replace(KEY_WEIGHTED[name](), denominator=denominator).to(dtype)), backend, device)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_learned_temperature(denominator: str, reduction: str, backend: str, device: str) -> None:
    for call in (weighted(denominator), replace(alone(30, 8), denominator=denominator, key_weights=copies(30, 1))):
        check(replace(call, temperature=torch.tensor(0.25), reduction=reduction), backend, device)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_key_of_weight_two_is_a_key_that_stands_twice(
    denominator: str, temperature: float, backend: str, device: str
) -> None:
    call = weighted(denominator, temperature=temperature, key_weights=torch.arange(45) % 4 / 1.0)
    place = torch.arange(45).repeat_interleave(present(call.key_weights).long())
    several = replace(
        call, keys=call.keys[place], key_labels=call.key_labels[place], key_groups=present(call.key_groups)[place],
        key_weights=None,
    )  # fmt: skip
    (loss, (of_anchors, of_keys)), (expected, gradients) = (run(each, backend, device) for each in (call, several))
    truth, true_gradients = dense(several.to(torch.float64))
    assert_within_budget("loss", loss, truth, expected, amplification=4 / temperature, magnitude=1 / temperature)
    assert_within_budget("anchors", of_anchors, true_gradients[0], gradients[0], amplification=4 / temperature)
    together = (torch.zeros(45, 16, dtype=each.dtype).index_add(0, place, each) for each in
                (true_gradients[1], gradients[1]))  # fmt: skip
    assert_within_budget("keys", of_keys, *together, amplification=4 / temperature)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_key_of_weight_zero_is_not_there(denominator: str, backend: str, device: str) -> None:
    call = weighted(denominator)
    here = present(call.key_weights) > 0
    keys, nowhere = call.keys.clone(), present(call.key_weights).clone()
    keys[~here] = torch.nan
    nowhere[(call.key_labels < 0).nonzero()[0]] = torch.nan  # nor is the weight of an ignored key
    less = replace(
        call, keys=call.keys[here], key_labels=call.key_labels[here], key_groups=present(call.key_groups)[here],
        key_weights=present(call.key_weights)[here],
    )  # fmt: skip
    loss, (of_anchors, of_keys) = run(replace(call, keys=keys, key_weights=nowhere), backend, device)
    expected, gradients = run(less, backend, device)
    truth, true_gradients = dense(less.to(torch.float64))
    assert not of_keys[~here].any()
    assert_within_budget("loss", loss, truth, expected, amplification=40, magnitude=10)
    for name, *values in zip(("anchors", "keys"), (of_anchors, of_keys[here]), true_gradients, gradients, strict=True):
        assert_within_budget(name, *values, amplification=40)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_weights_of_one_change_nothing(denominator: str, backend: str, device: str) -> None:
    call = weighted(denominator, key_weights=None)
    once = replace(call, key_weights=torch.ones(45))
    (loss, gradients), (expected, unweighted) = (run(each, backend, device) for each in (once, call))
    truth, true_gradients = dense(call.to(torch.float64))
    assert_within_budget("loss", loss, truth, expected, amplification=40, magnitude=10)
    for name, *values in zip(("anchors", "keys"), gradients, true_gradients, unweighted, strict=True):
        assert_within_budget(name, *values, amplification=40)


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("backend", ["native", "reference"], indirect=True)
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_weights_of_one_leave_every_bit(denominator: str, backend: str, device: str) -> None:
    call = weighted(denominator, key_weights=None)
    (loss, gradients), (expected, unweighted) = (
        run(each, backend, device) for each in (replace(call, key_weights=torch.ones(45)), call)
    )
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, gradients, unweighted))


def test_fractions_lie_between(backend: str, device: str) -> None:
    anchors, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    call = Call(anchors, torch.tensor([0]), keys, torch.tensor([0, 1]), temperature=0.5)
    for weight in (0.0, 0.25, 0.5, 1.0):
        loss, _ = run(replace(call, key_weights=torch.tensor([1.0, weight])), backend, device)
        assert abs(float(loss) - math.log1p(weight * math.exp(-2))) < 1e-6


def test_a_key_that_counts_less_than_once_may_make_the_loss_negative(backend: str, device: str) -> None:
    call = Call(torch.ones(1, 2), torch.tensor([0]), torch.ones(1, 2), torch.tensor([0]), denominator="all")
    loss, _ = run(replace(call, key_weights=torch.tensor([0.25])), backend, device)
    assert abs(float(loss) - math.log(0.25)) < 1e-5


def test_a_far_key_of_little_weight_is_not_lost(backend: str, device: str) -> None:
    anchors, keys = torch.tensor([[1.0, 0.0]], device=device), torch.tensor([[-1.0, 0.0]], device=device)
    weights = torch.tensor([1e-18], device=device)
    names = torch.tensor([0], device=device)
    parts = secl_ops.info_nce_parts(
        anchors, keys, anchor_labels=names, key_labels=names + 1, key_weights=weights, temperature=0.03, backend=backend
    )
    assert abs(parts.lse.item() - (math.log(1e-18) - 1 / 0.03)) < 1e-4


def test_an_anchor_without_a_positive_counts_none_beside_others_that_have_many(backend: str, device: str) -> None:
    call = replace(separate(8, 256, 8, 2, classes=1, ignored=0.0), key_weights=copies(256, 3))
    call = on(replace(call, anchor_labels=torch.tensor([0, -1, 0, 7, 0, 0, 7, -1])), device)
    parts = secl_ops.info_nce_parts(
        call.anchors, call.keys, anchor_labels=call.anchor_labels, key_labels=call.key_labels,
        key_weights=call.key_weights, temperature=0.1, backend=backend,
    )  # fmt: skip
    weight = float(present(call.key_weights).sum())
    assert parts.count.tolist() == pytest.approx([weight * (label == 0) for label in call.anchor_labels.tolist()])


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_the_same_call_twice_gives_the_same_bits(denominator: str, backend: str, device: str) -> None:
    for call in (weighted(denominator), replace(alone(40, 8), key_weights=copies(40, 1))):
        first, second = (run(call, backend, device) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert all(map(torch.equal, first[1], second[1]))


def pieces(value: Tensor) -> list[Tensor]:
    return [value[begin:end] for begin, end in itertools.pairwise(CUTS)]


@pytest.mark.thinned(2, backend="triton")
@pytest.mark.parametrize("temperature", [0.1, 0.004])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_keys_in_pieces(denominator: str, temperature: float, backend: str, device: str) -> None:
    call = on(weighted(denominator, temperature=temperature, exclude=labels(31, 45, 5, ignored=0.3)), device)
    anchors, keys = (value.clone().requires_grad_() for value in (call.anchors, call.keys))
    cut = {name: pieces(getattr(call, name)) for name in ("key_labels", "key_groups", "key_weights")}
    loss = secl_ops.info_nce(**{**call.arguments(), **cut, "anchors": anchors, "keys": pieces(keys)}, backend=backend)
    compare(call, loss, [*torch.autograd.grad(loss, [anchors, keys])])


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_places_merge_to_the_joined_loss(denominator: str, backend: str, device: str) -> None:
    call = on(weighted(denominator, reduction="none"), device)
    anchors, keys = (value.clone().requires_grad_() for value in (call.anchors, call.keys))
    common: dict[str, Any] = {
        "anchor_labels": call.anchor_labels, "anchor_groups": call.anchor_groups, "denominator": denominator,
        "backend": backend,
    }  # fmt: skip
    given = {"key_labels": call.key_labels, "key_groups": call.key_groups, "key_weights": call.key_weights}
    places: list[dict[str, Any]] = [
        {"keys": part, **{name: present(value)[begin:end] for name, value in given.items()}}
        for part, (begin, end) in zip(pieces(keys), itertools.pairwise(CUTS), strict=True)
    ]
    lse = torch.stack([secl_ops.info_nce_parts(anchors, **place, **common).lse for place in places]).logsumexp(0)
    parts = [secl_ops.info_nce_parts(anchors, **place, **common, lse=lse) for place in places]
    count = torch.stack([part.count for part in parts]).sum(0)
    assert count.is_floating_point()
    loss = sum(part.loss * part.count for part in parts) / torch.where(count > 0, count, 1)
    compare(call, loss, [*torch.autograd.grad(loss.sum(), [anchors, keys])])


def compare(call: Call, loss: Tensor, gradients: list[Tensor]) -> None:
    truth, true_gradients = dense(call.to(torch.float64), ("anchors", "keys"))
    rough, rough_gradients = dense(call, ("anchors", "keys"))
    assert_within_budget("loss", loss.detach().cpu(), truth, rough, amplification=4 / call.degree,
                         magnitude=1 / call.degree)  # fmt: skip
    for name, found, *values in zip(("anchors", "keys"), gradients, true_gradients, rough_gradients, strict=True):
        assert_within_budget(name, found.cpu(), *values, amplification=4 / call.degree)


def test_weights_of_any_floating_dtype_and_layout(backend: str, device: str) -> None:
    call = on(weighted(), device)
    expected = secl_ops.info_nce(**call.arguments(), backend=backend)
    for dtype in (torch.bfloat16, torch.float64):
        weights = present(call.key_weights).to(dtype).repeat_interleave(2)[::2]
        found = secl_ops.info_nce(**{**call.arguments(), "key_weights": weights}, backend=backend)
        assert torch.equal(found, expected)


def test_weights_may_change_before_the_backward_pass(backend: str, device: str) -> None:
    call = on(weighted(), device)
    expected = run(call, backend, device)[1]
    weights = present(call.key_weights).clone()
    moved, leaves = replace(call, key_weights=weights).leaves()
    loss = secl_ops.info_nce(**moved.arguments(), backend=backend)
    weights.fill_(torch.nan)
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert torch.equal(found.cpu(), wanted)


def test_an_infinite_weight_and_a_nan_travel_into_the_loss(backend: str, device: str) -> None:
    call = weighted(anchor_groups=None, key_groups=None, reduction="none")
    first = int((call.key_labels >= 0).nonzero()[0])
    for value in (torch.inf, torch.nan):
        weights = present(call.key_weights).clone()
        weights[first] = value
        loss, _ = run(replace(call, key_weights=weights), backend, device)
        others = (call.anchor_labels >= 0) & (call.anchor_labels != call.key_labels[first])
        positives = (call.anchor_labels[:, None] == call.key_labels) & (present(call.key_weights) > 0)
        counted = others & positives.any(dim=1)
        assert counted.any()
        assert not loss[counted].isfinite().any()


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_compiles_to_one_graph_for_any_size(denominator: str) -> None:
    def loss(anchors: Tensor, anchor_labels: Tensor, keys: Tensor | None, key_labels: Tensor | None,
             key_weights: Tensor) -> Tensor:  # fmt: skip
        return secl_ops.info_nce(
            anchors, keys, anchor_labels=anchor_labels, key_labels=key_labels, key_weights=key_weights,
            denominator=denominator,
        )  # fmt: skip

    for kind in ([separate(n, n + 5, 8) for n in (12, 23)], [alone(n, 8) for n in (12, 23)]):
        torch._dynamo.reset()
        graph = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        for call in kind:
            weights, outputs = copies(len(call.columns().rows), 2), []
            for each in (loss, graph):
                moved, leaves = call.leaves()
                value = each(moved.anchors, moved.anchor_labels, moved.keys, moved.key_labels, weights)
                outputs.append([value.detach(), *torch.autograd.grad(value, leaves)])
            assert all(map(torch.equal, *outputs))


def test_without_a_graph_weights_that_learn_are_numbers() -> None:
    call = weighted()
    expected = secl_ops.info_nce(**call.arguments())
    weights = present(call.key_weights).clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(secl_ops.info_nce(**{**call.arguments(), "key_weights": weights}), expected)


def test_second_derivative_is_refused(backend: str, device: str) -> None:
    moved, leaves = on(weighted(), device).leaves(("anchors",))
    loss = secl_ops.info_nce(**moved.arguments(), backend=backend)
    (gradient,) = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


def test_weights_go_with_their_rows_into_another_order() -> None:
    names = torch.tensor([1, 0, 1, -1]).int()
    pairs = Pairs(names[:2], names, None, None, None, 0, 4, torch.tensor([0.5, 2.0, 3.0, 1.0]))
    ordered = ordering.by_class(pairs, Flag(0)).pairs(pairs)
    assert ordered.key_labels.tolist() == [-1, 0, 1, 1]
    assert present(ordered.key_weights).tolist() == [1.0, 2.0, 0.5, 3.0]


@pytest.mark.parametrize("denominator", [Flag(0), Flag.NEGATIVES])
def test_a_scan_counts_no_positive(denominator: Flag, backend: str, device: str) -> None:
    call = on(weighted(), device)
    pairs = (call.anchor_labels.int(), call.key_labels.int(), None, None, None, 0, 45, present(call.key_weights) + 1)
    flags = int(denominator | Flag.SCAN | Flag.ANCHOR_GRADIENT)
    loss, _, pull, count, *_ = ops.contrast(call.anchors, call.keys, *pairs, None, None, 1.0, flags, backend)
    assert count.dtype == torch.float32
    assert not any(each.any() for each in (loss, pull, count))
