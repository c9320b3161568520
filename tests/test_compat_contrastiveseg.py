# SPDX-License-Identifier: Apache-2.0
"""ContrastiveSeg's loss under its name: its rule of drawing anchors, its formula, and a memory without its faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import interpolate, normalize, softplus

import secl_ops
from benchmarks.baseline import split_evenly
from secl_ops.compat.contrastiveseg import PixelContrastLoss, RegionPixelQueue, _draw_anchors, _of_map
from tests.compat import hold, refused
from tests.draws import examples

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.usefixtures("poisoned")


def maps(images: int, width: int, size: tuple[int, ...], classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A normalised map, its labels and its predictions, of which a third are wrong."""
    random = torch.Generator().manual_seed(seed)
    feats = normalize(torch.randn(images, width, *size, generator=random), dim=1)
    labels = torch.randint(0, classes, (images, *size), generator=random)
    wrong = torch.rand(images, *size, generator=random) < 1 / 3
    return feats, labels, torch.where(wrong, (labels + 1) % classes, labels)


def check_draw(labels: Tensor, predict: Tensor, most: int, most_views: int, ignore: int) -> None:
    """Hold a draw against the published rule, in loops."""
    index, classes = _draw_anchors(labels, predict, most, most_views, ignore)
    assert (len(index), index.dtype) == (most, torch.int64)
    kept = index >= 0
    flat, drawn = labels.flatten(), index[kept]
    assert len(drawn.unique()) == len(drawn)
    assert torch.equal(flat[drawn], classes[kept])
    assert (classes[~kept] == -1).all()
    values = {(image, int(value)) for image in range(len(labels)) for value in labels[image].unique()}
    found = [
        (image, value)
        for image, value in sorted(values)
        if value != ignore and value >= 0 and int((labels[image] == value).sum()) > most_views
    ]
    views = min(most // max(1, len(found)), most_views)
    assert len(drawn) == views * len(found)
    pixels, wrong = labels[0].numel(), predict != labels
    for image, value in found:
        mine = drawn[(drawn // pixels == image) & (flat[drawn] == value)]
        there = labels[image] == value
        hard, easy = int((there & wrong[image]).sum()), int((there & ~wrong[image]).sum())
        expected = split_evenly(hard, easy, views)
        assert int(wrong.flatten()[mine].sum()) == expected[0]
        assert len(mine) == sum(expected)


@pytest.mark.drawn
@examples(150, st.integers(0, 2**31))
def test_any_draw_follows_the_published_rule(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    images, side, classes, views, most = (
        int(torch.randint(1, high, (), generator=random)) for high in (5, 9, 7, 12, 60)
    )
    labels = torch.randint(-2, classes, (images, side, side), generator=random)
    wrong = torch.rand(labels.shape, generator=random) < torch.rand((), generator=random)
    torch.manual_seed(seed)
    check_draw(labels, torch.where(wrong, labels + 1, labels), most, views, classes - 2)


def test_every_pixel_of_a_kind_is_equally_likely() -> None:
    """Of 12 hard pixels 5 are drawn each time, of 18 easy ones 5."""
    labels = torch.zeros(1, 30, dtype=torch.int64)
    predict = (torch.arange(30)[None] % 5 < 2).long()
    torch.manual_seed(0)
    count = torch.zeros(30)
    for _ in range(3000):
        index, _ = _draw_anchors(labels, predict, 10, 10, -1)
        count[index] += 1
    for kind in (predict[0] == 0, predict[0] == 1):
        assert int(count[kind].sum()) == 5 * 3000
        assert chisquare(count[kind].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("size", [(9, 7), (5, 4, 6), (40,)], ids=str)
def test_the_loss_of_a_batch(size: tuple[int, ...], backend: str, device: str) -> None:
    feats, labels, predict = maps(3, 6, size, 3, 1)
    own = PixelContrastLoss(0.2, 0.1, max_samples=40, max_views=8, backend=backend)
    torch.manual_seed(5)
    index, classes = _draw_anchors(labels.to(device), predict.to(device), 40, 8, -1)
    index, classes = index[index >= 0].cpu(), classes[index >= 0].cpu()

    def ours(given: Tensor) -> Tensor:
        torch.manual_seed(5)
        value: Tensor = own(given.to(device), labels.to(device), predict.to(device)).cpu()
        return value

    def published(given: Tensor) -> Tensor:
        rows = given.movedim(1, -1).flatten(0, -2)[index]
        same = (classes[:, None] == classes[None, :]).to(rows.dtype)
        similarity = rows @ rows.T / 0.2
        negatives = (similarity.exp() * (1 - same)).sum(dim=1, keepdim=True)
        positive = same - torch.eye(len(same), dtype=rows.dtype)
        log_probability = similarity - (similarity.exp() + negatives).log()
        losses = (positive * log_probability).sum(dim=1) / positive.sum(dim=1)
        value: Tensor = losses.mean() * (-0.2 / 0.1)
        return value

    _, gradient = hold(ours, published, [feats], 0.2, terms=2)
    assert int(gradient.movedim(1, -1).flatten(0, -2).any(dim=1).sum()) == len(index)


def test_labels_of_another_size_are_read_as_interpolate_reads_them() -> None:
    feats, labels, predict = maps(2, 6, (6, 5), 3, 1)
    fine = torch.randint(0, 3, (2, 15, 13))
    coarse = interpolate(fine[:, None].double(), (6, 5), mode="nearest")[:, 0].long()
    losses = []
    for given in (fine, coarse, labels):
        torch.manual_seed(0)
        losses.append(PixelContrastLoss(max_views=3)(feats, given, predict))
    assert torch.equal(losses[0], losses[1])
    assert losses[0] != losses[2]


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 4)], ids=str)
def test_nothing_to_draw_gives_0_with_a_graph(size: tuple[int, ...]) -> None:
    feats = torch.randn(size[0], 6, *size[1:]).requires_grad_()
    labels = torch.zeros(size, dtype=torch.int64)
    loss = PixelContrastLoss(max_views=100)(feats, labels, labels)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, feats)[0].any()


def test_an_anchor_without_a_positive_is_no_nan() -> None:
    feats, labels, predict = maps(1, 6, (4, 4), 3, 1)
    loss = PixelContrastLoss(max_samples=3, max_views=1)(feats.requires_grad_(), labels, predict)
    assert loss.item() == 0


def filled(feats: Tensor, labels: Tensor) -> RegionPixelQueue:
    """A memory of four images."""
    queue = RegionPixelQueue(num_classes=4, size=9, dim=6, pixels=3, ignore_label=1)
    torch.manual_seed(3)
    queue.enqueue(feats[:2], labels[:2])
    queue.enqueue(feats[2:], labels[2:])
    return queue


def test_the_memory_holds_rows_of_their_own_class() -> None:
    feats, labels, _ = maps(4, 6, (5, 5), 5, 2)  # class 4 is none of the queue's, class 1 is ignored
    queue = filled(3 * feats, labels)
    rows = normalize(feats.movedim(1, -1).flatten(0, -2), dim=1)
    for value in (0, 2, 3):
        held = queue.singles.keys[queue.singles.key_labels == value]
        mine = rows[labels.flatten() == value]
        assert len(held) == 9
        assert ((held[:, None] - mine[None]).norm(dim=2).amin(dim=1) < 4 * EPS).all()
        means = [normalize(feats[image][:, labels[image] == value].mean(dim=1), dim=0) for image in range(4)]
        regions = queue.regions.keys[queue.regions.key_labels == value]
        assert ((regions - torch.stack(means)).abs() < 4 * EPS).all()
    for one in (queue.singles, queue.regions):
        assert set(one.key_labels.unique().tolist()) == {-1, 0, 2, 3}


def test_a_nan_reaches_the_region_that_holds_it_alone() -> None:
    feats, labels, _ = maps(4, 6, (5, 5), 5, 2)
    whole = filled(feats, labels).regions
    ignored, counted = (int((labels[0] == value).flatten().nonzero()[0]) for value in (1, 2))
    feats[0].flatten(1)[:, ignored] = torch.nan
    assert torch.equal(filled(feats, labels).regions.keys, whole.keys)
    feats[0].flatten(1)[:, counted] = torch.nan
    spoiled = filled(feats, labels).regions
    rows_with_nan = spoiled.keys.isnan().any(dim=1)
    assert spoiled.key_labels[rows_with_nan].tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_regions_are_averaged_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    feats, labels, _ = maps(4, 6, (5, 5), 5, 2)
    with torch.autocast("cpu", dtype=dtype):
        found = filled(feats, labels).regions.keys
    assert torch.equal(found, filled(feats, labels).regions.keys)


@pytest.mark.parametrize(("old", "new"), [(6, 74), (37, 16), (16, 37), (5, 5)])
def test_labels_are_brought_to_the_map_as_interpolate_does(old: int, new: int) -> None:
    labels = torch.arange(old * old).view(1, old, old)
    found = _of_map(labels, torch.zeros(1, 3, new, new))
    assert torch.equal(found, interpolate(labels[None].float(), size=(new, new), mode="nearest")[0].long())


def test_the_loss_against_the_memory(backend: str, device: str) -> None:
    """Anchors see every row of the memory: none is taken for their own place."""
    feats, labels, predict = maps(4, 6, (5, 5), 4, 2)
    queue = filled(feats, labels).to(device)
    own = PixelContrastLoss(0.2, 0.1, max_samples=40, max_views=3, ignore_label=1, backend=backend)
    torch.manual_seed(5)
    index, classes = _draw_anchors(labels.to(device), predict.to(device), 40, 3, 1)
    index, classes = index[index >= 0].cpu(), classes[index >= 0].cpu()
    keys = torch.cat([queue.regions.keys, queue.singles.keys]).cpu()
    key_labels = torch.cat([queue.regions.key_labels, queue.singles.key_labels]).cpu()

    def ours(given: Tensor) -> Tensor:
        torch.manual_seed(5)
        value: Tensor = own(given.to(device), labels.to(device), predict.to(device), queue).cpu()
        return value

    def published(given: Tensor) -> Tensor:
        rows = given.movedim(1, -1).flatten(0, -2)[index]
        similarity = rows @ keys.to(rows.dtype).T / 0.2
        same = classes[:, None] == key_labels[None, :]
        other = ~same & (key_labels >= 0)[None, :]
        lse = similarity.masked_fill(~other, -torch.inf).logsumexp(dim=1, keepdim=True)
        losses = torch.where(same, softplus(lse - similarity), 0.0).sum(dim=1) / same.sum(dim=1)
        value: Tensor = 2 * losses.mean()
        return value

    hold(ours, published, [feats], 0.2, terms=2)


def test_half_maps_are_summed_in_fp32_also_against_the_memory() -> None:
    feats, labels, predict = maps(4, 6, (5, 5), 4, 2)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = feats.to(dtype)
        for queue in (None, filled(rounded, labels)):
            losses = []
            for given in (rounded.requires_grad_(), rounded.detach().float()):
                torch.manual_seed(0)
                losses.append(PixelContrastLoss(0.2, max_views=3)(given, labels, predict, queue))
            assert losses[0].dtype == torch.float32
            assert (losses[0] - losses[1]).abs() <= 8 * torch.finfo(dtype).eps * losses[1]
            losses[0].backward()
            assert rounded.grad is not None
            assert rounded.grad.dtype == dtype


def test_it_compiles_to_one_graph() -> None:
    """The compiler draws other pixels: it has the generator's numbers in another order."""
    feats, labels, predict = maps(4, 6, (5, 5), 2, 2)
    feats.requires_grad_()
    queue = RegionPixelQueue(num_classes=2, size=9, dim=6)
    queue.enqueue(feats, labels)
    torch._dynamo.reset()
    own = PixelContrastLoss(0.5, max_samples=8, max_views=1)
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    for memory in (None, queue):
        loss = compiled(feats, labels, predict, memory)
        (gradient,) = torch.autograd.grad(loss, feats)
        assert math.isfinite(loss.item())
        assert int(gradient.movedim(1, -1).flatten(0, -2).any(dim=1).sum()) == 8


MAPS = maps(2, 6, (4, 4), 3, 0)
OWN = PixelContrastLoss()
WRONG: Any = "2"
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "temperature": (lambda: PixelContrastLoss(0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    "base": (lambda: PixelContrastLoss(0.1, -1.0), ValueError, "base_temperature must be finite and above 0; got -1.0"),
    "samples": (lambda: PixelContrastLoss(max_samples=0), ValueError, "max_samples must be at least 1; got 0"),
    "views": (lambda: PixelContrastLoss(max_views=WRONG), TypeError, "max_views must be an int; got str"),
    "ignore": (lambda: PixelContrastLoss(ignore_label=WRONG), TypeError, "ignore_label must be an int; got str"),
    "feats": (lambda: OWN(MAPS[0][0, 0], *MAPS[1:]), ValueError, "feats must have shape [B, D, *spatial]"),
    "labels": (lambda: OWN(MAPS[0], MAPS[1][:1], MAPS[2]), ValueError, "labels must have the batch and the number of"),
    "kind": (lambda: OWN(MAPS[0], MAPS[1].float(), MAPS[2]), TypeError, "labels must hold integers"),
    "predict": (lambda: OWN(MAPS[0], MAPS[1], MAPS[2][:, 1:]), ValueError,
                "predict must have shape (2, 4, 4), one class per pixel"),
    "logits": (lambda: OWN(MAPS[0], MAPS[1], MAPS[0]), TypeError,
               "predict must hold the predicted class of each pixel; got"),
    "no predict": (lambda: OWN(MAPS[0], MAPS[1], None), TypeError, "predict must be a torch.Tensor; got NoneType"),
    "queue": (lambda: OWN(*MAPS, secl_ops.ClassQueue(3, 4, 6)), TypeError,
              "queue must be a RegionPixelQueue; got ClassQ"),
    "width": (lambda: OWN(*MAPS, RegionPixelQueue(3, 4, 5)), ValueError,
              "queue must be as wide as feats, 6; it was made"),
    "pixels": (lambda: RegionPixelQueue(3, 4, 5, pixels=0), ValueError, "pixels must be at least 1; got 0"),
    "size": (lambda: RegionPixelQueue(3, 0, 5), ValueError, "size must be at least 1; got 0"),
    "enqueued": (lambda: RegionPixelQueue(3, 4, 5).enqueue(*MAPS[:2]), ValueError, "rows must be 5 wide"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    refused(*REFUSED[name])


def test_options_are_shown() -> None:
    assert repr(OWN) == (
        "PixelContrastLoss(temperature=0.1, base_temperature=0.07, max_samples=1024, max_views=100, ignore_label=-1)"
    )
