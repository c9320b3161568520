# SPDX-License-Identifier: Apache-2.0
"""Few rows on a GPU: six launches a step, planned once for each kind of call, and little time of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import secl_ops
from secl_ops import small_triton, tiles
from secl_ops.engines import triton
from tests.budget import assert_within_budget
from tests.cases import alone, labels, rows, separate
from tests.oracle import Call
from tests.test_small import microseconds, tiny_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEATURES = rows(2 * 16, 64, 0).view(2, 16, 8, 8).to(DEVICE)
LABELS = labels(2 * 20 * 20, 3, 0, 0.1).view(2, 20, 20).to(DEVICE)
MAP: dict[str, Any] = {"per_class": 4, "num_classes": 3, "seed": 1}


@pytest.fixture(autouse=True)
def _runs() -> None:
    from tests.conftest import skip_or_fail

    if reasons := triton.objections(DEVICE, torch.float32, "info_nce"):
        skip_or_fail("triton", "; ".join(reasons))


def forget() -> None:
    """Forget every plan."""
    from secl_ops.engines.triton import launch_few, launch_rows, launch_sample

    small_triton.PLANS.clear()
    for made in (launch_few.contrast, launch_sample.sampler, launch_rows.on_map, launch_rows.on_rows):
        made.cache_clear()


class Started:
    """A compiled kernel that only says that it was started."""

    def __init__(self, name: str, list_: list[str]) -> None:
        self.name, self.list = name, list_

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.list.append(self.name)


class Launches:
    """What was started, and what Triton was asked to compile first."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.compiled: list[str] = []


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """The launcher is mocked away: no kernel runs, all that the host does is done."""
    from secl_ops.engines.triton.few import few_value_kernel

    found = Launches()

    def compiling(kernel: Any, grid: Any) -> Callable[..., Started]:
        def start(*arguments: Any, **options: Any) -> Started:
            found.compiled.append(kernel.fn.__name__)
            found.started.append(kernel.fn.__name__)
            return Started(kernel.fn.__name__, found.started)

        return start

    forget()
    monkeypatch.setattr(type(few_value_kernel), "__getitem__", compiling)
    yield found
    forget()


def pixel_step(features: Tensor, *keys: Tensor, **options: Any) -> None:
    features.grad = None
    secl_ops.pixel_contrast(features, LABELS, *keys, **MAP | {"backend": "triton"} | options).backward()


def leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_()


def torch_launches(step: Callable[[], object]) -> list[str]:
    """Operations of torch that launch something on a GPU."""
    free = ("aten::empty", "aten::new_empty", "aten::detach", "aten::ones_like", "aten::fill_")
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        step()
    names = [event.name for event in found.events() if event.name.startswith("aten::")]
    return [name for name in names if not name.startswith(free)]


GATHER, CONTRAST = ["sample_kernel", "gather_unit_kernel"], ["few_value_kernel", "few_gradient_kernel"]


def test_a_pixel_step_is_six_launches(launches: Launches) -> None:
    features = leaf(FEATURES)
    level = LABELS[:, :8, :8].contiguous()

    def step() -> None:
        secl_ops.pixel_contrast(features, level, **MAP, backend="triton").backward()

    step()
    launches.started.clear()
    assert torch_launches(step)[:1] == ["aten::zero_"]
    assert launches.started == [*GATHER, *CONTRAST, "scatter_kernel"]


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (None, ["nearest_kernel", *GATHER, *CONTRAST, "scatter_kernel"]),
        ("frozen", [*["nearest_kernel", *GATHER] * 2, *CONTRAST, "scatter_kernel"]),
        ("learning", [*["nearest_kernel", *GATHER] * 2, *CONTRAST, CONTRAST[1], *["scatter_kernel"] * 2]),
    ],
)  # fmt: skip
def test_labels_of_another_size_are_one_launch_more(
    teacher: str | None, expected: list[str], launches: Launches
) -> None:
    features, keys = leaf(FEATURES), torch.randn(2, 16, 5, 5, requires_grad=teacher == "learning", device=DEVICE)
    pixel_step(features, *(() if teacher is None else (keys,)))
    assert launches.started == expected


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("keys", [None, "frozen"])
def test_the_loss_of_rows_is_a_few_launches(keys: str | None, normalize: bool, launches: Launches) -> None:
    call = alone(20, 16) if keys is None else separate(20, 30, 16)
    given = replace(call, anchors=leaf(call.anchors), normalize=normalize, temperature=1.0).arguments()
    secl_ops.info_nce(**given, backend="triton").backward()
    sides = 1 if keys is None else 2
    before, after = (["unit_rows_kernel"] * sides, ["unit_rows_backward_kernel"]) if normalize else ([], [])
    assert launches.started == [*before, *CONTRAST, *after]
    launches.started.clear()
    with torch.no_grad():
        secl_ops.info_nce(**given, backend="triton")
    assert launches.started == [*before, "few_value_kernel", "few_reduce_kernel"]


def test_a_kind_of_call_is_planned_and_compiled_once(launches: Launches) -> None:
    features = leaf(FEATURES)
    for seed in (1, torch.tensor([2], device=DEVICE), -7, 2**40):
        pixel_step(features, seed=seed)
        pixel_step(torch.randn_like(features).requires_grad_(), seed=seed)
    assert launches.compiled.count("few_gradient_kernel") == 1
    assert launches.compiled.count("sample_kernel") == 2  # with and without a seed tensor
    assert len(small_triton.PLANS) == 2


def test_memory_that_lies_elsewhere_asks_triton_again(launches: Launches) -> None:
    memory = torch.randn(FEATURES.numel() + 1, device=DEVICE)
    for start, compiled in ((0, 1), (1, 2), (0, 2), (1, 3)):  # at 16 bytes or not; Triton remembers either itself
        pixel_step(leaf(FEATURES) if start == 0 else memory[start:].view(FEATURES.shape).requires_grad_())
        assert launches.compiled.count("gather_unit_kernel") == compiled
    assert launches.started.count("gather_unit_kernel") == 4


def test_plans_do_not_pile_up(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_triton, "MOST_PLANS", 3)
    for per_class in range(1, 8):
        pixel_step(leaf(FEATURES), per_class=per_class)
        assert len(small_triton.PLANS) <= 3


def test_the_host_spends_little_time_on_a_step(launches: Launches, threads: Callable[[int], None]) -> None:
    threads(1)
    most = {"pixels": 2.2, "rows": 2.5}
    found = microseconds(tiny_steps("triton"), most)
    assert all(found[name] <= factor * found["bare"] for name, factor in most.items()), found


def gradients(call: Callable[[], Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    loss = call()
    assert type(loss.grad_fn).__name__ == "SmallContrastBackward"
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a view": lambda x: torch.cat([x, x], dim=3)[..., :8],
    "repeated": lambda x: x[:1].expand(2, -1, -1, -1),
}


@pytest.mark.thinned(4, strategy="stratified")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", ["uniform", "stratified", "hard"])
def test_a_step_is_that_of_many_rows(
    strategy: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = LAYOUTS[layout](FEATURES.to(dtype)).detach().requires_grad_()
    eligible = torch.rand(LABELS.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE) > 0.3
    scores = torch.rand(LABELS.shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    options: dict[str, Any] = {
        "eligible": eligible,
        "strategy": strategy,
        "scores": scores if strategy == "hard" else None,
    }

    def call() -> Tensor:
        return secl_ops.pixel_contrast(features, LABELS, **MAP, **options, backend="triton")

    few = gradients(call, features)
    again = gradients(call, features)
    assert all(map(torch.equal, few, again))
    assert few[1].stride() == torch.empty_like(features).stride()
    monkeypatch.setattr("secl_ops.small.serves", lambda *_: False)
    loss = call()
    many = (loss.detach(), *torch.autograd.grad(loss, features))
    for name, here, there in zip(("loss", "anchors"), few, many, strict=True):
        assert_within_budget(name, here, there.double(), there, amplification=40, magnitude=10)


@pytest.mark.parametrize("seed", [0, -1, 5, 2**31, 2**32 - 1, -(2**63), 2**63 - 1, 2**64 + 7])
def test_a_number_draws_what_a_tensor_of_it_draws(seed: int) -> None:
    features, keys = leaf(FEATURES), torch.randn(2, 16, 8, 8, device=DEVICE)
    tensor = torch.tensor([(seed + 2**63) % 2**64 - 2**63], device=DEVICE)

    def drawn(given: int | Tensor) -> tuple[Tensor, ...]:
        options = MAP | {"seed": given, "backend": "triton"}
        return gradients(lambda: secl_ops.pixel_contrast(features, LABELS, keys, **options), features)

    found = [drawn(seed), drawn(tensor)]
    assert all(map(torch.equal, *found))


BROKEN: dict[str, dict[str, Any]] = {
    "eligible of another shape": {"eligible": torch.ones(2, 8, 8, dtype=torch.bool, device=DEVICE)},
    "eligible of no bool": {"eligible": torch.ones_like(LABELS)},
    "labels of no integers": {"labels": LABELS.float()},
    "labels of another batch": {"labels": LABELS[:1]},
    "labels with an axis more": {"labels": LABELS[None]},
    "scores without hard": {"scores": LABELS.float()},
    "a seed of two": {"seed": torch.zeros(2, dtype=torch.int64, device=DEVICE)},
    "a floating seed": {"seed": torch.zeros(1, device=DEVICE)},
    "a key seed alone": {"key_seed": 1},
    "integer features": {"features": LABELS[:, None]},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_breaks_a_rule_is_refused_as_everywhere(fault: str) -> None:
    right = {"features": FEATURES, "labels": LABELS, **MAP}
    messages = []
    for backend in ("reference", "triton"):
        secl_ops.pixel_contrast(**right, backend=backend)  # a plan for the like of it is there
        with pytest.raises((TypeError, ValueError)) as found:
            secl_ops.pixel_contrast(**right | BROKEN[fault], backend=backend)
        messages.append(str(found.value))
    assert messages[0] == messages[1]


def test_rows_that_break_a_rule_are_refused_as_everywhere() -> None:
    call = separate(12, 20, 16).arguments()
    for wrong in ({"key_labels": None}, {"anchor_groups": torch.zeros(12, dtype=torch.int64, device=DEVICE)},
                  {"weights": torch.ones(11, device=DEVICE)}, {"exclude": torch.zeros(12, device=DEVICE)},
                  {"anchor_labels": torch.zeros(11, dtype=torch.int64, device=DEVICE)}):  # fmt: skip
        messages = []
        for backend in ("reference", "triton"):
            given: dict[str, Any] = {
                name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in call.items()
            }
            secl_ops.info_nce(**given, backend=backend)
            with pytest.raises((TypeError, ValueError)) as found:
                secl_ops.info_nce(**given | wrong, backend=backend)
            messages.append(str(found.value))
        assert messages[0] == messages[1]


def served(call: Call) -> bool:
    moved, _ = replace(call, anchors=call.anchors.to(DEVICE)).leaves()
    return type(secl_ops.info_nce(**moved.arguments(), backend="triton").grad_fn).__name__ == "SmallContrastBackward"


@pytest.mark.skipif(DEVICE == "cuda", reason="the rows of the cases lie on the CPU")
def test_only_few_rows_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "FEW_ROWS", 16)
    assert served(alone(16, 8))
    assert not served(alone(17, 8))
    assert not served(separate(16, 17, 8))


@pytest.mark.parametrize("normalize", [True, False])
def test_many_upstream_numbers_at_once(normalize: bool) -> None:
    features = leaf(FEATURES)
    loss = secl_ops.pixel_contrast(features, LABELS, **MAP, normalize=normalize, temperature=1.0, backend="triton")
    upstream = torch.tensor([1.0, -2.0], device=DEVICE)
    (both,) = torch.autograd.grad(loss, features, upstream, is_grads_batched=True, retain_graph=True)
    for number, found in zip(upstream, both, strict=True):
        (one,) = torch.autograd.grad(loss, features, number, retain_graph=True)
        assert_within_budget("anchors", found, one.double(), one, amplification=40)


def beside_reference(given: dict[str, Any]) -> None:
    """Hold loss and gradient against the reference in fp64."""
    leaf_, wide = (given["anchors"].to(kind).requires_grad_() for kind in (torch.float32, torch.float64))
    found = gradients(lambda: secl_ops.info_nce(**given | {"anchors": leaf_}, backend="triton"), leaf_)
    others = {"keys": given["keys"].double()} if "keys" in given else {}
    exact = secl_ops.info_nce(**given | {"anchors": wide} | others, backend="reference")
    truth = (exact.detach(), *torch.autograd.grad(exact, wide))
    for name, here, there in zip(("loss", "anchors"), found, truth, strict=True):
        assert torch.equal(here.isfinite(), there.isfinite())
        assert_within_budget(name, here.nan_to_num(), there.nan_to_num(), there.nan_to_num().float(), amplification=40)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_width_are_labels(dtype: torch.dtype) -> None:
    call = alone(21, 16, ignored=0.0)
    given = {"anchors": call.anchors.to(DEVICE), "anchor_labels": call.anchor_labels.to(DEVICE, dtype)}
    beside_reference(given)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_infinite_weight_spoils_no_more_than_its_own(reduction: str) -> None:
    call = separate(21, 30, 16, ignored=0.0)
    given = {name: value.to(DEVICE) for name, value in call.arguments().items() if isinstance(value, Tensor)}
    weights = torch.ones(21, device=DEVICE)
    weights[3] = torch.inf
    beside_reference({**given, "weights": weights, "reduction": reduction})
