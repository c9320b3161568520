# SPDX-License-Identifier: Apache-2.0
"""Faults seen in published implementations of these losses, a test for each on every backend that it can concern."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad
from torch.profiler import ProfilerActivity, profile

import secl_ops
from secl_ops.engines import reference
from secl_ops.engines.reference import Origin
from secl_ops.spec import REDUCTIONS, Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import CASES, alone, rows, separate, surrounded
from tests.conftest import REPOSITORY
from tests.oracle import Call, dense_loss

pytestmark = pytest.mark.usefixtures("poisoned")
DENOMINATORS = ["negatives", "all"]


def step(call: Call, backend: str, device: str, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of `factor` times its sum by the anchors, both on the CPU."""
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in call.__dict__.items() if isinstance(value, Tensor)
    }
    leaf = moved.pop("anchors").detach().requires_grad_()
    loss = secl_ops.info_nce(**replace(call, anchors=leaf, **moved).arguments(), backend=backend)
    (gradient,) = grad(factor * loss.sum(), leaf)
    return loss.detach().cpu(), gradient.cpu()


def truth(call: Call, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The same, densely by plain torch."""
    call = call.to(dtype)
    leaf = call.anchors.clone().requires_grad_()
    loss = dense_loss(replace(call, anchors=leaf))
    return loss.detach(), grad(loss.sum(), leaf)[0]


def assert_right(call: Call, found: tuple[Tensor, Tensor], peak: float) -> None:
    """Hold loss and gradient against fp64; `peak` is the largest similarity."""
    for name, *values in zip(("loss", "gradient"), found, truth(call), truth(call, call.anchors.dtype), strict=True):
        assert_within_budget(name, *values, amplification=4 * peak, magnitude=peak if name == "loss" else 0.0)


@pytest.mark.thinned(2, backend="triton")
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (37, 45, 19), (65, 129, 17)])
def test_rows_beyond_a_ragged_tile_are_not_read(
    n: int, m: int, d: int, denominator: str, backend: str, device: str
) -> None:
    """Inf-CL reads past the last row where N is no multiple of the tile."""
    call = replace(separate(n, m, d, ignored=0.0), denominator=denominator)
    call = replace(call, exclude=torch.arange(n) % (m + 1) - 1)
    expected = step(call, backend, device)
    views: dict[str, Any] = {}
    buffers = []
    for name, value in call.__dict__.items():
        if isinstance(value, Tensor):  # a label or an excluded key from outside would count
            value = value if value.is_floating_point() else value.to(torch.int64 if name == "exclude" else torch.int32)
            views[name], buffer = surrounded(value.to(device))
            buffers.append((buffer, buffer.clone()))
    found = step(replace(call, **views), backend, device)
    assert found[0].isfinite()
    assert all(map(torch.equal, found, expected))
    assert all(torch.equal(now.nan_to_num(7.0), before.nan_to_num(7.0)) for now, before in buffers)


def test_no_lock_and_no_atomic_orders_the_sums(backend: str, device: str, threads: Callable[[int], None]) -> None:
    """CCE adds up under spin locks: who comes first decides the last bits, and a lost lock hangs."""
    sources = {"native": ("csrc", "*.[ch]*"), "triton": ("secl_ops/engines/triton", "*.py")}
    if backend in sources:
        folder, pattern = sources[backend]
        text = "\n".join(path.read_text() for path in Path(REPOSITORY / folder).rglob(pattern))
        assert "for" in text
        counted = "void add_count(int32_t* count, int32_t value) { atomicAdd(count, value); }"  # whole numbers
        lock = r"tl\.atomic|atomic_(add|cas|xchg)|atomic(Add|CAS|Exch)|fetch_add|atomic<(float|double)|spin"
        assert not re.search(lock, text.replace(counted, ""))
    call, results = replace(separate(150, 130, 16), reduction="sum"), []
    for count in (1, 2, 3):
        threads(count)
        results.append(step(call, backend, device))
    if backend != "reference":  # a matrix product of torch may depend on the number of threads
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.thinned(2, backend="triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_many_small_terms_do_not_stall_in_low_precision(
    denominator: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    """CCE accumulates in bf16, where adding 1 to 256 changes nothing."""
    near, far = torch.eye(2, 8)
    keys, labels = torch.cat([near[None], far.expand(1500, 8)]), (torch.arange(1501) > 0).long()
    call = Call(near[None], torch.zeros(1).long(), keys, labels, denominator=denominator, temperature=1.0).to(dtype)
    loss, gradient = step(call, backend, device)
    true_loss, true_gradient = truth(call)
    assert_within_budget("loss", loss, true_loss, true_loss.float(), amplification=4)
    assert_within_budget("gradient", gradient, true_gradient, true_gradient.to(dtype))


@pytest.mark.thinned(2, backend="triton")
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("name", ["ragged", "self", "prototypes"])
def test_the_gradient_is_that_of_the_loss(name: str, denominator: str, backend: str, device: str) -> None:
    """memory-efficient forks rescale gradients by default."""
    call = replace(CASES[name](), denominator=denominator)
    once = step(call, backend, device)
    assert_right(call, once, 1 / call.degree)
    assert torch.equal(step(call, backend, device, factor=1024.0)[1], 1024 * once[1])


def allocated(call: Call, backend: str, device: str) -> list[int]:
    """Bytes of every tensor that one step allocates, inside the operations too."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, profile_memory=True) as found:
        step(call, backend, device)
    name = "self_device_memory_usage" if device == "cuda" else "self_cpu_memory_usage"
    return [getattr(event, name) for event in found.events() if getattr(event, name) > 0]


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_no_matrix_of_labels(denominator: str, backend: str, device: str) -> None:
    """lset compares all labels in an N x M matrix, however frugal the rest is."""
    call = replace(separate(250, 300, 4), denominator=denominator)
    largest = max(allocated(call, backend, device))
    if backend == "reference":
        assert largest >= 250 * 300  # the measurement sees such a matrix
    else:
        assert largest < 250 * 300 / 2  # one byte a pair would be seen


def test_twelve_hundred_rows_take_no_memory_to_speak_of(backend: str, device: str) -> None:
    """pytorch-metric-learning 2 lists every positive beside every negative: 120 GB for 1,200 embeddings."""
    count = 800 if backend == "triton" and device == "cpu" else 1200  # interpreted, 1200 take long
    total = sum(allocated(alone(count, 8, classes=2, ignored=0.0), backend, device))
    assert total < (200 * count**2 if backend == "reference" else count**2)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_no_positive_gives_no_nan(denominator: str, backend: str, device: str) -> None:
    """SupContrast and ContrastiveSeg divide by the number of positives."""
    some = separate(9, 11, 8, ignored=0.0)
    some = replace(some, anchor_labels=torch.tensor([77, 0, 1, 2, 3, 77, 0, 1, 2]), denominator=denominator)
    loss, gradient = step(some, backend, device)
    assert_right(some, (loss, gradient), 10)
    assert not gradient[[0, 5]].any()
    for call in (some, Call(some.anchors, torch.arange(9), denominator=denominator)):
        for none in (replace(call, anchor_labels=100 + torch.arange(9)), replace(call, anchors=0 * call.anchors)):
            loss, gradient = step(none, backend, device)
            assert loss.isfinite()
            assert not gradient.any()


def class_maps(classes: int) -> tuple[Tensor, Tensor]:
    """Labels [3, 12, 10] and features [3, classes, 6, 5]: a pixel's row has its largest number at its own class."""
    generator = torch.Generator().manual_seed(classes)
    small = torch.randint(0, classes, (3, 6, 5), generator=generator)
    labels = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    features = torch.rand(3, classes, 6, 5, generator=generator) / 2
    return labels, features + torch.nn.functional.one_hot(small, classes).movedim(-1, 1).float()


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_an_anchor_without_a_positive_takes_no_nan_from_its_keys(denominator: str, backend: str, device: str) -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device, requires_grad=True)
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [torch.nan, 0.0]], device=device)
    labels, key_labels = torch.tensor([0, 5], device=device), torch.tensor([0, 1, 1], device=device)
    groups, key_groups = torch.tensor([0, 1], device=device), torch.tensor([0, 0, 1], device=device)
    loss = secl_ops.info_nce(
        anchors, keys, anchor_labels=labels, key_labels=key_labels, anchor_groups=groups, key_groups=key_groups,
        temperature=torch.tensor(0.5, device=device), denominator=denominator, backend=backend,
    )  # fmt: skip
    (gradient,) = grad(loss, anchors)
    assert loss.isfinite()
    assert gradient[1].tolist() == [0.0, 0.0]


def test_a_queue_holds_each_class_in_its_own_place(backend: str, device: str) -> None:
    """ContrastiveSeg fills its queue with pixels of other classes."""
    labels, features = (value.to(device) for value in class_maps(4))
    queue = secl_ops.ClassQueue(4, 16, 4).to(device)
    for seed in range(3):
        secl_ops.pixel_contrast(features, labels, per_class=3, num_classes=4, seed=seed, queue=queue, backend=backend)
    filled = queue.key_labels >= 0
    assert filled.sum() == 4 * 16
    assert torch.equal(queue.keys.argmax(dim=1)[filled], queue.key_labels[filled].long())
    assert torch.equal(queue.key_labels, torch.arange(4, device=device).repeat_interleave(16).int())


def test_class_zero_of_a_queue_is_filled() -> None:
    """ContrastiveSeg starts at class 1, and rows of zeros stay keys of class 0."""
    queue = secl_ops.ClassQueue(3, 2, 4)
    queue.enqueue(1 + rows(6, 4, 0).abs(), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert queue.key_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (queue.keys >= 1).all()


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_the_mask_of_self_ends_where_the_queue_begins(denominator: str, backend: str, device: str) -> None:
    """ContrastiveSeg repeats its mask of self over the queue's columns."""
    labels, features = class_maps(3)
    queue = secl_ops.ClassQueue(3, 7, 3)
    queue.enqueue(1 + rows(30, 3, 1), torch.arange(30) % 3)
    sample = secl_ops.sample_pixels(labels[:, ::2, ::2], 4, num_classes=3, seed=5)
    anchors, count = secl_ops.gather_pixels(features, sample.index), len(sample.index)
    keys, key_labels = torch.cat([anchors, queue.keys]), torch.cat([sample.label, queue.key_labels])
    call = Call(
        anchors, sample.label, keys, key_labels, exclude=torch.arange(count), denominator=denominator, temperature=0.5
    )
    expected, rough = (dense_loss(call.to(dtype)) for dtype in (torch.float64, torch.float32))
    loss = secl_ops.pixel_contrast(
        features.to(device), labels.to(device), per_class=4, num_classes=3, seed=5, queue=queue.to(device),
        denominator=denominator, temperature=0.5, backend=backend,
    )  # fmt: skip
    assert_within_budget("loss", loss.cpu(), expected, rough, amplification=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_exponentials_of_large_similarities_do_not_overflow(
    denominator: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    """Many take exp of a similarity as it comes: in fp16 one of 12 overflows, in fp32 one of 89."""
    for call in (
        replace(separate(20, 30, 16, ignored=0.0), normalize=False, temperature=0.25),
        replace(separate(20, 30, 16, ignored=0.0), temperature=1 / 1024),
    ):
        call = replace(call, denominator=denominator, reduction="none").to(dtype)
        peak = float(call.anchors.double().norm(dim=1).max() * call.keys.double().norm(dim=1).max())
        peak = (1.0 if call.normalize else peak) / call.degree
        assert (2 if call.normalize else 1) * peak > 89
        loss, gradient = step(call, backend, device)
        assert gradient.isfinite().all()
        (exact, _), (rough, _) = truth(call), truth(call, dtype)
        assert_within_budget("loss", loss, exact, rough, amplification=4 * peak, magnitude=peak)


def events(backend: str, device: str, images: int, classes: int) -> int:
    """Operations that one whole step runs, those inside other operations too."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images, 8, 8), generator=generator).to(device)
    features = torch.rand(images, 16, 8, 8, generator=generator).to(device).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        options: dict[str, Any] = {
            "per_class": 2,
            "num_classes": classes,
            "seed": torch.zeros(1, dtype=torch.int64, device=device),
        }
        grad(secl_ops.pixel_contrast(features, labels, **options, backend=backend), features)
    return len([event for event in found.events() if "::" in event.name])


def test_no_loop_over_images_and_classes(backend: str, device: str) -> None:
    """ContrastiveSeg, ReCo and U2PL loop in Python over each class of each image."""
    sizes = [(1, 2), (5, 2), *([(1, 6)] if backend == "native" else [])]  # the reference draws class by class
    for size in sizes:
        events(backend, device, *size)
    first, *others = (events(backend, device, *size) for size in sizes)
    assert set(others) == {first}


def test_nothing_waits_for_the_device() -> None:
    """They also wait for the device each time; a tensor without numbers raises where somebody would look at one."""
    with FakeTensorMode():
        labels, features = torch.randint(0, 3, (2, 8, 8)), torch.rand(2, 4, 8, 8, requires_grad=True)
        criterion = secl_ops.PixelContrastLoss(3, 3, queue=secl_ops.ClassQueue(3, 5, 4))
        criterion(features, labels, features.detach(), eligible=labels > 0).backward()
        queue, pixels = secl_ops.ClassQueue(3, 5, 4), features.detach().flatten(2).mT.flatten(0, 1)
        queue.enqueue(pixels, labels.flatten())
        secl_ops.class_means(pixels, labels.flatten(), 3)
        for strategy in ("uniform", "stratified", "hard"):
            scores = torch.rand(2, 8, 8) if strategy == "hard" else None
            reference.sample(labels, labels > 0, scores, torch.zeros(1).long(), 3, 3, -1, strategy, 5)
        short = labels.flatten().int()
        pairs = Pairs(short, short, short, short, short.long(), 0, 100)
        unit, inverse = reference.unit_rows(pixels, short)
        factor = reference.row_inverse(pixels, short)
        for known, flags in ((None, Flag.SCAN), (inverse, Flag(0)), (None, Flag.NEGATIVES)):
            options = pairs, 10.0, flags | Flag.ANCHOR_GRADIENT, known, factor
            state = reference.contrast_forward(unit, pixels, *options)
        for name in REDUCTIONS:
            reduced = reference.reduce(state.loss, state.pull, state.count, inverse, name)
        factors = (state.loss, reduced.push, reduced.draw)
        for flags in (Flag.KEY_GRADIENT | Flag.ANCHOR_GRADIENT, Flag.SELF):
            found = reference.contrast_backward(factors, unit, unit, pairs, state.lse, 10.0, flags)
            reference.unit_rows_backward(found[0], (reduced.factor, state.loss), unit, inverse)
        index, like = torch.zeros(7).long(), Origin(features.shape, features.stride(), features.dtype)
        for normalize in (False, True):
            norm = reference.gather(features, index, normalize, torch.float32)
            scales = (norm[1], norm[1]) if normalize else None
            reference.gather_backward(norm[0], scales, index, norm if normalize else None, False, like)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_two_and_three_classes_cost_something(classes: int, denominator: str, backend: str, device: str) -> None:
    """U2PL's loss is always 0 with two or three classes."""
    call = replace(separate(14, 17, 6, classes=classes), denominator=denominator)
    loss, gradient = step(call, backend, device)
    assert_right(call, (loss, gradient), 10)
    assert loss > 0
    assert gradient.any()
    labels, features = (value.to(device) for value in class_maps(classes))
    leaf = features.requires_grad_()
    loss = secl_ops.pixel_contrast(
        leaf, labels, per_class=4, num_classes=classes, seed=0, denominator=denominator, backend=backend
    )
    (gradient,) = grad(loss, leaf)
    assert loss > 0
    assert gradient.any()
