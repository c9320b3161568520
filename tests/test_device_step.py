# SPDX-License-Identifier: Apache-2.0
"""The pixel step on the device: how many launches it takes, and that the host never waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import tiles
from secl_ops.engines.triton import grids, sides
from tests.device_step import HostWaitError, fake_cuda, watched

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKWARD = ["zero_", "scatter_kernel"]
SECOND = {"negatives": "positive_kernel", "all": "class_mean_kernel"}


@pytest.fixture(autouse=True)
def _runs() -> None:
    from tests.conftest import skip_or_fail

    reasons = secl_ops.backends()["triton"]
    if reasons:
        skip_or_fail("triton", "; ".join(reasons))


def launches(*, teacher: bool, **options: Any) -> list[str]:
    """What a step and its backward pass launch; seed and upstream gradient are there, as from a term above."""
    generator = torch.Generator().manual_seed(0)
    features, keys = (torch.randn(2, 16, 6, 7, generator=generator).to(DEVICE) for _ in range(2))
    labels = torch.randint(0, 3, (2, 6, 7), generator=generator).to(DEVICE)
    seed, upstream = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones((), device=DEVICE)
    features.requires_grad_()
    given = {"per_class": 4, "num_classes": 3, "seed": seed, "backend": "triton", **options}
    with watched() as mode:
        loss = secl_ops.pixel_contrast(features, labels, *((keys,) if teacher else ()), **given)
        (gradient,) = torch.autograd.grad(loss, features, upstream)
    assert gradient.any()
    return mode.launches


@pytest.mark.thinned(3)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("strategy", ["uniform", "stratified", "hard"])
def test_self_contrast_takes_eleven_launches(strategy: str, denominator: str) -> None:
    scores = torch.rand(2, 6, 7, device=DEVICE) if strategy == "hard" else None
    lists = ["count_kernel", "list_kernel"] if strategy == "stratified" else []  # of each cell
    assert launches(teacher=False, strategy=strategy, scores=scores, denominator=denominator) == [
        *lists, "sample_kernel", "gather_unit_kernel", "order_kernel", "arrange_kernel", "denominator_kernel",
        SECOND[denominator], "reduce_kernel", "arrange_kernel", "gradient_kernel", *BACKWARD,
    ]  # fmt: skip


@pytest.fixture
def sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are sorted however few they are."""
    monkeypatch.setattr(tiles, "counts", lambda *_: False)


@pytest.mark.parametrize("queued", [False, True], ids=["no queue", "queue"])
@pytest.mark.parametrize("teacher", [False, True], ids=["self", "teacher"])
def test_drawn_pixels_are_ordered_by_counting(teacher: bool, queued: bool) -> None:
    options = {"queue": secl_ops.ClassQueue(3, 5, 16).to(DEVICE)} if queued else {}
    assert "sort" not in launches(teacher=teacher, **options)


@pytest.mark.usefixtures("sorting")
@pytest.mark.parametrize("grouped", [False, True], ids=["labels", "groups"])
@pytest.mark.parametrize("kind", ["self", "keys", "pieces"])
def test_sorting_does_not_wait_for_the_device(kind: str, grouped: bool) -> None:
    with fake_cuda() as (mode, tape):
        anchors, *keys = (torch.empty(rows, 16, device="cuda").requires_grad_() for rows in (40, 70, 30))
        labels, *key_labels = (torch.zeros(rows, dtype=torch.int64, device="cuda") for rows in (40, 70, 30))
        given: dict[str, Any] = {"anchor_labels": labels, "anchor_groups": labels if grouped else None}
        if kind != "self":
            sides = {"keys": keys, "key_labels": key_labels, "key_groups": key_labels if grouped else None}
            given |= {name: side[0] if side and kind == "keys" else side for name, side in sides.items()}
        loss = secl_ops.info_nce(anchors, **given, backend="triton")
        gradient = tape.backward(loss, torch.ones_like(loss), anchors)
        assert gradient.shape == anchors.shape
        assert mode.launches.count("sort") == {"self": 1, "keys": 4, "pieces": 8}[kind]


def test_a_frozen_teacher_takes_twelve_launches() -> None:
    assert launches(teacher=True) == [
        "sample_kernel", "sample_kernel", "gather_unit_kernel", "gather_unit_kernel", "order_kernel", "arrange_kernel",
        "arrange_kernel", "denominator_kernel", "positive_kernel", "reduce_kernel", *BACKWARD,
    ]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("queued", [False, True], ids=["no queue", "queue"])
@pytest.mark.parametrize("teacher", [False, True], ids=["self", "teacher"])
def test_nothing_waits_for_the_device(teacher: bool, queued: bool, reduction: str) -> None:
    with fake_cuda() as (mode, tape):
        queue = secl_ops.ClassQueue(3, 5, 16) if queued else None
        criterion = secl_ops.PixelContrastLoss(4, 3, queue=queue, reduction=reduction, backend="triton")
        for module in (criterion, queue):
            for name, buffer in {} if module is None else dict(module.named_buffers(recurse=False)).items():
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        student, key_map = (torch.empty(2, 16, 12, 12, device="cuda").requires_grad_() for _ in range(2))
        labels = torch.zeros(2, 24, 24, dtype=torch.int64, device="cuda")
        mode.launches.clear()
        loss = criterion(student, labels, *((key_map,) if teacher else ()))
        leaves = [student, key_map] if teacher else [student]
        for leaf in leaves:
            gradient = tape.backward(loss, torch.ones_like(loss), leaf)
            assert (gradient.shape, gradient.device.type) == (leaf.shape, "cuda")
        assert "scatter_kernel" in mode.launches
        assert ("index_copy_" in mode.launches) == queued


@pytest.mark.thinned(2, backend="triton")
@pytest.mark.parametrize("strategy", ["uniform", "stratified", "hard"])
@pytest.mark.parametrize("teacher", [False, True], ids=["self", "teacher"])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_operation_waits_under_the_true_engine(backend: str, teacher: bool, strategy: str) -> None:
    features, keys = (torch.randn(2, 8, 6, 6).to(DEVICE).requires_grad_() for _ in range(2))
    labels = torch.randint(0, 3, (2, 12, 12)).to(DEVICE)
    criterion = secl_ops.PixelContrastLoss(
        3, 3, queue=secl_ops.ClassQueue(3, 5, 8), strategy=strategy, backend=backend
    ).to(DEVICE)
    scores = torch.rand(2, 12, 12, device=DEVICE) if strategy == "hard" else None
    with watched() as mode:
        criterion(features, labels, *((keys,) if teacher else ()), scores=scores).backward()
    assert features.grad is not None
    assert "index_copy_" in mode.launches


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "nonzero": torch.ops.aten.nonzero.default,
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: torch.ops.aten.index.Tensor(x, [x > 0]),
    "mask written": lambda x: x.index_put_((x > 0,), torch.zeros((), device="cuda")),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "copied out": lambda x: torch.zeros(4).copy_(x),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_is_seen(name: str) -> None:
    with fake_cuda(), pytest.raises(HostWaitError, match="waits for the device"):
        WAITING[name](torch.zeros(4, device="cuda"))


@pytest.mark.parametrize("wait", [float, Tensor.nonzero, lambda x: x[x > 0]], ids=["float", "nonzero", "mask"])
def test_a_wait_is_seen_under_the_true_engine(wait: Callable[[Tensor], object]) -> None:
    with watched(), pytest.raises(HostWaitError, match="waits for the device"):
        wait(torch.ones(1, device=DEVICE))


def test_a_wait_behind_an_operation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sides,
        "cells",
        lambda count, block: grids.cells(count + torch.zeros((), device="cuda", dtype=torch.int64).item(), block),
    )
    with fake_cuda():
        features = torch.empty(2, 16, 12, 12, device="cuda")
        labels = torch.zeros(2, 12, 12, dtype=torch.int64, device="cuda")
        with pytest.raises(HostWaitError, match="waits for the device"):
            secl_ops.pixel_contrast(features, labels, per_class=4, num_classes=3, seed=0, backend="triton")
