# SPDX-License-Identifier: Apache-2.0
"""The drop-in on feature maps, the queue, and the pooled means, held against the parts they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secl_ops
from tests.budget import assert_within_budget
from tests.exact import exactly, wide
from tests.oracle import present


def features(seed: int, shape: tuple[int, ...] = (2, 8, 6, 6)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, shape: tuple[int, ...] = (2, 6, 6)) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_sample_gather_contrast() -> None:
    maps, classes = features(0), labels(1)
    loss = secl_ops.pixel_contrast(maps, classes, per_class=5, num_classes=3, seed=4)
    sample = secl_ops.sample_pixels(classes, 5, num_classes=3, seed=4)
    rows = secl_ops.gather_pixels(maps, sample.index)
    assert torch.equal(loss, secl_ops.info_nce(rows, anchor_labels=sample.label))


def test_teacher_keys_get_no_gradient_unless_asked() -> None:
    student, teacher = features(0).requires_grad_(), features(1)
    secl_ops.pixel_contrast(student, labels(1), teacher, per_class=5, num_classes=3, seed=0).backward()
    assert present(student.grad).abs().sum() > 0
    asking = features(1).requires_grad_()
    secl_ops.pixel_contrast(student, labels(1), asking, per_class=5, num_classes=3, seed=0).backward()
    assert present(asking.grad).abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 8, 12), (2, 8, 6, 5), (2, 8, 4, 3, 5)])
def test_labels_of_another_resolution_are_read_at_pixel_centres(shape: tuple[int, ...]) -> None:
    maps = features(0, shape)
    fine = labels(2, (2, *(3 * size for size in shape[2:])))
    coarse = fine[(slice(None), *(slice(1, None, 3) for _ in shape[2:]))]
    options: dict[str, Any] = {"per_class": 4, "num_classes": 3, "seed": 1}
    assert torch.equal(secl_ops.pixel_contrast(maps, fine, **options), secl_ops.pixel_contrast(maps, coarse, **options))


def test_ignored_pixels_get_no_gradient() -> None:
    maps, classes = features(0).requires_grad_(), labels(1)
    classes[:, :3] = 255
    secl_ops.pixel_contrast(maps, classes, per_class=50, num_classes=3, ignore_index=255, seed=0).backward()
    touched = present(maps.grad).abs().sum(dim=1) > 0
    assert not touched[classes == 255].any()
    assert touched[classes != 255].all()


def test_nothing_to_contrast_gives_zero_with_a_graph() -> None:
    maps = features(0).requires_grad_()
    loss = secl_ops.pixel_contrast(maps, torch.full((2, 6, 6), -1), per_class=4, num_classes=3, seed=0)
    loss.backward()
    assert loss.item() == 0
    assert not present(maps.grad).any()


def test_module_draws_afresh_and_resumes() -> None:
    criterion = secl_ops.PixelContrastLoss(4, 3, seed=5)
    maps, classes = features(0), labels(1)
    first, second = criterion(maps, classes), criterion(maps, classes)
    assert first != second
    state = criterion.state_dict()
    resumed = secl_ops.PixelContrastLoss(4, 3)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(maps, classes), criterion(maps, classes))


def assert_of_rows(found: Tensor, anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor) -> None:
    """Hold a loss to that of rows: the native backend normalises keys where they lie where it can, drawn ones apart."""
    options: dict[str, Any] = {"anchor_labels": anchor_labels, "key_labels": key_labels, "backend": "reference"}
    both = ((anchors.to(kind), keys.to(kind)) for kind in (torch.float32, torch.float64))
    plain, truth = (secl_ops.info_nce(*rows, **options) for rows in both)
    assert_within_budget("loss", found, truth, plain, amplification=10)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_queue_rows_are_keys_and_then_take_this_call(backend: str) -> None:
    queue = secl_ops.ClassQueue(3, 8, 8)
    options: dict[str, Any] = {"per_class": 4, "num_classes": 3, "backend": backend}
    maps, teacher, classes = features(0), features(1), labels(1)
    first = secl_ops.pixel_contrast(maps, classes, teacher, **options, seed=0, queue=queue)
    assert torch.equal(first, secl_ops.pixel_contrast(maps, classes, teacher, **options, seed=0))
    assert int((queue.key_labels >= 0).sum()) == 24
    kept = queue.keys.clone(), queue.key_labels.clone()
    second = secl_ops.pixel_contrast(maps, classes, teacher, **options, seed=1, queue=queue)
    anchor = secl_ops.sample_pixels(classes, 4, num_classes=3, seed=1)
    key = secl_ops.sample_pixels(classes, 4, num_classes=3, seed=1 ^ 0x5ECC)
    keys = torch.cat([secl_ops.gather_pixels(teacher, key.index), kept[0]])
    assert_of_rows(
        second, secl_ops.gather_pixels(maps, anchor.index), keys, anchor.label, torch.cat([key.label, kept[1]])
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_seed_of_their_own_draws_the_keys(backend: str) -> None:
    maps, teacher, classes = features(0), features(1), labels(1)
    options: dict[str, Any] = {"per_class": 4, "num_classes": 3, "backend": backend}
    anchor, key = (secl_ops.sample_pixels(classes, 4, num_classes=3, seed=seed) for seed in (3, 9))
    rows = secl_ops.gather_pixels(maps, anchor.index), secl_ops.gather_pixels(teacher, key.index)
    seeds = 9, torch.tensor([9])
    losses = [secl_ops.pixel_contrast(maps, classes, teacher, **options, seed=3, key_seed=seed) for seed in seeds]
    assert torch.equal(*losses)
    assert_of_rows(losses[0], *rows, anchor.label, key.label)
    other = secl_ops.pixel_contrast(maps, classes, teacher, **options, seed=3)
    assert not torch.equal(losses[0], other)


def test_self_contrast_with_a_queue_never_sees_itself() -> None:
    maps = torch.zeros(1, 2, 1, 3)
    maps[0, 0] = 1
    loss = secl_ops.pixel_contrast(
        maps, torch.tensor([[[0, 1, 2]]]), per_class=1, num_classes=3, seed=0, queue=secl_ops.ClassQueue(3, 1, 2)
    )
    assert loss == 0  # its own row would be the only positive


def test_queue_wraps_overflows_and_keeps_the_newest() -> None:
    queue = secl_ops.ClassQueue(2, 3, 1)
    expected: dict[int, list[float]] = {0: [], 1: []}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        count = int(torch.randint(0, 9, (), generator=generator))
        rows = torch.arange(count).float()[:, None] + 100 * step
        classes = torch.randint(-1, 3, (count,), generator=generator)
        queue.enqueue(rows, classes)
        for row, label in zip(rows.flatten().tolist(), classes.tolist(), strict=True):
            if label in expected:
                expected[label] = [*expected[label], row][-3:]
        for label, newest in expected.items():
            held = queue.keys.flatten()[queue.key_labels == label].tolist()
            assert sorted(held) == newest
    assert queue.keys.shape == (6, 1)


def test_more_rows_than_a_class_holds_write_each_place_once(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []
    copy = Tensor.index_copy_

    def recorded(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        targets.append(index)
        return copy(self, dim, index, source)

    monkeypatch.setattr(Tensor, "index_copy_", recorded)
    secl_ops.ClassQueue(1, 2, 1).enqueue(torch.arange(5.0)[:, None], torch.zeros(5, dtype=torch.int64))
    assert sorted(targets[0].tolist()) == [0, 1, 2, 2, 2]  # 2: the place for what is left out


def test_queue_state_goes_on() -> None:
    first, second = secl_ops.ClassQueue(2, 3, 4), secl_ops.ClassQueue(2, 3, 4)
    first.enqueue(torch.ones(2, 4), torch.tensor([0, 1]))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enqueue(torch.full((1, 4), 2.0), torch.tensor([1]))
    assert torch.equal(first.keys, second.keys)
    assert torch.equal(first.key_labels, second.key_labels)


@pytest.mark.parametrize(("shape", "grid"), [((2, 3, 10), (4,)), ((2, 3, 7, 9), (3, 4)), ((1, 2, 4, 5, 6), (2, 3, 6))])
def test_pool_regions_takes_the_mean_of_each_cell(shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    maps = features(0, shape).double()
    cell = torch.zeros(1, dtype=torch.int64)
    for size, cells in zip(shape[2:], grid, strict=True):
        cell = (cell[:, None] * cells + torch.arange(size) * cells // size).flatten()
    regions = [maps.flatten(2)[:, :, cell == r] for r in range(int(cell.max()) + 1)]
    expected = wide(np.stack([exactly(each).sum(axis=2) / each.shape[2] for each in regions], axis=1))
    usual = torch.stack([each.mean(dim=2) for each in regions], dim=1)
    assert_within_budget("pooled", secl_ops.pool_regions(maps, grid), expected, usual, amplification=4)
    assert torch.autograd.gradcheck(lambda x: secl_ops.pool_regions(x, grid), maps.requires_grad_())


def test_a_nan_stays_in_its_cell_and_its_class() -> None:
    pooled = secl_ops.pool_regions(torch.tensor([[[1.0, torch.nan, 2.0]]]), (3,))
    assert pooled.flatten().isnan().tolist() == [False, True, False]
    means, _ = secl_ops.class_means(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1], dtype=torch.uint8), 257)
    assert means.flatten().isnan().nonzero().tolist() == [[1]]


def test_module_seeds_and_a_named_triton_backend() -> None:
    draws = {int(secl_ops.PixelContrastLoss(2, 2, seed=seed).draws) for seed in (0, 1, -1, 2**30, 2**40)}
    assert len(draws) == 5
    if not secl_ops.backends()["triton"]:
        secl_ops.pixel_contrast(features(0), labels(0), per_class=2, num_classes=3, seed=0, backend="triton")


def test_class_means_leave_out_what_is_ignored() -> None:
    rows, classes = features(0, (20, 5)), torch.arange(20) % 5 - 1
    rows[classes == -1] = torch.nan
    means, count = secl_ops.class_means(rows, classes, 3)
    assert count.tolist() == [4, 4, 4]
    for label in range(3):
        expected = rows[classes == label].double().mean(dim=0)
        assert_within_budget("mean", means[label], expected, expected.float(), amplification=4)
