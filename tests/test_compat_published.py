# SPDX-License-Identifier: Apache-2.0
"""Published losses: their formulas written out for each anchor, and how often their draws take what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import cosine_similarity

import secl_ops
from secl_ops.compat import dense, published
from tests.budget import assert_within_budget
from tests.cases import labels, rows
from tests.compat import hold, refused

pytestmark = pytest.mark.usefixtures("poisoned")
CLASSES = 4


def one_of(anchor: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over positives of -log of its share among itself and all negatives, for one anchor [D]."""
    if not len(positives):
        return anchor.sum() * 0
    good, bad = (cosine_similarity(anchor[None], each.to(anchor.dtype), dim=1) / temperature
                 for each in (positives, negatives))  # fmt: skip
    exponential: Tensor = good.exp()
    return -(exponential / (exponential + bad.exp().sum())).log().mean()


def by_class(losses: Sequence[Tensor], of: Tensor, count: int) -> Tensor:
    """Mean over classes of the mean over their anchors."""
    found = [torch.stack([loss for loss, own in zip(losses, of, strict=True) if own == value]).mean()
             for value in range(CLASSES) if (of == value).any()]  # fmt: skip
    total: Tensor = torch.stack(found).sum() / count
    return total


def against_means(anchors: Tensor, of: Tensor, means: Tensor, negatives: Sequence[Tensor], present: int) -> Tensor:
    """The loss of ReCo, U2PL and MONA from the negatives of each class."""
    losses = [
        one_of(anchor, means[own : own + 1][means[own : own + 1].any(dim=1)], negatives[own], 0.5) if own >= 0
        else anchor.sum() * 0
        for anchor, own in zip(anchors, of.tolist(), strict=True)
    ]  # fmt: skip
    return by_class(losses, of, present)


@pytest.mark.parametrize("absent", [False, True])
def test_reco(absent: bool, backend: str, device: str) -> None:
    keys, of_keys = rows(50, 6, 1), labels(50, CLASSES, 1, ignored=0.1)
    of = labels(14, CLASSES, 2, ignored=0.1)
    if absent:
        of_keys = torch.where(of_keys == 2, -1, of_keys)
    means, count = secl_ops.class_means(keys, of_keys, CLASSES)
    torch.manual_seed(4)
    drawn = published._draw_alike(means.to(device), count.to(device), of_keys.to(device), 9, 0.5).cpu()
    assert ((drawn >= 0).all(dim=1) | torch.tensor([False, False, absent, False])).all()

    def ours(queries: Tensor) -> Tensor:
        torch.manual_seed(4)
        return published.reco(
            queries.to(device), of.to(device), keys.to(device, queries.dtype), of_keys.to(device),
            num_classes=CLASSES, negatives=9, backend=backend,
        ).cpu()  # fmt: skip

    hold(
        ours,
        lambda queries: against_means(queries, of, means, [keys[row] for row in drawn], int((count > 0).sum())),
        [rows(14, 6, 3)],
        0.5,
    )


def test_reco_draws_classes_that_are_like_its_own_more_often() -> None:
    """A class three times as large is not drawn more often for that, and its keys are equally likely."""
    keys, of_keys = rows(40, 6, 1), torch.tensor([0] * 8 + [1] * 20 + [2] * 4 + [3] * 8)
    means, count = secl_ops.class_means(keys, of_keys, CLASSES)
    torch.manual_seed(0)
    drawn = published._draw_alike(means, count, of_keys, 20_000, 0.5)
    for own in range(CLASSES):
        others = [value for value in range(CLASSES) if value != own]
        expected = (cosine_similarity(means[own : own + 1], means[others], dim=1) / 0.5).double().softmax(0)
        found = of_keys[drawn[own]].bincount(minlength=CLASSES)
        assert found[own] == 0
        assert chisquare(found[others].numpy(), (expected * 20_000).numpy()).pvalue > 1e-3
        for value in others:
            inside = drawn[own].bincount(minlength=40)[of_keys == value]
            assert chisquare(inside.numpy()).pvalue > 1e-4


def test_reco_of_one_class_is_0() -> None:
    queries = rows(5, 6, 1).requires_grad_()
    loss = published.reco(queries, torch.zeros(5).long(), rows(9, 6, 2), torch.zeros(9).long(), num_classes=3)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, queries)[0].any()


def memory() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels of anchors, prototypes of which one is absent, keys and their classes, of which one has none."""
    prototypes = rows(CLASSES, 6, 5)
    prototypes[1] = 0
    of_keys = labels(40, CLASSES, 7, ignored=0.2)
    return labels(15, CLASSES, 6, ignored=0.1), prototypes, rows(40, 6, 8), torch.where(of_keys == 3, -1, of_keys)


@pytest.mark.parametrize("name", ["u2pl", "u2pl, all keys", "mona", "mona, one by one"])
def test_u2pl_and_mona(name: str, backend: str, device: str) -> None:
    of, prototypes, keys, of_keys = memory()
    choices: dict[str, dict[str, Any]] = {
        "u2pl": {"negatives": 7}, "u2pl, all keys": {"negatives": None}, "mona": {"negatives": 12, "strata": 3},
        "mona, one by one": {"negatives": 7, "strata": 3, "antithetic": False},
    }  # fmt: skip
    options = choices[name]
    function: Any = published.u2pl if name.startswith("u2pl") else published.mona
    given = of.to(device), prototypes.to(device), keys.to(device), of_keys.to(device)

    def ours(anchors: Tensor) -> Tensor:
        torch.manual_seed(4)
        value: Tensor = function(anchors.to(device), *given, **options, backend=backend).cpu()
        return value

    torch.manual_seed(4)
    if name == "u2pl, all keys":
        negatives = [keys[of_keys == value] for value in range(CLASSES)]
    else:
        here = torch.device(device)
        chance = (
            torch.rand(CLASSES, 7, dtype=torch.float64, device=here)
            if name == "u2pl"
            else published._spread(CLASSES, options["negatives"], 3, options.get("antithetic", True), here)
        )
        drawn = published._draw_own(chance, of_keys.to(device)).cpu()
        assert torch.equal(drawn[3], torch.full_like(drawn[3], -1))
        assert all((of_keys[drawn[value]] == value).all() for value in (0, 1, 2))
        negatives = [keys[row[row >= 0]] for row in drawn]
    hold(ours, lambda anchors: against_means(anchors, of, prototypes, negatives, CLASSES - 1), [rows(15, 6, 3)], 0.5)


def test_stratified_draws_take_as_many_of_each_stratum_and_mirror_each_other() -> None:
    torch.manual_seed(0)
    here = torch.device("cpu")
    for antithetic in (False, True):
        places = published._spread(3, 64, 8, antithetic, here)
        assert ((places >= 0) & (places <= 1)).all()
        assert torch.equal((places * 8).long().clamp(max=7), (torch.arange(64) % 8).expand(3, 64))
        first, second = (places * 8 - torch.arange(64) % 8).view(3, 4, 2, 8).unbind(2)
        assert bool(((first + second - 1).abs() < 1e3 * torch.finfo(torch.float64).eps).all()) is antithetic
    few, none = (published._spread(1, count, 16, True, here)[0] for count in (8, 9))
    assert sorted((few * 8).long().clamp(max=7).tolist()) == list(range(8))  # fewer than strata: over the whole list
    assert none.max() <= 1
    chance = published._spread(1, 64_000, 8, True, here)
    count = published._draw_own(chance, torch.zeros(20).long())[0].bincount(minlength=20)
    assert chisquare(count.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("subclass", ["inner", "boundary"])
def test_spcl(subclass: str, backend: str, device: str) -> None:
    """Another part of the anchor's own class is neither pulled nor pushed; one class has no boundary at all."""
    of, of_inner, of_boundary = (labels(n, CLASSES, seed, ignored=0.1) for seed, n in ((1, 14), (2, 18), (3, 11)))
    inner, boundary = rows(18, 6, 4), rows(11, 6, 5)
    given = [one.to(device) for one in (of, inner, of_inner, boundary, of_boundary)]
    own, of_own = (inner, of_inner) if subclass == "inner" else (boundary, of_boundary)
    counted = torch.where((of[:, None] == of_own[None, :]).any(dim=1), of, -1)
    assert bool((counted == of).all()) is (subclass == "inner")
    both, of_both = torch.cat([inner, boundary]), torch.cat([of_inner, of_boundary])

    def original(anchors: Tensor) -> Tensor:
        losses = [
            one_of(anchor, own[of_own == value], both[(of_both != value) & (of_both >= 0)], 0.5)
            for anchor, value in zip(anchors, of.tolist(), strict=True)
        ]
        return by_class(losses, counted, len(set(counted.tolist()) - {-1}))

    hold(
        lambda anchors: published.spcl(anchors.to(device), *given, subclass=subclass, backend=backend).cpu(),
        original,
        [rows(14, 6, 3)],
        0.5,
    )


NEIGHBOURS = torch.tensor([[1, 2], [0, 3], [3, 4], [4, 0], [2, 1]])


def test_a_region_is_no_neighbour_of_its_own_and_minus_1_is_none() -> None:
    first, second = rows(15, 6, 1).view(3, 5, 6), rows(15, 6, 2).view(3, 5, 6)
    more = torch.cat([NEIGHBOURS, torch.arange(5)[:, None], torch.full((5, 1), -1)], dim=1)
    given, plain = (dense.chaitanya_local(first, second, neighbours=each) for each in (more, NEIGHBOURS))
    exact = dense.chaitanya_local(first.double(), second.double(), neighbours=NEIGHBOURS)
    assert_within_budget("loss", given, exact, plain)


@pytest.mark.parametrize("neighbours", [None, NEIGHBOURS], ids=["all others", "neighbours"])
def test_chaitanya_local(neighbours: Tensor | None, backend: str, device: str) -> None:
    def original(first: Tensor, second: Tensor) -> Tensor:
        losses = []
        for image in range(3):
            for own, other in ((first[image], second[image]), (second[image], first[image])):
                for region in range(5):
                    near = [n for n in range(5) if n != region] if neighbours is None else neighbours[region].tolist()
                    negatives = torch.cat([own[near], other[near]])
                    losses.append(one_of(own[region], other[region : region + 1], negatives, 0.2))
        return torch.stack(losses).mean()

    given = None if neighbours is None else neighbours.to(device)
    hold(
        lambda first, second: dense.chaitanya_local(
            first.to(device), second.to(device), neighbours=given, temperature=0.2, backend=backend
        ).cpu(),
        original,
        [rows(15, 6, 1).view(3, 5, 6), rows(15, 6, 2).view(3, 5, 6)],
        0.2,
    )


@pytest.mark.parametrize("size", [(3, 2), (7,), (2, 2, 2)], ids=str)
def test_densecl(size: tuple[int, ...], backend: str, device: str) -> None:
    keys, left, right = (
        rows(2 * torch.Size(size).numel(), width, seed).view(2, *size, width).movedim(-1, 1)
        for width, seed in ((6, 1), (4, 2), (4, 3))
    )
    queue = rows(11, 6, 4)

    def original(queries: Tensor) -> Tensor:
        losses = []
        for image in range(2):
            q, k, x, y = (each[image].flatten(1).T for each in (queries, keys, left, right))
            for cell in range(len(q)):
                match = int(cosine_similarity(x[cell : cell + 1].double(), y.double(), dim=1).argmax())
                losses.append(one_of(q[cell], k[match : match + 1], queue, 0.2))
        return torch.stack(losses).mean()

    hold(
        lambda queries: dense.densecl(
            *(each.to(device) for each in (queries, keys, left, right, queue)), backend=backend
        ).cpu(),
        original,
        [rows(keys[:, 0].numel(), 6, 5).view(2, *size, 6).movedim(-1, 1)],
        0.2,
    )


def calls(dtype: torch.dtype) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Each function as one of what learns, the rest in this dtype."""
    of, prototypes, keys, of_keys = memory()
    prototypes, keys = prototypes.to(dtype), keys.to(dtype)
    anchors, grid = rows(15, 6, 3).to(dtype), rows(12, 6, 1).view(2, 6, 6).to(dtype)
    maps = grid.transpose(1, 2).reshape(2, 6, 3, 2)
    return {
        "reco": (anchors, lambda one: published.reco(one, of, keys, of_keys, num_classes=CLASSES)),
        "u2pl": (anchors, lambda one: published.u2pl(one, of, prototypes, keys, of_keys)),
        "mona": (anchors, lambda one: published.mona(one, of, prototypes, keys, of_keys)),
        "spcl": (anchors, lambda one: published.spcl(one, of, keys, of_keys, keys[3:], of_keys[3:], subclass="inner")),
        "chaitanya_local": (grid, lambda one: dense.chaitanya_local(one, grid.flip(0))),
        "densecl": (maps, lambda one: dense.densecl(one, maps.flip(0), maps, maps.flip(0), keys)),
    }


NAMES = tuple(calls(torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_rows_are_summed_in_fp32(name: str, dtype: torch.dtype) -> None:
    losses = []
    for kind in (dtype, torch.float64):
        leaf, call = calls(kind)[name]
        torch.manual_seed(0)
        losses.append(call(leaf.requires_grad_()))
        losses[-1].backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == kind
    assert losses[0].dtype == torch.float32
    near = losses[1].detach().to(dtype)
    assert_within_budget(name, losses[0].detach(), losses[1].detach(), near, amplification=20)


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_one_graph(name: str) -> None:
    leaf, call = calls(torch.float32)[name]
    torch._dynamo.reset()
    loss = torch.compile(call, fullgraph=True, backend="aot_eager")(leaf.requires_grad_())
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss > 0
    assert gradient.isfinite().all()
    if name in ("spcl", "chaitanya_local", "densecl"):  # the others draw
        assert_within_budget(name, loss.detach(), call(leaf).detach().double(), call(leaf).detach(), amplification=20)


OF, MEANS, KEYS, OF_KEYS = memory()
ANCHORS, REGIONS, MAP = rows(15, 6, 3), rows(15, 6, 1).view(3, 5, 6), torch.ones(2, 6, 3, 2)
GIVEN = (ANCHORS, OF, MEANS, KEYS, OF_KEYS)
PARTS = (ANCHORS, OF, KEYS, OF_KEYS, KEYS, OF_KEYS)
local: Any = dense.chaitanya_local
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "queries": (lambda: published.reco(ANCHORS[0], OF, KEYS, OF_KEYS, num_classes=4), ValueError,
                "queries must have two"),
    "query labels": (lambda: published.reco(ANCHORS, OF[1:], KEYS, OF_KEYS, num_classes=4), ValueError,
                     "query_labels must"),
    "keys": (lambda: published.reco(ANCHORS, OF, KEYS[:, 1:], OF_KEYS, num_classes=4), ValueError,
             "keys and queries must have the same width; got 5 and 6"),
    "key labels": (lambda: published.reco(ANCHORS, OF, KEYS, OF_KEYS.float(), num_classes=4), TypeError,
                   "key_labels must"),
    "negatives": (lambda: published.reco(*PARTS[:4], num_classes=4, negatives=0), ValueError,
                  "negatives must be at least 1"),
    "classes": (lambda: published.reco(*PARTS[:4], num_classes=0), ValueError, "num_classes must be at least 1; got 0"),
    "prototypes": (lambda: published.u2pl(ANCHORS, OF, MEANS[:, 1:], KEYS, OF_KEYS), ValueError,
                   "prototypes and anchors must have the same width"),
    "u2pl": (lambda: published.u2pl(*GIVEN, negatives=-1), ValueError, "negatives must be at least 1; got -1"),
    "key classes": (lambda: published.mona(*GIVEN[:4], OF_KEYS[1:]), ValueError, "key_classes must have shape [40]"),
    "mona": (lambda: published.mona(*GIVEN, negatives=0), ValueError, "negatives must be at least 1; got 0"),
    "strata": (lambda: published.mona(*GIVEN, strata=0), ValueError, "strata must be at least 1; got 0"),
    "antithetic": (lambda: published.mona(*GIVEN, antithetic=ONE), TypeError, "antithetic must be a bool; got int"),
    "temperature": (lambda: published.u2pl(*GIVEN, temperature=0.0), ValueError,
                    "temperature must be finite and above 0"),
    "subclass": (lambda: published.spcl(*PARTS, subclass="edge"), ValueError,
                 "subclass must be one of 'inner', 'boundary'"),
    "boundary": (lambda: published.spcl(*PARTS[:4], KEYS[:, 1:], OF_KEYS, subclass="inner"), ValueError,
                 "boundary and anchors must have the same width"),
    "first": (lambda: local(REGIONS[0], REGIONS), ValueError, "first must have shape [images, regions, width], as the"),
    "second": (lambda: local(REGIONS, REGIONS[1:]), ValueError,
               "second must have shape [images, regions, width], as the"),
    "integers": (lambda: local(REGIONS.long(), REGIONS), TypeError, "first must be floating"),
    "neighbours": (lambda: local(REGIONS, REGIONS, neighbours=NEIGHBOURS[1:]), ValueError,
                   "neighbours must have shape [5, K], a row for each region; got (4, 2)"),
    "numbers": (lambda: local(REGIONS, REGIONS, neighbours=NEIGHBOURS.float()), TypeError,
                "neighbours must hold numbers"),
    "map": (lambda: dense.densecl(MAP[0, 0], MAP, MAP, MAP, KEYS), ValueError,
            "queries must have shape [B, D, *spatial]"),
    "cells": (lambda: dense.densecl(MAP, MAP[:, :, 1:], MAP, MAP, KEYS), ValueError,
              "keys must have the batch and the cells of queries, (2, 6, 3, 2); got (2, 6, 2, 2)"),
    "no cell": (lambda: dense.densecl(MAP[:, :, :0], MAP[:, :, :0], MAP, MAP, KEYS), ValueError,
                "queries must have a cell; got shape"),
    "features": (lambda: dense.densecl(MAP, MAP, MAP, MAP[:, 1:], KEYS), ValueError,
                 "key_features must be as wide as features, 6; got 5"),
    "queue": (lambda: dense.densecl(MAP, MAP, MAP, MAP, KEYS[:, 1:]), ValueError,
              "queue and queries must have the same"),
}  # fmt: skip
ONE: Any = 1


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    refused(*REFUSED[name])
