# SPDX-License-Identifier: Apache-2.0
"""Projection heads of the drop-in: what plain torch makes of the drawn rows, and never of a whole map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import secl_ops
from benchmarks.budget import assert_within_budget
from tests.oracle import Call, dense_loss

KEY_DRAW = 0x5ECC
DRAW: dict[str, Any] = {"per_class": 3, "num_classes": 3}
MODES = ("self", "teacher", "two heads", "shared head", "queue", "self and queue")
LEARNING_KEYS = ("two heads", "shared head")  # a key_head that is given gets its gradient


class Setup(NamedTuple):
    """Maps, heads and earlier rows, all in one dtype."""

    student: Tensor  # [2, 6, 5, 5]
    teacher: Tensor  # [2, 6, 5, 5]
    head: nn.Module
    key_head: nn.Module
    past: Tensor  # [n, 4]

    def leaves(self) -> list[Tensor]:
        """What a gradient is asked for."""
        return [self.student, self.teacher, *self.head.parameters(), *self.key_head.parameters()]


CLASSES = torch.tensor([0] * 20 + [1] * 25 + [2] * 3 + [-1] * 2).reshape(2, 5, 5)  # class 2 leaves places free
PAST_LABELS = torch.tensor([0, 1, 2, 2])


def mlp(seed: int, width: int = 6, out: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, out))


def setup(device: str, dtype: torch.dtype = torch.float32) -> Setup:
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, 5, 5, generator=random) for _ in range(2))
    past = torch.randn(4, 4, generator=random)
    head, key_head = (mlp(seed).to(device, dtype) for seed in (1, 2))
    student, teacher = (values.to(device, dtype).requires_grad_() for values in (student, teacher))
    return Setup(student, teacher, head, key_head, past.to(device, dtype))


def drawn(maps: Tensor, seed: int, backend: str, device: str) -> tuple[Tensor, Tensor]:
    """Rows and labels of what a seed draws, without the free places."""
    sample = secl_ops.sample_pixels(CLASSES.to(device), **DRAW, seed=seed, backend=backend)
    index = sample.index[sample.index >= 0]
    assert len(index) < len(sample.index)
    return maps.movedim(1, -1).flatten(0, -2)[index.to(maps.device)], sample.label[sample.index >= 0].cpu()


def by_hand(given: Setup, mode: str, backend: str, device: str) -> list[Tensor]:
    """Loss and gradients, densely by plain torch on the CPU."""
    rows, labels = drawn(given.student, 5, backend, device)
    anchors = given.head(rows)
    keys: Any = None
    key_labels: Any = None
    exclude = None
    if not mode.startswith("self"):
        rows, key_labels = drawn(given.teacher, 5 ^ KEY_DRAW, backend, device)
        keys = (given.key_head if mode == "two heads" else given.head)(rows)
        keys = keys if mode in LEARNING_KEYS else keys.detach()
    elif "queue" in mode:
        keys, key_labels, exclude = anchors, labels, torch.arange(len(labels))
    if "queue" in mode:
        keys, key_labels = torch.cat([keys, given.past]), torch.cat([key_labels, PAST_LABELS])
    call = Call(anchors, labels, keys, key_labels, exclude=exclude, reduction="mean")
    loss = dense_loss(call)
    return [loss, *torch.autograd.grad(loss, given.leaves(), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("mode", MODES)
def test_it_is_gather_head_contrast(mode: str, backend: str, device: str) -> None:
    given = setup(device)
    queue = secl_ops.ClassQueue(3, 3, 4).to(device) if "queue" in mode else None
    if queue is not None:
        queue.enqueue(given.past, PAST_LABELS.to(device))
    key_head = {"two heads": given.key_head, "shared head": given.head}.get(mode)
    labels, teacher = CLASSES.to(device), None if mode.startswith("self") else given.teacher
    loss = secl_ops.pixel_contrast(
        given.student, labels, teacher, **DRAW, seed=5, head=given.head, key_head=key_head, queue=queue, backend=backend
    )
    found = [loss, *torch.autograd.grad(loss, given.leaves(), allow_unused=True, materialize_grads=True)]
    truth, rough = (by_hand(setup("cpu", dtype), mode, backend, device) for dtype in (torch.float64, torch.float32))
    assert sum(bool(value.any()) for value in truth) == 1 + {"two heads": 10, "shared head": 6}.get(mode, 5)
    for number, (actual, true, near) in enumerate(zip(found, truth, rough, strict=True)):
        assert_within_budget(
            f"output {number}", actual.detach().cpu(), true.detach(), near.detach(), amplification=40,
            magnitude=0 if number else 10,
        )  # fmt: skip


def test_a_head_sees_the_drawn_rows_once_and_the_queue_takes_what_it_makes_of_the_keys() -> None:
    given, seen = setup("cpu"), []
    given.head.register_forward_hook(lambda module, rows, out: seen.append((rows[0].shape, out.requires_grad, out)))
    places = (18, 6)  # classes * images * per_class, channels
    secl_ops.pixel_contrast(given.student, CLASSES, **DRAW, seed=0, head=given.head)
    assert [row[:2] for row in seen] == [(places, True)]
    queue = secl_ops.ClassQueue(3, 6, 4)
    secl_ops.pixel_contrast(given.student, CLASSES, given.teacher, **DRAW, seed=0, head=given.head, queue=queue)
    assert [row[:2] for row in seen[1:]] == [(places, True), (places, False)]
    key = secl_ops.sample_pixels(CLASSES, **DRAW, seed=KEY_DRAW)
    other = secl_ops.ClassQueue(3, 6, 4)
    other.enqueue(seen[2][2], key.label)
    assert torch.equal(queue.keys, other.keys)
    assert torch.equal(queue.key_labels, other.key_labels)
    assert queue.keys.any()


class Inverse(nn.Module):
    """A zero row becomes infinite, or NaN."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows / rows.square().sum(dim=1, keepdim=True)


@pytest.mark.parametrize("queued", [False, True])
def test_what_a_head_makes_of_free_places_reaches_nothing(queued: bool, backend: str, device: str) -> None:
    given = setup(device)
    queue = secl_ops.ClassQueue(3, 3, 6).to(device) if queued else None
    call = {**DRAW, "seed": 0, "head": Inverse(), "queue": queue, "backend": backend}
    loss = secl_ops.pixel_contrast(given.student, CLASSES.to(device), **call)
    (gradient,) = torch.autograd.grad(loss, given.student)
    assert loss > 0
    assert gradient.any()
    assert gradient.isfinite().all()
    assert queue is None or queue.keys.isfinite().all()


class Wide(nn.Linear):
    """A head that gives fp32 also under autocast."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows).float()


def test_autocast_brings_both_sides_to_one_dtype() -> None:
    given, narrow, wide = setup("cpu"), nn.Linear(6, 4), Wide(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            secl_ops.pixel_contrast(given.student, CLASSES, given.teacher, **DRAW, seed=0, head=head, key_head=other)
            for head, other in ((narrow, wide), (wide, narrow), (narrow, narrow))
        ]
        rows = []
        for maps, seed in ((given.student, 0), (given.teacher, KEY_DRAW)):
            sample = secl_ops.sample_pixels(CLASSES, **DRAW, seed=seed)
            rows.append((secl_ops.gather_pixels(maps, sample.index), sample.label))
        for loss, (head, other) in zip(found, ((narrow, wide), (wide, narrow), (narrow, narrow)), strict=True):
            anchors, keys = head(rows[0][0]), other(rows[1][0])
            if narrow not in (head, other) or head is not other:
                anchors, keys = anchors.float(), keys.float()
            assert anchors.dtype == (torch.bfloat16 if head is other else torch.float32)
            expected = secl_ops.info_nce(anchors, keys, anchor_labels=rows[0][1], key_labels=rows[1][1])
            assert torch.equal(loss, expected)
            loss.backward()
    assert narrow.weight.grad is not None
    assert narrow.weight.grad.dtype == torch.float32


def test_a_teacher_of_another_width_has_its_own_head() -> None:
    given, key_head = setup("cpu"), nn.Linear(3, 4).half()
    teacher = torch.randn(2, 3, 5, 5).half()
    loss = secl_ops.pixel_contrast(given.student, CLASSES, teacher, **DRAW, seed=0, head=given.head, key_head=key_head)
    loss.backward()
    assert key_head.weight.grad is not None
    assert key_head.weight.grad.any()
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("queued", [False, True])
def test_it_compiles_to_one_graph(queued: bool, teacher: bool) -> None:
    given, results = setup("cpu"), []

    def compiled(module: nn.Module) -> Callable[..., Tensor]:
        torch._dynamo.reset()
        return torch.compile(module, fullgraph=True, backend="aot_eager")

    queue = secl_ops.ClassQueue(3, 3, 4) if queued else None
    learned = nn.Parameter(torch.tensor(0.2))
    criterion = secl_ops.PixelContrastLoss(**DRAW, head=given.head, queue=queue, temperature=learned, strategy="hard")
    scores = torch.arange(50.0).reshape(2, 5, 5)
    keys = (given.teacher,) if teacher else ()
    for wrap in (lambda module: module, compiled):
        module = copy.deepcopy(criterion)
        run = wrap(module)
        for _ in range(2):
            loss = run(given.student, CLASSES, *keys, scores=scores)
        gradients = torch.autograd.grad(loss, [given.student, *module.parameters()])
        results.append([loss.detach(), *gradients, *module.state_dict().values()])
    assert all(value.any() for value in results[0])
    for eager, graph in zip(*results, strict=True):
        assert_within_budget("compiled", graph.float(), eager.double(), eager.float())


def test_a_module_owns_its_heads_and_shows_its_options() -> None:
    given, learned = setup("cpu"), nn.Parameter(torch.tensor(0.2))
    criterion = secl_ops.PixelContrastLoss(
        **DRAW, head=given.head, key_head=given.key_head, temperature=learned, denominator="all", seed=3
    )
    assert len(list(criterion.parameters())) == 9
    assert {"temperature", "draws", "head.0.weight", "key_head.2.bias"} <= set(criterion.state_dict())
    shown = (criterion.per_class, criterion.num_classes, criterion.strategy, criterion.denominator, criterion.backend)
    assert shown == (3, 3, "uniform", "all", "auto")
    assert "per_class=3" in repr(criterion)
    criterion.per_class, criterion.backend = 4, "reference"
    assert (criterion.sampling.per_class, criterion.contrast.backend) == (4, "reference")
    with pytest.raises(ValueError, match="per_class must be at least 1; got 0"):
        criterion.per_class = 0
    with pytest.raises(ValueError, match="backend must be one of"):
        criterion.backend = "cuda"
    assert (criterion.per_class, criterion.backend) == (4, "reference")
    criterion.backend = "auto"
    moved = copy.deepcopy(criterion).double()
    loss = moved(given.student.double(), CLASSES, given.teacher.double())
    assert isinstance(moved.temperature, nn.Parameter)
    (gradient,) = torch.autograd.grad(loss, moved.temperature)
    assert gradient.dtype == torch.float64
    assert gradient
    swapped = {"temperature": torch.tensor(0.7)}
    found = torch.func.functional_call(copy.deepcopy(criterion), swapped, (given.student, CLASSES, given.teacher))
    other = copy.deepcopy(criterion)
    other.temperature = nn.Parameter(torch.tensor(0.7))
    assert torch.equal(found, other(given.student, CLASSES, given.teacher))
    assert not torch.equal(found, criterion(given.student, CLASSES, given.teacher))
