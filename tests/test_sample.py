# SPDX-License-Identifier: Apache-2.0
"""The sampler draws what it says: exact counts, no duplicates, equal chances, the same seed the same pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import secl_ops

STRATEGIES = ["uniform", "stratified"]
ALL_STRATEGIES = [*STRATEGIES, "hard"]


@pytest.fixture(params=["reference", "native", "triton"])
def sampler(request: pytest.FixtureRequest) -> str:
    """Backends that sample."""
    from tests.conftest import skip_or_fail

    reasons = secl_ops.backends()[request.param]
    if reasons:
        skip_or_fail(request.param, f"backend {request.param} cannot run: {'; '.join(reasons)}")
    return str(request.param)


def sample_pixels(labels: Tensor, per_class: int, *, backend: str = "auto", **options: Any) -> secl_ops.PixelSample:
    """A draw where this backend runs, on the CPU."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()
    }
    found = secl_ops.sample_pixels(labels.to(device), per_class, backend=backend, **moved)
    return secl_ops.PixelSample(found.index.cpu(), found.label.cpu())


def maps(seed: int = 0, shape: tuple[int, ...] = (3, 9, 11), classes: int = 3) -> Tensor:
    return torch.randint(-1, classes, shape, generator=torch.Generator().manual_seed(seed))


def flat_draw(labels: Tensor, per_class: int, classes: int, **options: Any) -> Tensor:
    """Drawn pixels [C, B, K], -1 where there was none, after checking what holds for every draw."""
    sample = sample_pixels(labels, per_class, num_classes=classes, **options)
    assert sample.index.dtype == torch.int64
    assert sample.label.dtype == torch.int32
    pixels = labels[0].numel()
    index, label = (
        sample.index.view(classes, len(labels), per_class),
        sample.label.view(classes, len(labels), per_class),
    )
    assert torch.equal(index < 0, label < 0)
    for image in range(len(labels)):
        for number in range(classes):
            drawn = index[number, image][index[number, image] >= 0]
            assert len(drawn.unique()) == len(drawn)
            assert ((drawn // pixels) == image).all()
            assert (labels.flatten()[drawn] == number).all()
            assert (label[number, image][: len(drawn)] == number).all()
            assert (index[number, image][len(drawn) :] == -1).all()
    return index


@pytest.mark.thinned(16, sampler="triton")
@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@pytest.mark.parametrize("shape", [(3, 40), (3, 9, 11), (2, 5, 6, 7)])
@pytest.mark.parametrize("per_class", [1, 5, 64])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_exact_counts(strategy: str, shape: tuple[int, ...], per_class: int, share: float, sampler: str) -> None:
    if sampler == "triton" and len(shape) == 4:
        shape = (1, *shape[1:])  # 64 cells to interpret for each class and image
    labels, generator = maps(shape=shape), torch.Generator().manual_seed(1)
    eligible = torch.rand(shape, generator=generator) < share
    scores = torch.randint(0, 4, shape, generator=generator) / 2.0 if strategy == "hard" else None
    index = flat_draw(
        labels, per_class, 3, seed=7, strategy=strategy, eligible=eligible, scores=scores, backend=sampler
    )
    assert eligible.flatten()[index[index >= 0]].all()
    for image in range(len(labels)):
        for number in range(3):
            available = int(((labels[image] == number) & eligible[image]).sum())
            assert int((index[number, image] >= 0).sum()) == min(per_class, available)


@pytest.mark.deferred(sampler="triton", strategy="stratified")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_pixel_is_equally_likely(strategy: str, sampler: str) -> None:
    labels = torch.zeros(1, 6, 8, dtype=torch.int64)
    labels[0, :, 5:] = 1
    hits = torch.zeros(48)
    draws = 3000 if not interpreted(sampler) else 120 if strategy == "uniform" else 15
    for seed in range(draws):
        index = sample_pixels(labels, 7, num_classes=1, seed=seed, strategy=strategy, backend=sampler).index
        hits[index] += 1
    inside = hits[labels.flatten() == 0]
    assert hits.sum() == draws * 7
    assert inside.sum() == hits.sum()
    assert len(inside) == 30
    assert rarity(inside, 7) > 1e-3
    assert strategy == "stratified" or rarity(inside, 7) < 1 - 1e-3


def interpreted(sampler: str) -> bool:
    """Whether each class of each image costs tens of milliseconds: then tests of chances draw less."""
    return sampler == "triton" and not torch.cuda.is_available()


def rarity(hits: Tensor, drawn: int = 0) -> float:
    """Chance of counts [n] at least as uneven as these, where each of `drawn` distinct of n is equally likely."""
    n = len(hits)
    statistic = float(((hits - hits.mean()) ** 2 / hits.mean()).sum())
    # Draws without replacement vary less than a multinomial, by exactly (1 - k/n) n / (n - 1).
    return float(stats.chi2.sf(statistic / (1 - drawn / n) * (n - 1) / n if drawn else statistic, df=n - 1))


@pytest.mark.deferred(sampler="triton", strategy="stratified")
@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
def test_every_eligible_pixel_of_each_class_is_equally_likely(strategy: str, sampler: str) -> None:
    images, draws = (20, 1) if interpreted(sampler) else (250, 12)
    generator = torch.Generator().manual_seed(3)
    labels, eligible = maps(4, (7, 9), classes=2), torch.rand(7, 9, generator=generator) < 0.6
    scores = torch.arange(63.0).view(7, 9) if strategy == "hard" else None
    hits = torch.zeros(63)
    for seed in range(draws):
        many: dict[str, Any] = {
            "eligible": eligible.expand(images, 7, 9),
            "scores": None if scores is None else scores.expand(images, 7, 9),
        }
        sample = sample_pixels(
            labels.expand(images, 7, 9), 6, num_classes=2, seed=seed, strategy=strategy, **many, backend=sampler
        )
        hits += torch.bincount(sample.index % 63, minlength=63)
    assert hits.sum() == images * draws * 2 * 6
    for number in range(2):
        members = hits[((labels == number) & eligible).flatten()]
        drawn = 6
        if strategy == "hard":  # the three of the lowest scores always, three others by chance
            assert (members[:3] == images * draws).all()
            members, drawn = members[3:], 3
        assert members.sum() == images * draws * drawn
        rare = rarity(members, drawn)
        assert rare > 1e-3
        assert strategy == "stratified" or rare < 1 - 1e-3


def test_every_pair_of_pixels_is_equally_likely(sampler: str) -> None:
    images = 196 if interpreted(sampler) else 2800
    sample = sample_pixels(torch.zeros(images, 8).long(), 2, num_classes=1, seed=1, backend=sampler)
    first, second = (sample.index.view(images, 2) % 8).sort(dim=1).values.T
    pairs = torch.bincount(first * 8 + second, minlength=64).view(8, 8).float()
    upper = pairs[torch.triu(torch.ones(8, 8), 1) > 0]
    assert upper.sum() == images
    assert 1e-3 < rarity(upper) < 1 - 1e-3


@pytest.mark.deferred(sampler="triton", strategy="stratified")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_draws_of_one_image_and_seed_tell_nothing_of_the_next(strategy: str, sampler: str) -> None:
    few = 91 if strategy == "uniform" else 46
    labels = torch.zeros(few if interpreted(sampler) else 1801, 6).long()
    drawn = [
        sample_pixels(labels, 1, num_classes=1, seed=seed, strategy=strategy, backend=sampler).index % 6
        for seed in (0, 1)
    ]
    for this, other in ((drawn[0], drawn[1]), (drawn[0][:-1], drawn[0][1:])):
        assert 1e-3 < rarity(torch.bincount(this * 6 + other, minlength=36).float()) < 1 - 1e-3


def test_stratified_draws_are_spread(sampler: str) -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    variances = []
    for strategy in STRATEGIES:
        counts = []
        for seed in range(3 if sampler == "triton" else 60):
            index = sample_pixels(labels, 64, num_classes=1, seed=seed, strategy=strategy, backend=sampler).index
            cell = (index // 32 // 8) * 4 + index % 32 // 8
            counts.append(torch.bincount(cell, minlength=16).float())
        variances.append(torch.stack(counts).var().item())
    assert variances[0] > 2
    assert variances[1] == 0


def test_seeds(sampler: str) -> None:
    labels = maps()

    def draw(seed: int | Tensor) -> Tensor:
        return sample_pixels(labels, 4, num_classes=3, seed=seed, backend=sampler).index

    assert torch.equal(draw(3), draw(3))
    assert torch.equal(draw(3), draw(torch.tensor([3])))
    assert not torch.equal(draw(3), draw(4))
    assert torch.equal(draw(2**64 + 5), draw(5))


def test_backends_that_sample_agree(sampler: str) -> None:
    labels = maps(shape=(2, 13, 17))
    for strategy in STRATEGIES:
        options: dict[str, Any] = {"num_classes": 3, "seed": 11, "strategy": strategy}
        truth = sample_pixels(labels, 6, **options, backend="reference").index.view(-1, 6)
        found = sample_pixels(labels, 6, **options, backend=sampler).index.view(-1, 6)
        if sampler != "triton":
            assert torch.equal(found, truth)
        elif strategy == "uniform":
            assert torch.equal(found.sort(dim=1).values, truth.sort(dim=1).values)
        else:  # other pixels, of the same cells: those of a systematic draw
            for drawn, other in zip(found, truth, strict=True):
                cells = [(at // 17 % 13 * 4 // 13 * 4 + at % 17 * 4 // 17).sort().values for at in (drawn, other)]
                assert torch.equal(*cells)


def test_ignored_and_ineligible_pixels_are_never_drawn(sampler: str) -> None:
    labels = maps(shape=(2, 8, 8))
    index = sample_pixels(labels, 64, num_classes=3, ignore_index=1, seed=0, backend=sampler).index
    assert not (labels.flatten()[index[index >= 0]] == 1).any()
    eligible = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    index = sample_pixels(labels, 64, num_classes=3, eligible=eligible, seed=0, backend=sampler).index
    drawn = index[index >= 0]
    assert eligible.flatten()[drawn].all()
    assert len(drawn) == int((eligible & (labels >= 0)).sum())


def test_narrow_label_dtypes_do_not_wrap(sampler: str) -> None:
    labels = torch.tensor([[[0, 1, -1, -1]]], dtype=torch.int8)
    sample = sample_pixels(labels, 2, num_classes=256, ignore_index=9, seed=0, backend=sampler)
    assert sample.label[sample.index >= 0].tolist() == [0, 1]
    sample = sample_pixels(labels.abs().byte(), 4, num_classes=300, seed=0, backend=sampler)
    assert sorted(sample.label[sample.index >= 0].tolist()) == [0, 1, 1, 1]


def test_hard_takes_the_lowest_scores_for_half_of_the_budget(sampler: str) -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).view(1, 10, 10).float()
    lowest = set(scores.flatten().argsort()[:4].tolist())
    rest = []
    for seed in range(40):
        index = sample_pixels(
            labels, 8, num_classes=1, seed=seed, scores=scores, strategy="hard", backend=sampler
        ).index.tolist()
        assert lowest <= set(index)
        assert len(set(index)) == 8
        rest += sorted(set(index) - lowest)
    assert len(set(rest)) > 60


def test_empty_maps(sampler: str) -> None:
    for shape in ((0, 4, 4), (2, 0, 4)):
        labels = torch.zeros(shape, dtype=torch.int64)
        sample = sample_pixels(labels, 3, num_classes=2, seed=0, backend=sampler)
        assert sample.index.tolist() == [-1] * (shape[0] * 6)
