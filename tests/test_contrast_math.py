# SPDX-License-Identifier: Apache-2.0
"""The mathematics that the C++ and the CUDA kernels share, number by number against fp64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from secl_ops.engines.draws import _priorities

EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def mathematics(emulated: Any) -> Any:
    """csrc/contrast_math.h and csrc/random.h, one number at a time."""
    return torch.ops.secl_mathematics


def test_softplus_and_sigmoid(mathematics: Any) -> None:
    gap = torch.cat([torch.linspace(-80, 80, 4001), torch.linspace(-1, 1, 4001)])
    softplus, sigmoid = mathematics.attraction(gap)
    wide = gap.double()
    for found, truth in ((softplus, torch.logaddexp(wide, torch.zeros(1).double())), (sigmoid, torch.sigmoid(wide))):
        error = ((found - truth) / truth).abs()
        # exp(-|gap|) comes from the C library, within one rounding of an exponent that is exact.
        assert error.max() < 4 * EPS


def test_softplus_and_sigmoid_at_the_ends(mathematics: Any) -> None:
    softplus, sigmoid = mathematics.attraction(torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]))
    assert softplus.nan_to_num(7.0, posinf=8.0)[:3].tolist() == [8.0, 0.0, 7.0]
    assert sigmoid.nan_to_num(7.0).tolist() == [1.0, 0.0, 7.0, 0.5]
    assert abs(softplus[3].item() - math.log(2)) < EPS


def test_which_pairs_attract_and_which_repel(mathematics: Any) -> None:
    table = list(itertools.product((0, -1), repeat=4))
    comparable, same, attract, repel = (torch.tensor(column, dtype=torch.int32) for column in zip(*table, strict=True))
    bits = mathematics.pair_mask(comparable, same, attract, repel).tolist()
    for (is_comparable, is_same, attracts, repels), found in zip(table, bits, strict=True):
        assert bool(found & 1) == bool(is_comparable and is_same and attracts)
        assert bool(found & 2) == bool(is_comparable and not is_same and repels)


@pytest.mark.parametrize("negatives_only", [False, True])
def test_the_coefficient_is_the_derivative_of_the_loss(negatives_only: bool, mathematics: Any) -> None:
    """One anchor of two positives and three negatives, differentiated by autograd in fp64."""
    similarity = torch.tensor([1.5, -0.3, 0.8, 2.1, -1.2], dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([1, 1, 2, 2, 2], dtype=torch.int32)
    lse = torch.logsumexp(similarity[bits == 2] if negatives_only else similarity, 0)
    gap = lse - similarity[:2]
    loss = torch.logaddexp(gap, torch.zeros_like(gap)).mean() if negatives_only else gap.mean()
    (truth,) = torch.autograd.grad(loss, similarity)
    pull = torch.sigmoid(gap).mean().item() if negatives_only else 1.0
    e = torch.exp(similarity - lse).detach().float()
    found = mathematics.coefficient(e, bits, pull, 0.5, negatives_only)
    assert ((found - truth).abs() < 4 * EPS).all()
    outside = mathematics.coefficient(e, torch.zeros_like(bits), pull, 0.5, negatives_only)
    assert outside.eq(0).all()


def test_running_sums_merge(mathematics: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    peaks, sums = 200 * torch.rand(50, generator=generator) - 100, torch.rand(50, generator=generator) + 0.1
    peak, total = mathematics.merge(peaks, sums)
    assert peak == peaks.max()
    truth = (sums.double() * torch.exp2(peaks.double() - peaks.max())).sum()
    assert abs(total - truth) < 50 * EPS * truth
    assert mathematics.merge(torch.zeros(0), torch.zeros(0))[1] == 0
    assert mathematics.merge(torch.tensor([3.0, torch.finfo(torch.float32).max]), torch.tensor([1.0, torch.inf]))[
        1
    ].isinf()


def test_chances_are_those_of_the_reference(mathematics: Any) -> None:
    for seed in (0, 1, -5, 2**62):
        expected = _priorities(torch.tensor([seed]), 1, 1000)[0] >> 28
        assert torch.equal(mathematics.chance(torch.arange(1000), seed), expected)
