# SPDX-License-Identifier: Apache-2.0
"""The C++ sigmoid loss at every cut of the work: its instruction sets, threads, open tiles and what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, reference
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import Guarded, alone, separate
from tests.problems import prototypes, sorted_classes, unit
from tests.sigmoid_oracle import sigmoid
from tests.test_native import problem
from tests.test_sigmoid import check

pytestmark = pytest.mark.usefixtures("built", "poisoned")
NAMES = ("loss", "tilt", "count", "anchor gradient", "key gradient")


class Problem(NamedTuple):
    """One call of both operations."""

    anchors: Tensor
    keys: Tensor
    pairs: Pairs
    flags: Flag
    weight: Tensor
    logit: Logit = Logit(6.0, -2.5)

    def run(self, backend: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        rows = self.anchors.to(dtype), self.keys.to(dtype)
        state = backend.sigmoid_forward(*rows, self.pairs, self.logit, self.flags | Flag.ANCHOR_GRADIENT)
        return [*state, backend.sigmoid_backward(self.weight.to(dtype), *rows, self.pairs, self.logit, self.flags)]

    def keeps_the_budget(self) -> None:
        truth, plain, found = self.run(reference, torch.float64), self.run(reference), self.run(native)
        assert torch.equal(found[2], truth[2])
        for name, *values in zip(NAMES, found, truth, plain, strict=True):
            if name != "count":
                assert_within_budget(name, *values, amplification=4 * 6.0)


def every_option(seed: int, **options: Any) -> Problem:
    """Ignored rows that hold NaN, groups, exclusions, and limits on what attracts and repels."""
    given = problem(seed, **options)
    weight = torch.where(torch.arange(len(given.grad_loss)) % 5 == 0, 0.0, given.grad_loss)
    return Problem(given.anchors, given.keys, given.pairs, given.flags & Flag.SELF, weight)


def plain(n: int, m: int | None, classes: int = 3, d: int = 24) -> Problem:
    """Sorted classes, large enough for tiles in which all pairs attract, or all repel; None: self-contrast."""
    anchors, shared = unit(n, d, torch.float32), m is None
    keys = anchors if m is None else unit(m, d, torch.float32, 1)
    pairs = sorted_classes(n, len(keys), shared=shared)
    if classes == 1:
        pairs = pairs._replace(anchor_labels=pairs.anchor_labels * 0, key_labels=pairs.key_labels * 0)
    return Problem(anchors, keys, pairs, Flag.SELF if shared else Flag(0), torch.arange(n) / n)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_instruction_set_keeps_the_budget(seed: int, shared: bool, isa: str) -> None:
    every_option(seed, shared=shared).keeps_the_budget()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("n", "m"), [(300, 400), (700, 3200), (64, 2000), (193, None), (1000, None), (2311, None)])
def test_every_cut_of_the_work_keeps_the_budget_and_the_bits(
    n: int, m: int | None, classes: int, threads: Callable[[int], None]
) -> None:
    given = plain(n, m, classes)
    given.keeps_the_budget()
    found = given.run(native)
    for count in (2, 3):
        threads(count)
        assert all(map(torch.equal, found, given.run(native)))


@pytest.mark.parametrize("d", [1, 15, 16, 17, 31])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (11, 31), (12, 32), (13, 33), (47, 255), (49, 257)])
def test_sizes_around_every_tile_edge(n: int, m: int, d: int) -> None:
    every_option(n + m + d, n=n, m=m, d=d).keeps_the_budget()


def test_keys_that_attract_alone_and_keys_that_repel_alone() -> None:
    given = plain(300, 220)
    given._replace(pairs=prototypes(300, 220)).keeps_the_budget()
    for start, stop in ((220, 220), (0, 0), (110, 220), (0, 110)):
        given._replace(pairs=given.pairs._replace(positive_start=start, negative_stop=stop)).keeps_the_budget()


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_around_the_tensors_is_read_or_written(shared: bool, isa: str) -> None:
    given = every_option(3, shared=shared, n=101, m=333, d=17)
    guarded = Guarded()
    expected = given.run(native)
    pairs = Pairs._make(guarded(value) if isinstance(value, Tensor) else value for value in given.pairs)
    rows = guarded(given.anchors), guarded(given.keys)
    found = given._replace(anchors=rows[0], keys=rows[1], pairs=pairs, weight=guarded(given.weight)).run(native)
    assert all(map(torch.equal, found, expected))
    assert guarded.untouched()


@pytest.mark.parametrize("shared", [False, True])
def test_an_anchor_of_weight_0_reaches_no_key(shared: bool) -> None:
    given = plain(60, None if shared else 50)
    anchors = given.anchors.clone()
    anchors[7] = torch.nan
    none = given._replace(anchors=anchors, keys=anchors if shared else given.keys, weight=torch.zeros(60))
    assert not none.run(native)[4].any()
    if not shared:
        weight = given.weight.index_fill(0, torch.tensor([7]), 0.0)
        clean, dirty = (each._replace(weight=weight).run(native)[4] for each in (given, none))
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("size", [(5, 40, 17), (100, 30, 48), (210, 500, 100), (200, 64), (450, 40)], ids=str)
def test_half_rows_keep_the_budget_at_every_size(size: tuple[int, ...]) -> None:
    call = separate(*size) if len(size) == 3 else alone(*size)
    check(sigmoid(call, scale=torch.tensor(3.0), bias=torch.tensor(-1.5)).to(torch.bfloat16), "native", "cpu")


def test_more_pairs_than_32_bits_count(threads: Callable[[int], None]) -> None:
    """Two-dimensional rows of two classes: every pair of one class costs one number, every other one another."""
    n = 47_000
    assert n * n > 2**31
    threads(2)
    rows, labels = torch.eye(2)[torch.arange(n) % 2], (torch.arange(n) % 2).int()
    given = Problem(rows, rows, Pairs(labels, labels, None, None, None, 0, n), Flag.SELF, torch.ones(n))
    state = native.sigmoid_forward(rows, rows, given.pairs, given.logit, Flag.SELF)
    near, far = torch.nn.functional.softplus(torch.tensor([-3.5, -2.5], dtype=torch.float64))
    expected = ((n // 2 - 1) * near + n // 2 * far).expand(n)
    assert_within_budget("loss", state.loss, expected, expected.float(), amplification=20)
    assert bool((state.count == n - 1).all())
