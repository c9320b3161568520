# SPDX-License-Identifier: Apache-2.0
"""Few rows on a CPU: two operations a step, right at every size, and no slower than a bare loss of torch by much."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import secl_ops
from secl_ops import small, small_native
from secl_ops.engines import native
from tests.budget import assert_within_budget
from tests.cases import alone, labels, rows, separate
from tests.oracle import Call, dense
from tests.test_backends import check

pytestmark = pytest.mark.usefixtures("built")
FEATURES, LABELS = rows(2 * 16, 64, 0).view(2, 16, 8, 8), labels(2 * 20 * 20, 3, 0, 0.1).view(2, 20, 20)
MAP: dict[str, Any] = {"per_class": 4, "num_classes": 3, "seed": 1}


def info_nce(call: Call, **options: Any) -> Tensor:
    return secl_ops.info_nce(**call.arguments(), **options)


def is_small(loss: Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "SmallContrastBackward"


def learning(call: Call) -> Call:
    return call.leaves()[0]


def native_operations(step: Callable[[], object]) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        step()
    return [event.name for event in found.events() if event.name.startswith(("secl::", "secl_native::"))]


def test_a_pixel_step_is_two_operations() -> None:
    features = FEATURES.clone().requires_grad_()
    teacher = torch.randn(2, 16, 5, 5)
    for keys in ((), (teacher,)):

        def step(keys: Sequence[Tensor] = keys) -> None:
            secl_ops.pixel_contrast(features, LABELS, *keys, **MAP).backward()

        step()
        assert native_operations(step) == ["secl_native::pixel_contrast", "secl_native::small_backward"]


def test_a_step_with_a_head_is_five_operations() -> None:
    features, head = FEATURES.clone().requires_grad_(), torch.nn.Linear(16, 12)

    def step() -> None:
        secl_ops.pixel_contrast(features, LABELS, **MAP, head=head).backward()

    step()
    assert [name for name in native_operations(step) if name.startswith("secl_native::")] == [
        f"secl_native::{name}" for name in ("sample", "gather", "info_nce", "small_backward", "gather_backward")
    ]


def test_the_loss_of_rows_is_two_operations() -> None:
    call = learning(alone(20, 16))

    def step() -> None:
        info_nce(call).backward()

    step()
    assert native_operations(step) == ["secl_native::info_nce", "secl_native::small_backward"]
    with torch.no_grad():
        assert native_operations(lambda: info_nce(call)) == ["secl_native::info_nce"]


# About the vectors, tiles and columns of every instruction set, and from where on each similarity is found once.
SIZES = [(1, 1, 1), (2, 11, 3), (15, 12, 16), (16, 13, 17), (17, 31, 33), (33, 97, 20), (97, 5, 130), (64, 200, 48)]
ALONE = [(2, 3), (16, 16), (33, 40), (95, 48), (96, 64), (97, 50), (140, 130)]


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("temperature", [0.2, 0.02])
@pytest.mark.parametrize("size", [*SIZES, *ALONE], ids=str)
def test_every_size_keeps_the_budget(size: tuple[int, ...], temperature: float, denominator: str, isa: str) -> None:
    call = separate(*size) if len(size) == 3 else alone(*size)
    call = replace(call, temperature=temperature, denominator=denominator)
    assert is_small(info_nce(learning(call)))
    check(call, "native", "cpu")


def test_keys_where_they_lie_and_copied_ones_are_the_same_rows(isa: str) -> None:
    call = separate(40, 60, 32, ignored=0.0)
    ragged = replace(call, key_labels=torch.cat([call.key_labels, torch.tensor([-1])]),
                     keys=torch.cat([call.keys, torch.full((1, 32), torch.nan)]))  # fmt: skip
    found = []
    for each in (call, ragged):
        moved, leaves = each.leaves()
        found.append([part[:60] for part in torch.autograd.grad(info_nce(moved), leaves)])
    for name, here, there in zip(("anchors", "keys"), *found, strict=True):
        assert_within_budget(name, here, there.double(), there, amplification=40)


@pytest.mark.parametrize("factor", [1e-37, 1e-12, 1e12, 4e37])
def test_keys_of_extreme_norm_are_rows(factor: float, isa: str) -> None:
    call = separate(20, 40, 32, ignored=0.0)
    far = replace(call, keys=call.keys * factor)
    assert_within_budget("loss", info_nce(far), info_nce(call).double(), info_nce(call), amplification=40, magnitude=10)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("call", [separate(300, 260, 160), alone(400, 128)], ids=["separate", "alone"])
def test_any_number_of_threads_gives_the_same_bits(
    call: Call, denominator: str, threads: Callable[[int], None]
) -> None:
    results = []
    for count in (1, 2, 3):
        threads(count)
        moved, leaves = replace(call, denominator=denominator).leaves()
        loss = info_nce(moved)
        assert is_small(loss)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_of_another_group_leaves_nothing_of_a_nan(value: float) -> None:
    groups = torch.arange(40) % 2
    call = replace(alone(40, 16, ignored=0.0), anchor_groups=groups)
    spoiled = call.anchors.clone()
    spoiled[1] = value
    gradients = []
    for each in (call.anchors, spoiled):
        given = replace(call, anchors=each, reduction="sum").arguments() | {"weights": (groups == 0).float()}
        leaf = given["anchors"] = each.clone().requires_grad_()
        gradients.append(torch.autograd.grad(secl_ops.info_nce(**given), leaf)[0])
    assert torch.equal(gradients[0][groups == 0], gradients[1][groups == 0])


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_the_weight_of_an_anchor_that_does_not_count_leaves_nothing(value: float) -> None:
    call = alone(40, 16, ignored=0.0)
    classes = torch.where(torch.arange(40) == 3, 77, call.anchor_labels)
    gradients = []
    for weight in (0.0, value):
        weights = torch.where(torch.arange(40) == 3, weight, 1.0)
        moved, leaves = replace(call, anchor_labels=classes).leaves()
        loss = info_nce(replace(moved, weights=weights))
        assert is_small(loss)
        gradients.append(torch.autograd.grad(loss, leaves)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [1e-42, 1e-30, 1e30])
def test_weights_of_any_size_are_weights(weight: float, reduction: str) -> None:
    call, found = replace(alone(40, 16), reduction=reduction), []
    for each in (1.0, weight):
        moved, leaves = call.leaves()
        loss = info_nce(replace(moved, weights=torch.full((40,), each)))
        assert is_small(loss)
        share = float(torch.tensor(each)) if reduction == "sum" else 1.0
        found.append(torch.autograd.grad(loss, leaves)[0].double() / share)
    if not (reduction == "sum" and weight < 1e-38):  # there the gradient itself is no normal number
        assert_within_budget("gradient", found[1], found[0], found[0].float(), amplification=40)


def test_a_batch_of_upstream_numbers_finds_the_gradient_of_each() -> None:
    moved, (anchors, _) = separate(12, 9, 8).leaves()
    loss, upstream = info_nce(moved), torch.tensor([1.0, -2.0, 0.0])
    (found,) = torch.autograd.grad(loss, anchors, upstream, is_grads_batched=True, retain_graph=True)
    for one, number in zip(found, upstream, strict=True):
        assert torch.equal(one, torch.autograd.grad(loss, anchors, number, retain_graph=True)[0])
    features = FEATURES.clone().requires_grad_()
    loss = secl_ops.pixel_contrast(features, LABELS, **MAP)
    (found,) = torch.autograd.grad(loss, features, upstream, is_grads_batched=True, retain_graph=True)
    for one, number in zip(found, upstream, strict=True):
        assert torch.equal(one, torch.autograd.grad(loss, features, number, retain_graph=True)[0])


def test_few_anchors_are_padded_and_count_so() -> None:
    narrow = torch.randn(100_000, 1)
    classes = torch.arange(100_000) % 2
    loss = secl_ops.info_nce(narrow[:1].clone().requires_grad_(), narrow, anchor_labels=classes[:1], key_labels=classes)
    assert not is_small(loss)


def test_a_zero_stays_a_zero_under_any_upstream() -> None:
    call = replace(separate(12, 9, 8), anchor_labels=torch.arange(12) % 2 * 50)  # every second anchor has no positive
    moved, (anchors, _) = call.leaves()
    for upstream in (torch.inf, torch.nan):
        (gradient,) = torch.autograd.grad(info_nce(moved), anchors, torch.tensor(upstream))
        assert torch.equal(gradient[1::2], torch.zeros(6, 8))
        assert not gradient[call.anchor_labels == 0].isfinite().all()


def test_a_scaled_loss_saves_small_gradients_of_half_rows() -> None:
    call = replace(separate(40, 50, 16).to(torch.float16), temperature=1.0)
    moved, leaves = call.leaves()
    factor = 2.0**-14
    tiny, scaled = (torch.autograd.grad(info_nce(moved) * each, leaves)[0] for each in (factor, factor * 2.0**16))
    assert (tiny == 0).sum() > (scaled == 0).sum()
    true = dense(call.to(torch.float64), ("anchors",))[1][0]
    assert_within_budget("gradient", scaled.double() / (factor * 2.0**16), true, true.half(), amplification=4)


def test_a_second_backward_pass_finds_the_same() -> None:
    moved, leaves = alone(30, 16).leaves()
    loss = info_nce(moved)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)[0]
    kept = first.clone()
    first.mul_(2)  # the gradient is the caller's own
    assert torch.equal(torch.autograd.grad(2 * loss, leaves)[0], 2 * kept)


def test_rows_may_change_before_the_backward_pass() -> None:
    moved, leaves = separate(20, 30, 16).leaves()
    loss = info_nce(moved)
    before = torch.autograd.grad(loss, leaves, retain_graph=True)
    with torch.no_grad():
        for leaf in leaves:
            leaf.zero_()
    assert all(map(torch.equal, before, torch.autograd.grad(loss, leaves)))


class Watching(TorchDispatchMode):
    """A mode that changes nothing, as a count of operations is one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


LONG_WAY: dict[str, Callable[[Call], Call]] = {
    "a learned temperature": lambda call: replace(call, temperature=torch.tensor(0.1)),
    "no reduction": lambda call: replace(call, reduction="none"),
    "weights that learn": lambda call: replace(call, weights=torch.ones(20, requires_grad=True)),
    "prototypes": lambda call: replace(call, positives=rows(3, 16, 9), positive_labels=torch.arange(3)),
    "float64": lambda call: call.to(torch.float64),
    "int8 labels": lambda call: replace(call, anchor_labels=call.anchor_labels.to(torch.int8)),
    "no keys to speak of": lambda call: replace(call, keys=call.anchors[:0], key_labels=call.anchor_labels[:0]),
}


@pytest.mark.parametrize("name", LONG_WAY)
def test_what_goes_the_long_way(name: str) -> None:
    call = LONG_WAY[name](separate(20, 30, 16))
    loss = info_nce(learning(call))
    assert loss.requires_grad
    assert not is_small(loss)


def test_other_calls_that_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    call = learning(separate(20, 30, 16))
    assert is_small(info_nce(call))
    assert not is_small(info_nce(call, validate=True))
    assert not is_small(info_nce(call, backend="reference"))
    pieces = {"keys": [call.keys, call.keys], "key_labels": [call.key_labels, call.key_labels]}
    assert not is_small(secl_ops.info_nce(**{**call.arguments(), **pieces}))
    with Watching():  # type: ignore[no-untyped-call]  # torch types it not
        assert not is_small(info_nce(call))
    monkeypatch.setattr(native, "objections", lambda *_: ["not today"])
    assert not is_small(info_nce(call, backend="auto"))


def test_many_rows_go_the_long_way() -> None:
    width = 64
    most = small_native.MOST * 2 * width  # rows against as many
    assert is_small(info_nce(learning(separate(most, most, width))))
    assert not is_small(info_nce(learning(separate(most + 1, most, width))))
    assert not is_small(info_nce(learning(separate(64, small_native.NEVER_FEW // 64 + 1, width))))  # by far
    features = torch.randn(1, width, 40, 40, requires_grad=True)
    classes = torch.zeros(1, 40, 40, dtype=torch.int64)
    for count, few in ((most, True), (most + 1, False)):
        loss = secl_ops.pixel_contrast(features, classes, per_class=count, num_classes=1, seed=0)
        assert is_small(loss) is few


OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "stratified": {"strategy": "stratified"},
    "hard": {"strategy": "hard", "scores": rows(2 * 20, 20, 5).view(2, 20, 20)},
    "hard in fp64": {"strategy": "hard", "scores": rows(2 * 20, 20, 5).view(2, 20, 20).double()},
    "eligible": {"eligible": labels(2 * 20 * 20, 2, 6).view(2, 20, 20) == 1},
    "int32 labels": {"labels": LABELS.int()},
    "uint8 labels": {"labels": LABELS.clamp(min=0).byte(), "ignore_index": 0},
    "strided labels": {"labels": LABELS.mT},
    "a teacher": {"key_features": rows(2 * 16, 30, 7).view(2, 16, 5, 6)},
    "a teacher with labels": {
        "key_features": rows(2 * 16, 30, 7).view(2, 16, 5, 6), "key_labels": LABELS[:, :9, :7],
        "key_eligible": LABELS[:, :9, :7] != 1, "key_seed": torch.tensor([7]),
    },
    "channels last": {"features": FEATURES.contiguous(memory_format=torch.channels_last)},
    "bf16": {"features": FEATURES.bfloat16()},
    "more than there are": {"labels": torch.where(LABELS == 2, -1, LABELS)},
    "a negative seed": {"seed": -(2**63)},
    "not normalised, sum": {"normalize": False, "reduction": "sum", "temperature": 30.0},
    "no class": {"labels": torch.full_like(LABELS, -1)},
}  # fmt: skip


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", OPTIONS)
def test_both_ways_draw_the_same_pixels(name: str, denominator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Tensor]] = []
    for few in (True, False):
        if not few:
            monkeypatch.setattr(small, "serves", lambda *_: False)
        given = {"features": FEATURES, "labels": LABELS, **MAP, "denominator": denominator, **OPTIONS[name]}
        leaves = [given[each].clone().requires_grad_() for each in ("features", "key_features") if each in given]
        given |= dict(zip(("features", "key_features"), leaves, strict=False))
        loss = secl_ops.pixel_contrast(**given)
        assert is_small(loss) is few
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    step = 2**16 if name == "bf16" else 1  # the long way rounds unit rows to the dtype of the map
    for number, (here, there) in enumerate(zip(*found, strict=True)):
        assert here.stride() == there.stride()
        assert here.dtype == there.dtype
        if number:
            assert torch.equal(here == 0, there == 0)
        assert_within_budget(str(number), here, there.double(), there, amplification=40 * step, magnitude=10)


def microseconds(steps: dict[str, Callable[[], object]], most: dict[str, float]) -> dict[str, float]:
    """The fastest of short runs of each, in turn, until none takes more than so many times the bare one.

    What another program takes of the machine is in some of the runs, and in few of many.
    """
    best = dict.fromkeys(steps, float("inf"))
    for number in range(400):
        if number > 40 and all(best[name] <= factor * best["bare"] for name, factor in most.items()):
            break
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(20):
                step()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / 20)
    return best


def tiny_steps(backend: str) -> dict[str, Callable[[], object]]:
    """A bare loss of torch with its gradient, a pixel step and `info_nce`, all of a few numbers."""
    bare_rows, classes = torch.randn(16, 16, requires_grad=True), torch.arange(16) % 4
    features, label_map = torch.randn(1, 16, 4, 4, requires_grad=True), classes.view(1, 4, 4)
    few, few_labels = torch.randn(8, 16, requires_grad=True), torch.arange(8) % 4

    def bare() -> None:
        bare_rows.grad = None
        torch.nn.functional.cross_entropy(bare_rows @ bare_rows.T, classes).backward()

    def pixels() -> None:
        features.grad = None
        secl_ops.pixel_contrast(features, label_map, per_class=4, num_classes=4, seed=0, backend=backend).backward()

    def of_rows() -> None:
        few.grad = None
        secl_ops.info_nce(few, anchor_labels=few_labels, backend=backend).backward()

    return {"bare": bare, "pixels": pixels, "rows": of_rows}


def test_a_small_step_costs_little_more_than_a_bare_loss(threads: Callable[[int], None]) -> None:
    threads(1)
    most = {"pixels": 2.5, "rows": 2.0}
    found = microseconds(tiny_steps("auto"), most)
    assert all(found[name] <= factor * found["bare"] for name, factor in most.items()), found
