# SPDX-License-Identifier: Apache-2.0
"""A large image is drawn from by many programs: they list what may be drawn, and how they share it changes no draw."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import reference
from tests.device_step import watched

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 23, 17), (1, 300), (2, 5, 6, 7), (1, 1), (12, 3)]


@pytest.fixture(autouse=True)
def _unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw is planned anew, as the patched sizes say."""
    from secl_ops.engines.triton import launch_sample

    monkeypatch.setattr(launch_sample, "sampler", launch_sample.Sampler)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Images of a few pixels are large."""
    monkeypatch.setattr(tiles, "SAMPLE_WHOLE", 0)
    monkeypatch.setattr(tiles, "SAMPLE_PIXELS", 64)
    monkeypatch.setattr(tiles, "SAMPLE_SPOTS", 64)
    return monkeypatch


def draw(labels: Tensor, per_class: int, classes: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Index and label [C * B, per_class] by the Triton kernels."""
    from secl_ops.engines.triton import launch_sample

    return _call(launch_sample.sample, labels, per_class, classes, **options)


def truth(labels: Tensor, per_class: int, classes: int, **options: Any) -> tuple[Tensor, Tensor]:
    """The same by the reference."""
    return _call(reference.sample, labels, per_class, classes, **options)


def _call(
    sample: Any, labels: Tensor, per_class: int, classes: int, strategy: str = "uniform",
    eligible: Tensor | None = None, scores: Tensor | None = None, ignore: int = -1, seed: int = 3,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    maps = (None if each is None else each.to(DEVICE) for each in (labels, eligible, scores, torch.tensor([seed])))
    index, label = sample(*maps, per_class, classes, ignore, strategy, 5)
    assert ((index >= 0) == (label >= 0)).all()
    return index.view(-1, per_class).cpu(), label.view(-1, per_class).cpu()


def same_pixels(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """The same sets."""
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].sort(dim=1).values, expected[0].sort(dim=1).values)


def problem(shape: tuple[int, ...]) -> dict[str, Any]:
    """Labels -1..4 without a 2, what is eligible, and scores with ties, infinities and no numbers."""
    generator = torch.Generator().manual_seed(len(shape))
    labels = torch.randint(-1, 5, shape, generator=generator)
    labels[labels == 2] = 1
    scores = torch.randint(0, 9, shape, generator=generator).float()
    scores[scores == 8], scores[scores == 0] = torch.nan, -torch.inf
    return {"labels": labels, "eligible": torch.rand(shape, generator=generator) < 0.7, "scores": scores}


@pytest.mark.parametrize("strategy", ["uniform", "hard"])
@pytest.mark.parametrize(("shape", "per_class"), [*((shape, 6) for shape in SHAPES), (SHAPES[0], 1), (SHAPES[0], 200)])
def test_lists_change_no_draw(shape: tuple[int, ...], per_class: int, strategy: str, chunked: Any) -> None:
    given = {**problem(shape), "per_class": per_class, "classes": 6, "ignore": 3, "strategy": strategy}
    found = draw(**given)
    same_pixels(found, truth(**given))
    last = found[0].where(found[0] >= 0, torch.iinfo(torch.int64).max)
    assert strategy == "hard" or torch.equal(last, last.sort(dim=1).values)


@pytest.mark.parametrize("strategy", ["uniform", "hard", "stratified"])
def test_how_an_image_is_shared_changes_no_draw(strategy: str, chunked: pytest.MonkeyPatch) -> None:
    from secl_ops.engines.triton import launch_sample

    given = {**problem((1, 13, 21)), "per_class": 9, "classes": 5, "strategy": strategy}
    drawn = []
    for chunks, levels in ((1, 16), (5, 16), (7, 1)):
        plan = launch_sample.split(1, (13, 21), 5, stratified=strategy == "stratified")
        if strategy == "hard":
            levels = 16
        chosen = partial(lambda plan, *_, **__: plan, plan._replace(chunks=chunks, levels=levels, most=128))
        chunked.setattr(launch_sample, "split", chosen)
        drawn.append(draw(**given))
        chunked.undo()
    for other in drawn[1:]:
        assert torch.equal(other[0], drawn[0][0])
        assert torch.equal(other[1], drawn[0][1])
    assert int((drawn[0][0] >= 0).sum()) == sum(
        min(9, int(((given["labels"] == number) & given["eligible"]).sum())) for number in range(5)
    )


def test_more_chunks_than_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from secl_ops.engines.triton import launch_sample

    plan = launch_sample.Split((1, 1, 1), 9, 16, 4, 256)
    monkeypatch.setattr(launch_sample, "split", lambda *_, **__: plan)
    labels = torch.tensor([[0, 1, 0, 0, -1]])
    same_pixels(draw(labels, 2, 3), truth(labels, 2, 3))


def test_more_classes_than_a_scan_serves(chunked: Any) -> None:
    labels = torch.randint(0, 70, (1, 40, 50), generator=torch.Generator().manual_seed(0))
    same_pixels(draw(labels, 3, 70), truth(labels, 3, 70))


@pytest.mark.parametrize("every", [300, 7, 5])
def test_equal_scores_go_by_place_through_all_chunks(every: int, chunked: Any) -> None:
    scores = torch.ones(1, 300)
    scores[0, ::every] = torch.rand(len(scores[0, ::every]), generator=torch.Generator().manual_seed(0)) * 2
    given: dict[str, Any] = {"per_class": 200, "classes": 1, "strategy": "hard", "scores": scores}
    same_pixels(draw(torch.zeros(1, 300).long(), **given), truth(torch.zeros(1, 300).long(), **given))


def test_scores_that_a_list_leaves_out_are_left_to_chance(chunked: Any) -> None:
    scores = 1 + (torch.arange(300) % 10 == 9)[None] * 0.5  # two chunks list 54 low ones each, as many as are drawn so
    given: dict[str, Any] = {"per_class": 216, "classes": 1, "strategy": "hard", "scores": scores, "seed": 0}
    same_pixels(draw(torch.zeros(1, 300).long(), **given), truth(torch.zeros(1, 300).long(), **given))


def listed(labels: Tensor, per_class: int, classes: int, scores: Tensor | None = None) -> Tensor:
    """How many pixels are listed for each kind, image and group of classes."""
    from secl_ops.engines.triton import launch_sample
    from secl_ops.engines.triton.grids import kinds

    given = (labels.to(DEVICE), None, None if scores is None else scores.to(DEVICE), torch.tensor([1], device=DEVICE))
    maps, strategy = launch_sample.Maps(*given), "uniform" if scores is None else "hard"
    request = launch_sample.Request(labels.shape, kinds(*maps), torch.device(DEVICE), per_class, classes, -1, strategy)
    lists = launch_sample.Sampler(request).lists
    assert lists is not None
    return lists(maps, (0, 0))[2][..., 0, 1].cpu()


def test_a_list_is_short() -> None:
    labels = torch.randint(0, 3, (1, 160, 160), generator=torch.Generator().manual_seed(0))
    assert labels.numel() > tiles.SAMPLE_WHOLE
    assert 3 * 16 <= int(listed(labels, 16, 3)) < 3 * 3 * 16


@pytest.mark.parametrize("scores", ["spread", "saturated", "equal"])
def test_a_list_of_low_scores_is_short(scores: str) -> None:
    chance = torch.rand(1, 160, 160, generator=torch.Generator().manual_seed(0))
    given = {"spread": chance, "saturated": (chance - 0.5).clamp(min=0), "equal": torch.ones_like(chance)}[scores]
    found = int(listed(torch.zeros(1, 160, 160).long(), 32, 1, given)[1])
    ties = 0 if scores == "spread" else tiles.SAMPLE_PIXELS  # a chunk lists all of its own or none
    assert 16 <= found < 16 * 12 + ties


def test_a_large_image_takes_two_launches_more() -> None:
    from secl_ops.engines.triton import launch_sample

    labels, one = torch.zeros(1, 70, 70).long().to(DEVICE), torch.tensor([1]).to(DEVICE)
    passes = ["count_kernel", "list_kernel", "sample_kernel"]
    for size, strategy, expected in (
        (70, "uniform", passes), (20, "uniform", passes[2:]), (70, "hard", ["aim_kernel", *passes]),
        (20, "hard", passes[2:]), (20, "stratified", passes),
    ):  # fmt: skip
        part = labels[:, :size, :size]
        with watched() as seen:
            launch_sample.sample(part, None, part.float(), one, 4, 2, -1, strategy, 0)
        assert [name for name in seen.launches if name.endswith("_kernel")] == expected


@pytest.mark.parametrize("classes", [1, 4, 19, 300, 20000])
@pytest.mark.parametrize("spatial", [(65,), (128, 128), (1024, 2048), (128, 128, 128)])
@pytest.mark.parametrize("images", [1, 8, 5000])
def test_counts_take_no_more_memory_than_pixels(images: int, spatial: tuple[int, ...], classes: int) -> None:
    from secl_ops.engines.triton.launch_sample import split

    pixels = torch.Size(spatial).numel()
    plan = split(images, spatial, classes, stratified=False)
    assert plan.chunks * plan.levels * classes <= pixels + plan.levels * classes
    assert plan.chunks <= plan.most
    assert plan.chunks == 0 or images * plan.chunks >= min(images * pixels // max(1024, 16 * classes), 128)
    spread = split(images, spatial, classes, stratified=True)
    assert 0 < spread.chunks * spread.cells <= spread.most
