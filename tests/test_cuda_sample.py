# SPDX-License-Identifier: Apache-2.0
"""The CUDA sampler, executed on the emulated GPU: the draws of the reference, however an image is cut and listed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import draws, native, reference
from secl_ops.spec import STRATEGIES
from tests.test_cuda import repeated

pytestmark = pytest.mark.usefixtures("gpu")
DTYPES = [torch.int64, torch.int32, torch.uint8, torch.int16]
WHOLE, CHUNK, SPOTS, GROUP = 4096, 2048, 4096, 512  # of csrc/cuda/sampling/plan.h


@dataclass(frozen=True)
class Draw:
    """A call of the sampler."""

    labels: Tensor
    per_class: int
    classes: int
    strategy: str = "uniform"
    eligible: Tensor | None = None
    scores: Tensor | None = None
    seed: int = 3
    ignore: int = -1

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As backends take them."""
        given = (self.labels, self.eligible, self.scores, torch.tensor([self.seed]))
        return (*given, self.per_class, self.classes, self.ignore, self.strategy, 9)

    def members(self, image: int, of_class: int) -> Tensor:
        """The usable pixels [n] of one class of one image."""
        usable = self.labels[image].flatten().long() == of_class
        if self.eligible is not None:
            usable &= self.eligible[image].flatten()
        return usable.nonzero()[:, 0] if of_class != self.ignore else usable.new_empty(0, dtype=torch.int64)


def truth(call: Draw) -> Tensor:
    """The draws [C * B, per_class] in the order of these kernels."""
    images, pixels = len(call.labels), call.labels[0].numel()
    priority = draws._priorities(torch.tensor([call.seed]) ^ 9, images, pixels)
    found = torch.full((call.classes, images, call.per_class), -1)
    spread = reference.sample(*call.arguments)[0].view_as(found) if call.strategy == "stratified" else None
    for of_class in range(call.classes):
        for image in range(images):
            members = call.members(image, of_class)
            if spread is not None:
                drawn = of_cells(call, members, spread[of_class, image], priority[image])
            else:
                drawn = by_score_and_chance(call, image, members, priority[image])
            found[of_class, image, : len(drawn)] = drawn + image * pixels
    return found.flatten(0, 1)


def by_score_and_chance(call: Draw, image: int, members: Tensor, priority: Tensor) -> Tensor:
    """In ascending order, those of the lowest scores first."""
    number = min(call.per_class, len(members))
    half = number // 2 if call.strategy == "hard" and call.scores is not None else 0
    low = members[:0]
    if half and call.scores is not None:
        low = members[call.scores[image].flatten()[members].argsort(stable=True)[:half]]
    rest = members[~torch.isin(members, low)]
    return torch.cat([low.sort().values, lowest(priority, rest, number - half)])


def of_cells(call: Draw, members: Tensor, spread: Tensor, priority: Tensor) -> Tensor:
    """Of each cell as many as in the reference's draw, by chance."""
    cells = draws._cells(call.labels.shape[1:], members.device)
    shares = cells[spread[spread >= 0] % len(cells)].bincount(minlength=1)
    drawn = [lowest(priority, members[cells[members] == cell], int(share)) for cell, share in enumerate(shares)]
    return torch.cat(drawn)


def lowest(priority: Tensor, among: Tensor, number: int) -> Tensor:
    """Those of the lowest priority, in ascending order."""
    return among[priority[among].argsort()[:number]].sort().values


def check(call: Draw, times: int = 1, gpu: Any = None) -> None:
    """The pixels and their order, and their classes."""
    run = partial(native.sample, *call.arguments)
    index, label = run() if times == 1 else repeated(gpu, run)
    expected = truth(call)
    assert torch.equal(index.view_as(expected), expected)
    classes = torch.arange(call.classes, dtype=torch.int32).repeat_interleave(len(call.labels))[:, None]
    assert torch.equal(label.view_as(expected), torch.where(expected < 0, -1, classes))


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.int64, strategy: str = "uniform") -> Draw:
    """Labels -1..4 (1..5 where they have no sign), what is eligible, and scores with ties and no numbers."""
    generator = torch.Generator().manual_seed(len(shape))
    labels = torch.randint(-1, 5, shape, generator=generator)
    eligible = torch.rand(shape, generator=generator) < 0.7
    scores = torch.randint(0, 9, shape, generator=generator).float()
    scores[scores == 8], scores[scores == 0] = torch.nan, -torch.inf
    labels = (labels + 2 if dtype == torch.uint8 else labels).to(dtype)
    return Draw(labels, 31, 7, strategy, eligible, scores, ignore=3)


def image(labels: Tensor, per_class: int, classes: int, strategy: str, **options: Any) -> Draw:
    """A draw from a row of pixels, with scores of few values where it is hard."""
    scores = torch.randint(0, 40, labels.shape, generator=torch.Generator().manual_seed(1)).float()
    return Draw(labels, per_class, classes, strategy, scores=scores if strategy == "hard" else None, **options)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(2, 23, 17), (1, 300), (2, 5, 6, 7)])
def test_draws(shape: tuple[int, ...], strategy: str, dtype: torch.dtype, gpu: Any) -> None:
    for seed, per_class in ((0, 1), (-5, 31), (2**62, 200)):
        check(replace(problem(shape, dtype, strategy), seed=seed, per_class=per_class), times=3, gpu=gpu)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(2, 90, 101), (1, 19, 20, 23), (3, 5000), (1, 300, 260)])
def test_draws_from_lists(shape: tuple[int, ...], strategy: str, dtype: torch.dtype, gpu: Any) -> None:
    check(replace(problem(shape, dtype, strategy), seed=-(2**61), per_class=37), times=3, gpu=gpu)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lists_without_a_mask(strategy: str) -> None:
    call = problem((2, 90, 101), strategy=strategy)
    for scores in (torch.rand(2, 90, 101), call.scores):
        check(replace(call, eligible=None, scores=scores, ignore=-1, classes=5))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("per_class", [1, 12, 3000])
def test_a_class_that_ends_within_a_chunk_or_lies_in_one(per_class: int, strategy: str) -> None:
    labels = torch.zeros(1, 4 * CHUNK + 77, dtype=torch.int32)
    labels[0, CHUNK + 100 : CHUNK + 160] = 1  # in one chunk
    labels[0, 2 * CHUNK - 30 : 2 * CHUNK + 30] = 2  # across the end of one
    labels[0, 3 * CHUNK : 4 * CHUNK] = 3  # a whole one
    labels[0, -1] = 4  # the last pixel alone
    check(image(labels, per_class, 6, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_draws_than_members(strategy: str) -> None:
    labels = torch.zeros(2, WHOLE + 300, dtype=torch.uint8)
    labels[0, ::7], labels[1, 5::9] = 1, 1
    check(image(labels, 6000, 2, strategy))


def test_more_classes_than_a_scan_serves() -> None:
    labels = torch.randint(0, GROUP + 9, (1, 100, 97), generator=torch.Generator().manual_seed(0))
    labels[0, 40:60] = GROUP  # the first of the second scan
    check(image(labels, 8, GROUP + 9, "uniform", ignore=GROUP - 1))


def test_labels_of_a_byte_have_no_sign() -> None:
    labels = torch.arange(2 * WHOLE, dtype=torch.int64).div(40, rounding_mode="floor").to(torch.uint8)[None]
    for part in (labels, labels[:, -300:]):  # listed, and read by the blocks that draw
        check(image(part, 4, 205, "uniform"))


def test_a_chunk_that_lists_more_than_a_block_holds_at_once() -> None:
    labels = torch.randint(0, 300, (1, 9600), generator=torch.Generator().manual_seed(0))
    check(image(labels, 64, 300, "uniform"))


@pytest.mark.parametrize("every", [6000, 7, 5])
def test_equal_scores_go_by_place_through_all_chunks(every: int) -> None:
    scores = torch.ones(1, 3 * CHUNK)
    scores[0, ::every] = torch.rand(len(scores[0, ::every]), generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.zeros(1, 3 * CHUNK, dtype=torch.int64)
    for per_class in (300, 2 * CHUNK + 90):
        check(Draw(labels, per_class, 1, "hard", scores=scores))


def test_scores_that_a_list_leaves_out_are_left_to_chance() -> None:
    scores = 1 + (torch.arange(WHOLE + 1) % 10 == 9)[None] * 0.5  # the list ends with the last that is drawn by score
    check(Draw(torch.zeros(1, WHOLE + 1, dtype=torch.uint8), 2000, 1, "hard", scores=scores))


def unseen(pixels: int, image: int, seed: int) -> Tensor:
    """The pixels of a class that no spot falls on, of those by which a low score is looked for."""
    share = pixels // SPOTS
    place = torch.arange(SPOTS)
    hashed = draws._mix(draws._mix(torch.tensor([seed ^ 9])) + image)
    spots = place * share + ((draws._mix(hashed + place) & 0xFFFFFF) * share >> 24)
    seen = torch.zeros(pixels, dtype=torch.bool)
    seen[spots] = True
    return ~seen


def test_a_class_whose_list_would_overflow_is_read_from_the_image(gpu: Any) -> None:
    pixels, seed = 4 * SPOTS, 3
    labels = torch.where(unseen(pixels, 0, seed), 0, 1)[None].to(torch.uint8)
    call = image(labels, 40, 2, "hard", seed=seed)
    before = gpu.bytes_read()
    check(call)
    assert gpu.bytes_read() - before > 5 * pixels  # two passes, the spots, and then by the block that draws


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_label_is_read_twice(strategy: str, dtype: torch.dtype, gpu: Any) -> None:
    call = image(torch.randint(0, 4, (2, 300, 260)).to(dtype), 32, 4, strategy)
    before = gpu.bytes_read()
    native.sample(*call.arguments)
    twice = 2 * call.labels.numel() * call.labels.element_size()
    few = call.labels.element_size() * 2 * 4 * (4 * 32 + 500 + (SPOTS if strategy == "hard" else 0))  # listed ones
    assert twice <= gpu.bytes_read() - before <= twice + few


def test_launches(gpu: Any) -> None:
    small, large, spread = (2, 64, 64), (2, 65, 64), (1, 257, 256)
    for shape, strategy, launches in (
        (small, "uniform", 1), (small, "hard", 1), (small, "stratified", 3), (large, "uniform", 4),
        (large, "hard", 5), (large, "stratified", 3), (spread, "stratified", 4),
    ):  # fmt: skip
        labels = torch.zeros(shape, dtype=torch.uint8)
        before = gpu.launches()
        native.sample(labels, None, labels.float(), torch.tensor([0]), 4, 3, -1, strategy, 0)
        assert gpu.launches() - before == launches


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("classes", [1, 4, 19, 300, 5000])
@pytest.mark.parametrize("spatial", [(40,), (64, 64), (128, 128), (1024, 2048), (128, 128, 128), (512, 512, 512)])
@pytest.mark.parametrize("images", [1, 8, 500])
def test_memory(images: int, spatial: tuple[int, ...], classes: int, strategy: str, gpu: Any) -> None:
    per_class, pixels = 64, torch.Size(spatial).numel()
    taken = 4 * gpu.sample_scratch(images, spatial, classes, per_class, STRATEGIES.index(strategy))
    places, cells = images * classes * per_class, 4 ** len(spatial) if strategy == "stratified" else 1
    a_class = 512 + 128 * cells + 4 * pixels / 2**14  # bytes: what is kept of each chunk and cell, and the last level
    kinds = 2 if strategy == "hard" else 1
    assert taken <= 5 * kinds * images * pixels + 24 * places + images * classes * a_class
    assert taken == 0 or pixels > WHOLE or strategy == "stratified"


def test_two_volumes_take_less_than_half_a_megabyte(gpu: Any) -> None:
    taken = [4 * gpu.sample_scratch(2, (128, 128, 128), 4, 64, place) for place in range(len(STRATEGIES))]
    assert max(taken[:2]) < 0.4e6
    assert taken[2] < 1.6e6  # by score there is room for more


def test_every_pixel_of_a_class_is_equally_likely() -> None:
    labels = torch.zeros(120, 12, dtype=torch.int32)
    hits = torch.zeros(12)
    for seed in range(2):
        index, _ = native.sample(labels, None, None, torch.tensor([seed]), 3, 1, -1, "stratified", 0)
        hits += torch.bincount(index % 12, minlength=12)
    assert hits.sum() == 720
    assert 30 < float(hits.min()) <= float(hits.max()) < 95  # 60 expected, each within five standard deviations


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_empty_maps_and_no_place(strategy: str) -> None:
    for shape, per_class, classes in (((0, 4, 4), 3, 2), ((2, 0, 4), 3, 2), ((2, 4, 4), 0, 2), ((2, 4, 4), 3, 0)):
        labels = torch.zeros(shape, dtype=torch.int64)
        index, label = native.sample(labels, None, None, torch.tensor([0]), per_class, classes, -1, strategy, 0)
        assert index.tolist() == label.tolist() == [-1] * (shape[0] * per_class * classes)
