# SPDX-License-Identifier: Apache-2.0
"""Mixtures: every pixel from the right image, boxes of the right size, parts equal to the joined batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from secl_models.data.sampling import Share
from secl_models.method.mixing import draw_mixture
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, override


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("patch", [(12, 9), (6, 12, 9)])
def test_one_mixture_of_a_pair_shows_a_box_of_the_labelled_image(patch: tuple[int, ...]) -> None:
    mixture = draw_mixture(4, 4, patch, 2 / 3, generator())
    smaller = [bool(inside.float().mean() < 0.5) for inside in mixture.inside]
    assert smaller[0] != smaller[1]
    assert smaller[2] != smaller[3]
    for inside, is_box in zip(mixture.inside, smaller, strict=True):
        box = inside if is_box else ~inside
        sides = [int(box.movedim(axis, 0).flatten(1).any(1).sum()) for axis in range(len(patch))]
        assert sides == [round(2 / 3 * length) for length in patch]
        assert int(box.sum()) == torch.tensor(sides).prod()  # a full box, no holes


def test_boxes_reach_every_border() -> None:
    covered = torch.stack(
        [draw_mixture(1, 1, (6, 6), 0.5, generator(seed)).inside[0] for seed in range(200)]
    )  # fmt: skip
    starts = {tuple(box.nonzero()[0].tolist()) for box in covered}
    assert starts == {(row, column) for row in range(4) for column in range(4)}


@pytest.mark.parametrize(("whole", "shown"), [(0.0, []), (0.25, [3]), (0.5, [1, 3]), (1.0, [0, 1, 2, 3])])
def test_pairs_shown_whole_are_spread_over_the_batch(whole: float, shown: list[int]) -> None:
    inside = draw_mixture(8, 4, (6, 6), 0.5, generator(), whole=whole).inside.flatten(1)
    mixed = draw_mixture(8, 4, (6, 6), 0.5, generator()).inside.flatten(1)
    for pair in range(4):
        unlabeled, labeled = sorted(inside[2 * pair : 2 * pair + 2], key=torch.count_nonzero)
        if pair in shown:
            assert labeled.all()
            assert not unlabeled.any()
        else:
            assert torch.equal(inside[2 * pair : 2 * pair + 2], mixed[2 * pair : 2 * pair + 2])


@pytest.mark.parametrize(
    ("labeled", "shares"), [(2, [[0.25, 0.75], [0.0, 1.0]] * 2), (1, [[0.25], [0.75], [0.0], [1.0]])]
)
def test_small_batches_take_their_turns_over_the_steps(labeled: int, shares: list[list[float]]) -> None:
    """Share of labelled pixels: a box in, a box out, a whole unlabelled image, a whole labelled one."""
    for step, expected in enumerate(shares):
        mixture = draw_mixture(labeled, 1, (6, 6), 0.5, generator(step), whole=0.5, before=step * labeled)
        assert mixture.inside.float().mean((1, 2)).tolist() == expected


@pytest.mark.parametrize("whole", [0.0, 1.0])
@pytest.mark.parametrize("rhythm", range(1, 10))
def test_what_a_sample_shows_follows_no_rhythm_of_the_samples(rhythm: int, whole: float) -> None:
    """Every n-th one shows its box, or is shown whole, as often as not."""
    places = range(0, 2000 * rhythm, rhythm)
    mixtures = [draw_mixture(1, 1, (2, 2), 0.5, generator(), whole=whole, before=place) for place in places]
    assert 0.49 < np.mean([bool(mixture.inside.sum() > 2) for mixture in mixtures]) < 0.51


@pytest.mark.parametrize(("labeled", "unlabeled"), [(8, 16), (8, 12), (1, 4), (8, 3)])
def test_every_unlabelled_image_has_its_turn(labeled: int, unlabeled: int) -> None:
    met = [
        draw_mixture(labeled, unlabeled, (2, 2), 0.5, generator(), before=step * labeled).partner.tolist()
        for step in range(unlabeled)
    ]
    counts = Counter(number for partners in met for number in partners)
    assert counts == dict.fromkeys(range(unlabeled), labeled)
    parts = [
        draw_mixture(3, 5, (2, 2), 0.5, generator(), Share(rank, 2), before=6).partner + 5 * rank for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), draw_mixture(6, 10, (2, 2), 0.5, generator(), before=6).partner)


def test_maps_and_images_are_mixed_alike_with_the_right_partner() -> None:
    mixture = draw_mixture(4, 2, (8, 8), 0.5, generator())
    assert mixture.partner.tolist() == [0, 0, 1, 1]
    labeled, unlabeled = torch.arange(4).view(4, 1, 1).expand(4, 8, 8), torch.tensor([10, 11]).view(2, 1, 1)
    maps = mixture.of(labeled, unlabeled.expand(2, 8, 8))
    images = mixture.of(labeled.unsqueeze(1).expand(4, 3, 8, 8), unlabeled.unsqueeze(1).expand(2, 3, 8, 8))
    assert torch.equal(images, maps.unsqueeze(1).expand_as(images))
    for number in range(4):
        assert torch.equal(maps[number] == number, mixture.inside[number])
        assert set(maps[number].unique().tolist()) == {number, 10 + number // 2}


def test_parts_are_the_joined_batch() -> None:
    joined = draw_mixture(6, 4, (8, 8), 0.5, generator(), whole=0.5)
    parts = [draw_mixture(3, 2, (8, 8), 0.5, generator(), Share(rank, 2), whole=0.5) for rank in range(2)]
    assert torch.equal(torch.cat([part.inside for part in parts]), joined.inside)
    assert torch.equal(torch.cat([parts[0].partner, parts[1].partner + 2]), joined.partner)


@pytest.mark.parametrize(
    "assignment", ["mix.side=1.0", "mix.side=0", "mix.weight=-1", "mix.confidence=2", "mix.whole=1.5"]
)
def test_values_out_of_range_are_refused(assignment: str) -> None:
    with pytest.raises(InputError, match=assignment.split("=")[0]):
        override(RunConfig(), [assignment])


def test_a_mixing_method_needs_unlabelled_images_in_a_step() -> None:
    with pytest.raises(InputError, match=r"train\.unlabeled_batch of secl\+"):
        override(RunConfig(), ["train.method=secl+", "train.unlabeled_batch=0"])
