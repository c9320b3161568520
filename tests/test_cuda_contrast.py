# SPDX-License-Identifier: Apache-2.0
"""The CUDA contrast kernels, executed on the emulated GPU against fp64 truth: every mode, gradient, width and order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, ordering, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw, surrounded
from tests.problems import (
    ANCHORS,
    HALVES,
    KEYS,
    MODES,
    NAMES,
    Problem,
    check,
    draw,
    every_rule,
    mixed,
    prototypes,
    same,
    sorted_classes,
    unit,
)

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.thinned(5)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule, prototypes])
def test_anchors_and_keys(pairs: Callable[..., Pairs], flags: Flag, dtype: torch.dtype) -> None:
    anchors, keys = unit(290, 40, dtype, 1), unit(420, 40, dtype, 2)
    check(Problem(anchors, keys, pairs(290, 420), 10.0, flags))


@pytest.mark.thinned(5)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule])
def test_self_contrast(pairs: Callable[..., Pairs], flags: Flag, dtype: torch.dtype) -> None:
    rows = unit(400, 40, dtype)
    check(Problem(rows, rows, pairs(400, 400, shared=True), 10.0, flags | Flag.SELF))


@pytest.mark.thinned(5)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 24, 32, 64, 65, 96, 128, 130, 192, 256, 300, 512])
def test_widths(width: int, dtype: torch.dtype, emulated: Any) -> None:
    emulated.set_shared_memory_limit(99 << 10)  # of the smallest GPUs served
    anchors, keys = unit(21, width, dtype, 1), unit(77, width, dtype, 2)
    check(Problem(anchors, keys, every_rule(21, 77), 10.0, Flag.NEGATIVES | Flag.UNIT))
    rows = unit(70, width, dtype, 3)
    check(Problem(rows, rows, mixed(70, 70, shared=True), 10.0, Flag.SELF | Flag.UNIT))


@pytest.mark.parametrize("width", [96, 200, 256, 500])
def test_a_scan_without_a_gradient(width: int, emulated: Any) -> None:
    anchors, keys = unit(140, width, torch.bfloat16, 1), unit(230, width, torch.bfloat16, 2)
    problem = Problem(anchors, keys, every_rule(140, 230), 10.0, Flag.NEGATIVES | Flag.UNIT)
    truth, plain = problem.run(reference, wide=True), problem.run(reference)
    for limit in (99 << 10, 227 << 10):
        emulated.set_shared_memory_limit(limit)
        found = native.contrast_forward(*problem[:5])
        for name, actual, exact, rough in zip(NAMES[:4], found[:4], truth, plain, strict=False):
            values = [shown.nan_to_num(neginf=0.0) for shown in (actual.double(), exact.double(), rough.float())]
            assert_within_budget(name, *values, amplification=40.0)


@pytest.mark.parametrize(("anchors", "keys"), [(1, 1), (1, 200), (15, 31), (16, 32), (17, 33), (129, 65), (300, 1)])
def test_ragged_sizes(anchors: int, keys: int) -> None:
    rows = unit(anchors, 20, torch.bfloat16, 1), unit(keys, 20, torch.bfloat16, 2)
    for flags in (Flag(0), Flag.NEGATIVES):
        check(Problem(*rows, mixed(anchors, keys), 10.0, flags))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
def test_scan_known_and_frozen_keys(flags: Flag, dtype: torch.dtype) -> None:
    anchors, keys = unit(150, 72, dtype, 1), unit(300, 72, dtype, 2)
    raw = (3 * draw(300, 72, seed=2)).to(dtype)
    inverse = 1 / raw.float().norm(dim=1)
    for pairs in (every_rule(150, 300), sorted_classes(150, 300)):
        check(Problem(anchors, keys, pairs, 10.0, flags | Flag.SCAN))
        check(Problem(anchors, keys, pairs, 10.0, flags, known_lse=draw(150, seed=8)))
        check(Problem(anchors, raw, pairs, 10.0, flags, key_inverse=inverse))
        check(Problem(anchors, raw, pairs, 10.0, flags | Flag.SCAN, key_inverse=inverse))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_rows_of_any_length(flags: Flag, dtype: torch.dtype) -> None:
    anchors, keys = (4 * draw(70, 33, seed=1)).to(dtype), (4 * draw(160, 33, seed=2)).to(dtype)
    check(Problem(anchors, keys, mixed(70, 160), 0.5, flags))
    check(Problem(anchors, anchors, mixed(70, 70, shared=True), 0.5, flags | Flag.SELF))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_far_keys_keep_their_weight_at_a_low_temperature(dtype: torch.dtype) -> None:
    near, far = (torch.nn.functional.normalize(1 + 0.1 * draw(rows, 8, seed=rows), dim=1) for rows in (20, 150))
    # exp(-2 * 100) is no fp32 number: the maximum must run.
    check(Problem(near.to(dtype), -far.to(dtype), every_rule(20, 150), 100.0, Flag.UNIT), cancels=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_flat_probabilities_do_not_underflow(dtype: torch.dtype) -> None:
    anchors, keys = unit(20, 130, dtype, 1), -unit(20, 130, dtype, 1).repeat(8, 1)
    check(Problem(anchors, keys, every_rule(20, 160), 35.0, Flag.UNIT))  # some terms are exp(-70) of others


@pytest.mark.parametrize("flags", [*MODES, Flag.SELF | Flag.UNIT], ids=str)
def test_each_gradient_alone(flags: Flag) -> None:
    anchors = unit(40, 90, torch.bfloat16, 1).T  # read at any stride
    keys = anchors if Flag.SELF in flags else unit(170, 40, torch.bfloat16, 2)
    pairs = mixed(90, keys.shape[0], shared=Flag.SELF in flags)
    state = native.contrast_forward(anchors, keys, pairs, 10.0, flags)
    assert state.grad_anchors.shape == (0, 40)
    both = Problem(anchors, keys, pairs, 10.0, flags)
    assert same(both.run(native)[:4], list(state[:4]))
    factors, given = push_and_draw(state), (anchors, keys, pairs, state.lse, 10.0)
    upstream = torch.ones(1).expand(90)  # one number for all rows
    together = native.contrast_backward((upstream, *factors), *given, flags | ANCHORS | KEYS)
    contiguous = native.contrast_backward((torch.ones(90), *factors), *given, flags | ANCHORS | KEYS)
    alone = [native.contrast_backward((upstream, *factors), *given, flags | side) for side in (ANCHORS, KEYS)]
    assert same(list(together), list(contiguous))
    assert torch.equal(together[0], alone[0][0])
    if Flag.SELF not in flags:
        assert torch.equal(together[1], alone[1][1])
        assert alone[0][1].shape == alone[1][0].shape == (0, 40)


@pytest.mark.parametrize("width", [24, 33], ids=["whole units", "ragged"])
def test_nothing_is_read_outside_the_rows(width: int) -> None:
    rows = [unit(count, width, torch.bfloat16, count) for count in (70, 135)]
    pairs = every_rule(70, 135)
    for side, labels in zip(rows, pairs[:2], strict=True):
        side[labels < 0] = torch.nan
    alone = Problem(rows[0], rows[1], pairs, 10.0, Flag.UNIT).run(native)
    (anchors, before), (keys, after) = map(surrounded, rows)
    fields: list[Any] = [surrounded(value)[0] if isinstance(value, Tensor) else value for value in pairs]
    inside = Problem(anchors, keys, Pairs(*fields), 10.0, Flag.UNIT).run(native)
    assert same(alone, inside)
    assert all(values.isfinite().all() for values in alone if values.ndim == 2)
    assert all(buffer[:80].isnan().all() and buffer[-80:].isnan().all() for buffer in (before, after))


def test_rows_off_every_boundary() -> None:
    rows = [unit(count, 24, torch.float16, count) for count in (40, 90)]
    expected = Problem(rows[0], rows[1], mixed(40, 90), 10.0, Flag(0)).run(native)
    moved = [torch.cat([torch.zeros(1, dtype=side.dtype), side.flatten()])[1:].view_as(side) for side in rows]
    assert moved[0].data_ptr() % 16 == 2
    assert same(Problem(moved[0], moved[1], mixed(40, 90), 10.0, Flag(0)).run(native), expected)


@pytest.mark.parametrize("flags", [Flag.UNIT, Flag.NEGATIVES, Flag.SELF | Flag.NEGATIVES], ids=str)
def test_the_same_bits_in_any_order_and_with_any_ring(flags: Flag, emulated: Any) -> None:
    anchors = unit(200, 64, torch.bfloat16, 1)
    keys = anchors if Flag.SELF in flags else unit(400, 64, torch.bfloat16, 2)
    problem = Problem(anchors, keys, mixed(200, keys.shape[0], shared=Flag.SELF in flags), 10.0, flags)
    first = problem.run(native)
    assert same(problem.run(native), first)
    emulated.set_reversed(True)
    assert same(problem.run(native), first)
    for limit in (31 << 10, 41 << 10, 227 << 10):  # one, two and three tiles in flight
        emulated.set_shared_memory_limit(limit)
        assert same(problem.run(native), first)


@pytest.mark.parametrize("flags", [*MODES, Flag.SCAN, Flag.NEGATIVES | Flag.SCAN], ids=str)
def test_splitting_the_columns(flags: Flag, emulated: Any) -> None:
    anchors, keys = unit(130, 130, torch.bfloat16, 1), unit(600, 130, torch.bfloat16, 2)
    problem = Problem(anchors, keys, every_rule(130, 600), 10.0, flags)
    emulated.set_multiprocessors(1)
    launches = emulated.launches()
    whole, one = problem.run(native), emulated.launches() - launches
    emulated.set_multiprocessors(100)
    launches = emulated.launches()
    check(problem)
    assert emulated.launches() - launches > one
    assert torch.equal(problem.run(native)[3], whole[3])


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES | Flag.UNIT], ids=str)
def test_sorting_changes_no_pair(flags: Flag, monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []

    def sorts(anchors: Tensor, keys: Tensor, flags: Flag) -> bool:
        visited.append(anchors)
        return True

    monkeypatch.setattr(ordering, "pays", sorts)
    anchors, keys = unit(150, 40, torch.bfloat16, 1), unit(230, 40, torch.bfloat16, 2)
    for pairs in (mixed, every_rule, prototypes):
        check(Problem(anchors, keys, pairs(150, 230), 10.0, flags))
    for pairs in (mixed, every_rule):
        check(Problem(keys, keys, pairs(230, 230, shared=True), 10.0, flags | Flag.SELF))
    check(Problem(anchors, keys, every_rule(150, 230), 10.0, flags, draw(150, seed=8), draw(230, seed=9).abs()))
    assert len(visited) == 11


def test_sorting_lays_classes_together() -> None:
    pairs = every_rule(90, 120)
    order = ordering.by_class(pairs, Flag(0))
    assert pairs.key_groups is not None
    edges = [0, pairs.positive_start, pairs.negative_stop, 120]
    for first, last in pairwise(edges):
        keys = order.keys[first:last]
        assert torch.equal(keys.sort().values, torch.arange(first, last))
        rank = pairs.key_groups[keys].long() * 100 + pairs.key_labels[keys]
        assert torch.equal(rank, rank.sort().values)
