# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel under every switch, once and right: what a GPU runs first, split over processes that compile.

The launches leave in Triton's cache what the other tests look for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import secl_ops
from benchmarks.kernel_table import KERNELS, Kernel
from secl_ops import ops, small, tiles
from secl_ops.engines import triton
from secl_ops.engines.triton import grids
from secl_ops.engines.triton.grids import Card
from secl_ops.spec import Flag
from tests.budget import assert_within_budget
from tests.cases import CASES, KEY_WEIGHTED, alone, labels, separate
from tests.conftest import skip_or_fail
from tests.oracle import Call, dense
from tests.sigmoid_oracle import case, dense_sigmoid, sigmoid
from tests.test_backends import check, on
from tests.test_few_launches import forget
from tests.test_sigmoid import check as check_sigmoid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DENOMINATORS = ("negatives", "all")
OPTIONS = (
    "ragged", "self", "wide", "grouped", "excluding", "grouped prototypes", "self prototypes", "cold", "not normalised",
)  # fmt: skip
PER_CLASS, CLASSES = 4, 3
Step = Callable[[], None]
pytestmark = pytest.mark.usefixtures("poisoned", "runs")


@pytest.fixture
def runs() -> None:
    """Skip where no Triton kernel can run."""
    if reasons := triton.objections(DEVICE, FP32, "info_nce"):
        skip_or_fail("triton", "; ".join(reasons))


def contrast(name: str, denominator: str, dtype: torch.dtype) -> Step:
    """A shared case, both sides of which learn."""
    case = (CASES | KEY_WEIGHTED)[name]
    return lambda: check(replace(case(), denominator=denominator).to(dtype), "triton", DEVICE)


def sigmoid_loss(name: str, dtype: torch.dtype, **options: Any) -> Step:
    """The sigmoid loss of a shared case, all of which learns."""
    return lambda: check_sigmoid(case(name, **options).to(dtype), "triton", DEVICE)


def sigmoid_alone() -> None:
    """The sigmoid loss where nothing learns."""
    call = sigmoid(CASES["ragged"](), bias=-1.5)
    loss = secl_ops.sigmoid_contrast(**on(call, DEVICE).arguments(), backend="triton").cpu()
    truth, rough = (dense_sigmoid(each) for each in (call.to(torch.float64), call))
    assert_within_budget("loss", loss, truth, rough, amplification=40.0)


def in_parts(call: Call, denominator: str) -> Step:
    """Few rows against enough of them to be cut into parts, on any card."""

    def step() -> None:
        with patch.object(grids, "INTERPRETED", Card(90, 132)):
            forget()
            check(replace(call, denominator=denominator), "triton", DEVICE)
        forget()

    return step


def one_side(side: str, denominator: str) -> Step:
    """Keys or anchors that do not learn; nobody does where no side is named."""

    def step() -> None:
        call = replace(separate(33, 70, 64), denominator=denominator).to(BF16)
        moved = on(call, DEVICE)
        leaves = {side: getattr(moved, side).clone().requires_grad_()} if side else {}
        loss = secl_ops.info_nce(**{**moved.arguments(), **leaves}, backend="triton")
        (truth, true), (rough, usual) = (dense(each, list(leaves)) for each in (call.to(torch.float64), call))
        found = torch.autograd.grad(loss, list(leaves.values())) if side else ()
        assert_within_budget("loss", loss.detach().cpu(), truth, rough, amplification=40.0, magnitude=10.0)
        for gradient, *others in zip(found, true, usual, strict=True):
            assert_within_budget(side, gradient.cpu(), *others, amplification=40.0)

    return step


def sorted_first(denominator: str) -> Step:
    """Rows that are few, but sorted as many are."""

    def step() -> None:
        with patch.object(tiles, "counts", lambda *_: False):
            contrast("ragged", denominator, BF16)()

    return step


def pieces(denominator: str) -> Step:
    """Frozen keys in two pieces, each of them more than a tile."""

    def step() -> None:
        call = replace(separate(70, 300, 64), denominator=denominator)
        found = []
        for place, backend, kind in ((DEVICE, "triton", FP32), ("cpu", "reference", torch.float64)):
            anchors = call.anchors.to(place, kind).requires_grad_()
            keys, key_labels = (value.to(place).split(150) for value in (call.keys.to(kind), call.key_labels))
            loss = secl_ops.info_nce(
                anchors, keys, anchor_labels=call.anchor_labels.to(place), key_labels=key_labels,
                denominator=denominator, backend=backend,
            )  # fmt: skip
            found.append([loss.detach().cpu(), torch.autograd.grad(loss, anchors)[0].cpu()])
        for name, actual, truth in zip(("loss", "gradient"), *found, strict=True):
            assert_within_budget(name, actual, truth, truth.float(), amplification=40.0, magnitude=10.0)

    return step


def known(denominator: str) -> Step:
    """Sums against a log-sum-exp that is there already, as shards of keys have it."""

    def step() -> None:
        call = separate(19, 27, 64)
        found = []
        for place, backend, kind in ((DEVICE, "triton", FP32), ("cpu", "reference", torch.float64)):
            rows = [value.to(place, kind) for value in (call.anchors, call.keys) if value is not None]
            labels = [value.int().to(place) for value in (call.anchor_labels, call.key_labels) if value is not None]
            flags = Flag.NEGATIVES if denominator == "negatives" else Flag(0)
            lse = torch.full((19,), 2.0, dtype=kind, device=place)
            state = ops.contrast(*rows, *labels, *[None] * 3, 0, 27, *[None] * 2, lse, 0.5, int(flags), backend)
            found.append(state[0].cpu())
        assert_within_budget("loss", found[0], found[1], found[1].float(), amplification=20)

    return step


def backward(denominator: str) -> Step:
    """Gradients of both sides where none was found with the loss."""

    def step() -> None:
        call = separate(19, 27, 64, ignored=0.0)
        found = []
        for place, backend, kind in ((DEVICE, "triton", FP32), ("cpu", "reference", torch.float64)):
            rows = [value.to(place, kind) for value in (call.anchors, call.keys) if value is not None]
            labels = [value.int().to(place) for value in (call.anchor_labels, call.key_labels) if value is not None]
            factors = [torch.full((19,), value, dtype=kind, device=place) for value in (0.5, 0.7, 0.2, 1.0)]
            flags = Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT
            flags |= Flag.NEGATIVES if denominator == "negatives" else Flag(0)
            options = (None, None, None, 0, 27, None, factors[3], 0.5, int(flags), backend)
            found.append([each.cpu() for each in ops.contrast_backward(*factors[:3], *rows, *labels, *options)])
        for name, actual, truth in zip(("anchors", "keys"), *found, strict=True):
            assert_within_budget(name, actual, truth, truth.float(), amplification=20)

    return step


def reduction(name: str) -> Step:
    """Weighted losses."""
    return lambda: check(replace(CASES["weighted"](), reduction=name), "triton", DEVICE)


def maps() -> tuple[Tensor, Tensor]:
    """Features [2, 16, 6, 7] and labels [2, 6, 7], some of them -1."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 6, 7, generator=generator), torch.randint(-1, CLASSES, (2, 6, 7), generator=generator)


def gather(dtype: torch.dtype, *, normalize: bool, unique: bool) -> Step:
    """Rows of a map, and the gradient of the map."""

    def step() -> None:
        index = torch.tensor([0, 69, -1, 17, 34, 35] if unique else [0, 69, -1, 17, 17, 34])
        found = []
        for place, backend, kind in ((DEVICE, "triton", dtype), ("cpu", "reference", torch.float64)):
            leaf = maps()[0].to(dtype).to(place, kind).requires_grad_()
            rows = secl_ops.gather_pixels(leaf, index.to(place), normalize=normalize, unique=unique, backend=backend)
            weight = (torch.arange(rows.numel(), device=place) % 5).reshape(rows.shape).to(kind)
            found.append([rows.detach().cpu(), *(each.cpu() for each in torch.autograd.grad(rows, leaf, weight))])
        for name, actual, truth in zip(("rows", "gradient"), *found, strict=True):
            assert_within_budget(
                name, actual, truth, truth.to(dtype), amplification=4, magnitude=8 * float(truth.abs().max())
            )

    return step


def sample(strategy: str, labels_dtype: torch.dtype = torch.int64, repeats: int = 1) -> Step:
    """A draw: each class's pixels once, as many as it has; the same again."""

    def step() -> None:
        signed = maps()[1] if labels_dtype.is_signed else maps()[1].abs()
        signed = signed.repeat(1, *[repeats] * (signed.dim() - 1))
        labels = signed.to(DEVICE, labels_dtype)
        scores = torch.rand(labels.shape, device=DEVICE) if strategy == "hard" else None
        given: dict[str, Any] = {"num_classes": CLASSES, "seed": 3, "strategy": strategy, "scores": scores}
        first, second = (secl_ops.sample_pixels(labels, PER_CLASS, backend="triton", **given) for _ in range(2))
        taken = first.index >= 0
        assert torch.equal(first.index, second.index)
        assert len(first.index[taken].unique()) == taken.sum() == CLASSES * len(labels) * PER_CLASS
        assert torch.equal(labels.flatten()[first.index[taken]].int(), first.label[taken])

    return step


def pixels(strategy: str, denominator: str) -> Step:
    """The whole pixel step: right about the pixels that it draws."""

    def step() -> None:
        features, labels = (value.to(DEVICE) for value in maps())
        scores = torch.rand(labels.shape, device=DEVICE) if strategy == "hard" else None
        given: dict[str, Any] = {"num_classes": CLASSES, "seed": 3, "strategy": strategy, "scores": scores}
        drawn = secl_ops.sample_pixels(labels, PER_CLASS, backend="triton", **given)
        found = []
        for backend, kind in (("triton", FP32), ("reference", torch.float64)):
            leaf = features.detach().to(kind).requires_grad_()
            if backend == "triton":
                loss = secl_ops.pixel_contrast(
                    leaf, labels, per_class=PER_CLASS, denominator=denominator, backend=backend, **given
                )
            else:
                rows = secl_ops.gather_pixels(leaf, drawn.index, unique=True, backend=backend)
                loss = secl_ops.info_nce(rows, anchor_labels=drawn.label, denominator=denominator, backend=backend)
            found.append([loss.detach().cpu(), *(each.cpu() for each in torch.autograd.grad(loss, leaf))])
        for name, actual, truth in zip(("loss", "gradient"), *found, strict=True):
            assert_within_budget(name, actual, truth, truth.float(), amplification=40.0, magnitude=10.0)

    return step


def larger_labels() -> None:
    """Labels, scores and what is eligible at twice the resolution of the features."""
    features, labels = (value.to(DEVICE) for value in maps())
    large, beside = (each.repeat_interleave(2, 1).repeat_interleave(2, 2) for each in (labels, labels.float()))
    given: dict[str, Any] = {"per_class": PER_CLASS, "num_classes": CLASSES, "seed": 3, "strategy": "hard"}
    found = [
        secl_ops.pixel_contrast(features, each, eligible=each >= 0, scores=scores, **given, backend="triton")
        for each, scores in ((labels, labels.float()), (large, beside))
    ]
    assert torch.equal(*found)


MANY: dict[str, Step] = {
    **{f"{name}, {way}, bf16": contrast(name, way, BF16) for way in DENOMINATORS for name in OPTIONS},
    **{
        f"{name}, {way}, {str(dtype)[6:]}": contrast(name, way, dtype)
        for dtype in (FP16, FP32) for way in DENOMINATORS for name in ("ragged", "self")
    },
    **{f"weighted keys, {way}": contrast("weighted keys and weights", way, BF16) for way in DENOMINATORS},
    **{
        f"{side or 'nobody'} learns, {way}": one_side(side, way)
        for way in DENOMINATORS for side in ("anchors", "keys", "")
    },
    **{f"sorted, {way}": sorted_first(way) for way in DENOMINATORS},
    **{f"pieces, {way}": pieces(way) for way in DENOMINATORS},
    **{f"known lse, {way}": known(way) for way in DENOMINATORS},
    **{f"backward, {way}": backward(way) for way in DENOMINATORS},
    **{f"reduction {name}": reduction(name) for name in ("mean", "sum", "none")},
    "sigmoid": sigmoid_loss("excluding", BF16),
    "sigmoid, self": sigmoid_loss("self prototypes", FP16, weights=torch.arange(26) / 26),
    "sigmoid, nobody learns": sigmoid_alone,
    "gather": gather(BF16, normalize=False, unique=False),
    "gather once": gather(FP32, normalize=False, unique=True),
    "gather unit": gather(BF16, normalize=True, unique=False),
    "gather unit once": gather(FP32, normalize=True, unique=True),
    **{f"sample {name}": sample(name) for name in ("uniform", "stratified", "hard")},
    **{f"sample {name}, large": sample(name, repeats=12) for name in ("uniform", "hard")},
    "sample bytes": sample("uniform", torch.uint8),
    "sample int32": sample("uniform", torch.int32),
    **{f"pixels {name}, {way}": pixels(name, way) for way in DENOMINATORS for name in ("stratified", "hard")},
}  # fmt: skip
AS_THEY_ARE = replace(separate(20, 270, 8), exclude=labels(20, 270, 5, 0.3), normalize=False, temperature=3.0)
# What few rows launch, and the same of as few by the kernels for many.
FEW: dict[str, Step] = {
    **{f"{name}, {way}": contrast(name, way, BF16) for way in DENOMINATORS for name in ("self", "excluding")},
    **{f"{name}, fp32": contrast(name, "negatives", FP32) for name in ("self", "grouped", "not normalised")},
    **{f"{side or 'nobody'} learns": one_side(side, "negatives") for side in ("anchors", "keys", "")},
    "ragged, fp16": contrast("ragged", "all", FP16),
    "reduction sum": reduction("sum"),
    **{f"pixels {name}, {way}": pixels(name, way) for name, way in (("uniform", "negatives"), ("hard", "all"))},
    "labels of another size": larger_labels,
    "in parts, self, all": in_parts(alone(270, 8), "all"),
    "in parts, as they are, negatives": in_parts(AS_THEY_ARE, "negatives"),
}


def as_many(step: Step) -> Step:
    """A step by the kernels for many rows, however few they are."""

    def long_way() -> None:
        with patch.object(small, "serves", lambda *_: False):
            step()

    return long_way


VARIANTS = {**{name: as_many(step) for name, step in MANY.items()}, **{f"few {name}": FEW[name] for name in FEW}}


def shares() -> list[Any]:
    """All variants, every third in the tests of each change."""
    rest = pytest.mark.exhaustive
    return [name if place % 3 == 1 else pytest.param(name, marks=rest) for place, name in enumerate(VARIANTS)]


@pytest.mark.parametrize("name", shares())
def test_every_variant_is_right(name: str) -> None:
    VARIANTS[name]()


Launch = tuple[str, Mapping[str, object]]  # a kernel's name, and what it was given by name


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Every launch inside."""
    from secl_ops.engines.triton import rows

    kernels = type(rows.reduce_kernel)
    true, found = kernels.__getitem__, list[Launch]()

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            found.append((kernel.fn.__name__, dict(zip(kernel.arg_names, arguments, strict=False)) | options))
            true(kernel, grid)(*arguments, **options)

        return launch

    with patch.object(kernels, "__getitem__", launcher):
        yield found


def wanted(kernel: Kernel) -> list[tuple[str, object]]:
    """What launches of a kernel of the compile report must show, one by one; blocks and cells are no switches."""
    switches = [(name, value) for name, value in kernel.switches.items() if isinstance(value, bool)]
    pointers = [(name, kind != "constexpr") for name, kind in kernel.overrides.items()]
    denominator = {"scan": "p_hole", "value": "p_hole", "gradient": "NEGATIVES"}.get(kernel.purpose.partition("_")[0])
    return [*switches, *pointers, *((denominator, value) for value in (False, True) if denominator)]


def shows(given: Mapping[str, object], name: str, value: object) -> bool:
    """Whether a launch has this switch so, or this tensor or its absence."""
    return (given.get(name) is not None) == value if name.startswith("p_") else given.get(name) == value


def missing(launches: Sequence[Launch], kernels: Mapping[str, Kernel]) -> list[str]:
    """What no launch shows."""
    found = []
    for name, kernel in kernels.items():
        own = [given for function, given in launches if function == kernel.function]
        found += [] if own else [f"{name}: never launched"]
        found += [f"{name}: never with {key}={value}" for key, value in wanted(kernel)
                  if own and not any(shows(given, key, value) for given in own)]  # fmt: skip
    return found


@pytest.mark.exhaustive
@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU each process runs a share of the variants")
def test_the_variants_reach_every_kernel_and_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "card", lambda _: Card(90, 132))  # which cuts even a few rows into parts
    with recorded() as launches:
        for step in VARIANTS.values():
            step()
    assert missing(launches, KERNELS) == []


def test_what_no_variant_launches_is_seen() -> None:
    launches: list[Launch] = [("reduce_kernel", {"MEAN": True, "p_order": None})]
    rows = {
        "there": Kernel("rows", "reduce_kernel", switches={"MEAN": True, "BLOCK_N": 64}),
        "other": Kernel("rows", "reduce_kernel", switches={"MEAN": False}),
        "absent": Kernel("rows", "unit_rows_kernel"),
        "tensor": Kernel("rows", "reduce_kernel", overrides={"p_order": "*i64"}),
        "none": Kernel("rows", "reduce_kernel", overrides={"p_order": "constexpr"}),
        "contrast": Kernel("rows", "reduce_kernel", "gradient_running"),
    }
    assert missing(launches, rows) == [
        "other: never with MEAN=False", "absent: never launched", "tensor: never with p_order=True",
        "contrast: never with NEGATIVES=False", "contrast: never with NEGATIVES=True",
    ]  # fmt: skip


def test_the_variants_fit_into_their_seconds() -> None:
    assert 60 <= len(VARIANTS) <= 80  # of which two are for the kernels of weighted keys
