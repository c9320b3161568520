# SPDX-License-Identifier: Apache-2.0
"""Augmentation: image and label move together, only where allowed, and the same generator gives the same views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_models.data.batch import Batch
from secl_models.method.augment import Views, augment, random_affine
from secl_models.options.schema import AugmentConfig

STILL = AugmentConfig(rotate=0, scale=0, shift=0, contrast=0, brightness=0, noise=0, gamma=0)
ROUNDING = 1e-3  # grey values of unit range: grid_sample in float32 reads a few 1e-5 of a voxel off the centre


def batch_of(image: Tensor, label: Tensor | None = None) -> Batch:
    count = len(image)
    label = torch.zeros(count, *image.shape[2:], dtype=torch.int64) if label is None else label
    return Batch(image, label, torch.zeros(count))


def views_of(batch: Batch, config: AugmentConfig, seed: int = 0) -> Views:
    return augment(batch, config, torch.Generator().manual_seed(seed))


def blocks(*shape: int) -> Tensor:
    """A random two-class label [B, *shape] of blocks of 4 voxels."""
    small = torch.randint(0, 2, (8, *(n // 4 for n in shape)), generator=torch.Generator().manual_seed(1))
    for axis in range(1, 1 + len(shape)):
        small = small.repeat_interleave(4, axis)
    return small


@pytest.mark.parametrize("shape", [(48, 64), (32, 32), (16, 24, 12)])
def test_image_and_label_move_together(shape: tuple[int, ...]) -> None:
    label = blocks(*shape)
    config = replace(STILL, rotate=40, scale=0.3, shift=0.1, flip=(0, 1))
    views = views_of(batch_of(label.float().unsqueeze(1), label), config)
    known = views.label >= 0
    moved = (views.label != label) & known
    assert moved.float().mean() > 0.1
    assert known.float().mean() > 0.5
    # The nearest voxel has at least half the weight on each axis, so an image that moved with its label is never
    # further from it; one that moved differently is 1 away in the blocks.
    apart = (views.weak.squeeze(1) - views.label.float()).abs()[known]
    assert apart.max() <= 1 - 0.5 ** len(shape) + ROUNDING


def test_nothing_happens_where_nothing_is_asked_for() -> None:
    label = blocks(48, 64)
    image = torch.randn(8, 2, 48, 64)
    views = views_of(batch_of(image, label), STILL)
    assert torch.equal(views.label, label)
    assert (views.weak - image).abs().max() < ROUNDING
    assert (views.strong - image).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("shape", "flip"),
    [((8, 12), (0,)), ((8, 12), (1,)), ((8, 12), ()), ((8, 12, 4), (2,)), ((8, 12, 4), (0, 2))],
)
def test_only_allowed_axes_flip_and_each_of_them_does(shape: tuple[int, ...], flip: tuple[int, ...]) -> None:
    count = 64
    ramps = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")).expand(
        count, -1, *shape
    )
    weak = views_of(batch_of(ramps.contiguous()), replace(STILL, flip=flip)).weak
    for axis in range(len(shape)):
        turned = (weak[:, axis] - ramps[:, axis]).flatten(1).abs().amax(1) > ROUNDING
        assert bool(turned.any()) == (axis in flip)
        assert not bool(turned.all())
        if axis in flip:
            assert (weak[turned, axis] + ramps[turned, axis]).abs().max() < ROUNDING


def test_a_rotation_keeps_lengths_on_a_patch_that_is_not_square() -> None:
    row, column = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(96.0) - 47.5, indexing="ij")
    disc = ((row**2 + column**2) < 12**2).float().expand(16, 1, 32, 96).contiguous()
    weak = views_of(batch_of(disc), replace(STILL, rotate=90)).weak
    error = (weak - disc).abs().flatten(1).sum(1)
    assert error.max() < 2 * torch.pi * 12  # its rim, one voxel wide; a sheared disc differs by hundreds


def test_the_maps_reach_their_ranges_and_stay_inside() -> None:
    config = replace(STILL, shift=0.1, scale=0.2, rotate=0)
    maps = random_affine(4000, (32, 64), config, torch.Generator().manual_seed(0))
    shift, zoom = maps[:, :, 2].abs().max(), 1 / maps[:, 0, 0]
    assert 0.19 < shift <= 0.2  # affine_grid counts from -1 to 1: a share of 0.1 is 0.2
    assert 0.8 <= zoom.min() < 0.82
    assert 1.18 < zoom.max() <= 1.2 + ROUNDING
    assert maps[:, 0, 1].abs().max() == 0


def test_a_label_shifted_out_of_the_patch_is_ignored_and_the_border_repeats() -> None:
    views = views_of(batch_of(torch.full((32, 1, 16, 16), 3.0)), replace(STILL, shift=0.4))
    assert bool((views.label == -1).any())
    assert set(views.label.unique().tolist()) == {-1, 0}
    assert (views.weak - 3).abs().max() < ROUNDING


def test_ignored_stays_ignored_and_large_classes_stay_exact() -> None:
    label = torch.full((2, 16, 16), -1)
    label[1] = 254
    views = views_of(batch_of(torch.zeros(2, 1, 16, 16), label), AugmentConfig())
    assert views.label[0].unique().tolist() == [-1]
    assert views.label[1].unique().tolist() == [-1, 254]


def test_strong_changes_intensities_and_weak_does_not() -> None:
    image = torch.rand(8, 2, 32, 32)
    config = replace(AugmentConfig(), rotate=0, scale=0, shift=0)
    views = views_of(batch_of(image), config)
    assert (views.weak - image).abs().max() < ROUNDING
    change = (views.strong - views.weak).flatten(2).abs().mean(2)  # [B, C]
    assert change.min() > ROUNDING
    assert len(change.flatten().unique()) == 16  # drawn anew for each sample and channel


@pytest.mark.parametrize("name", ["contrast", "brightness", "noise", "gamma"])
def test_each_intensity_change_acts_alone(name: str) -> None:
    image = torch.rand(4, 1, 16, 16)
    batch = batch_of(image)
    changed: dict[str, Any] = {name: 0.4}
    change = (views_of(batch, replace(STILL, **changed)).strong - image).abs()
    assert change.flatten(1).amax(1).min() > 0.005
    mean_change = (views_of(batch, replace(STILL, **changed)).strong - image).flatten(1).mean(1).abs()
    assert bool((mean_change < ROUNDING).all()) == (name == "contrast")  # contrast turns around the mean


def test_constant_and_empty_patches_stay_finite() -> None:
    for value in (0.0, -2.5, 60000.0):
        strong = views_of(batch_of(torch.full((3, 1, 8, 8), value)), AugmentConfig()).strong
        assert (strong - value).abs().max() <= abs(value) * ROUNDING
    empty = batch_of(torch.zeros(0, 1, 8, 8))
    assert views_of(empty, AugmentConfig()).strong.shape == (0, 1, 8, 8)


def test_the_same_generator_gives_the_same_views_and_another_does_not() -> None:
    batch = batch_of(torch.rand(4, 1, 16, 16), blocks(16, 16)[:4])
    config = AugmentConfig(flip=(0,))
    first, again, other = (views_of(batch, config, seed) for seed in (5, 5, 6))
    for name in ("weak", "strong", "label"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_the_batch_that_went_in_is_not_changed() -> None:
    image, label = torch.rand(2, 1, 16, 16), blocks(16, 16)[:2]
    before = image.clone(), label.clone()
    views_of(batch_of(image, label), AugmentConfig())
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])
