# SPDX-License-Identifier: Apache-2.0
"""Keys that count as many, by the CUDA kernels on the emulated GPU: every mode, rule and gradient against fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, ordering, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import surrounded
from tests.oracle import present
from tests.problems import (
    HALVES,
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

pytestmark = pytest.mark.usefixtures("gpu", "poisoned")


def weighted(pairs: Pairs, decades: float = 1.0) -> Pairs:
    """The same pairs of keys that count a fraction of once, or many times."""
    return pairs._replace(key_weights=10 ** (decades * draw(pairs.key_labels.shape[0], seed=11).clamp(-2, 2)))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule, prototypes])
def test_every_mode(pairs: Callable[..., Pairs], flags: Flag, dtype: torch.dtype) -> None:
    anchors, keys = unit(290, 40, dtype, 1), unit(420, 40, dtype, 2)
    check(Problem(anchors, keys, weighted(pairs(290, 420)), 10.0, flags))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", [3, 64, 65, 128, 192, 300, 512])
def test_widths(width: int, dtype: torch.dtype, emulated: Any) -> None:
    emulated.set_shared_memory_limit(99 << 10)  # of the smallest GPUs served
    anchors, keys = unit(21, width, dtype, 1), unit(77, width, dtype, 2)
    check(Problem(anchors, keys, weighted(every_rule(21, 77)), 10.0, Flag.NEGATIVES | Flag.UNIT))


@pytest.mark.parametrize("flags", MODES, ids=str)
def test_scan_known_and_frozen_keys(flags: Flag) -> None:
    anchors, raw = unit(150, 72, torch.float16, 1), (3 * draw(300, 72, seed=2)).half()
    keys, inverse = unit(300, 72, torch.float16, 2), 1 / raw.float().norm(dim=1)
    for pairs in (weighted(every_rule(150, 300)), weighted(sorted_classes(150, 300))):
        check(Problem(anchors, keys, pairs, 10.0, flags | Flag.SCAN))
        check(Problem(anchors, keys, pairs, 10.0, flags, known_lse=draw(150, seed=8)))
        check(Problem(anchors, raw, pairs, 10.0, flags, key_inverse=inverse))


@pytest.mark.parametrize("flags", [Flag.UNIT, Flag.UNIT | Flag.NEGATIVES], ids=str)
def test_a_heavy_key_that_is_far_outweighs_a_light_one_that_is_near(flags: Flag) -> None:
    """Beside the nearest logit it would be exp(-80): the maximum is that of the weighted terms."""
    near = torch.nn.functional.normalize(1 + 0.1 * draw(20, 8, seed=1), dim=1)
    keys = torch.cat([near, -near, near])
    pairs = Pairs(torch.zeros(20).int(), (torch.arange(60) < 40).int(), None, None, None, 0, 60)
    masses = torch.cat([torch.full((20,), 1e-30), torch.full((20,), 1e30), torch.ones(20)])
    state = native.contrast_forward(near.half(), keys.half(), pairs._replace(key_weights=masses), 40.0, flags)
    truth = reference.contrast_forward(
        near.half().double(), keys.half().double(), pairs._replace(key_weights=masses.double()), 40.0, flags
    )
    assert_within_budget("lse", state.lse, truth.lse, truth.lse.float(), amplification=160.0)


def test_keys_that_all_count_twice_change_no_gradient() -> None:
    anchors, keys = unit(90, 40, torch.bfloat16, 1), unit(120, 40, torch.bfloat16, 2)
    once = Problem(anchors, keys, mixed(90, 120), 10.0, Flag(0))
    twice = once._replace(pairs=once.pairs._replace(key_weights=torch.full((120,), 2.0)))
    found, expected = check(twice), check(once)
    assert torch.equal(found[3], 2 * expected[3].float())
    counted = expected[3] > 0
    for name, actual, usual in zip(NAMES, found, expected, strict=True):
        more = math.log(2) if name in ("loss", "lse") else 0.0
        if name != "count":
            shown = usual[counted if len(usual) == 90 else ...].double() + more
            kept = actual[counted if len(usual) == 90 else ...]
            assert_within_budget(name, kept, shown, shown.float(), amplification=2.0**14)


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES | Flag.UNIT], ids=str)
def test_many_nearly_equal_weights_keep_their_digits(flags: Flag, emulated: Any) -> None:
    """Thousands of additions of one number round the same way: a sum of plain additions errs by 6e-5."""
    emulated.set_multiprocessors(1)
    anchors, keys = unit(8, 16, torch.bfloat16, 1), unit(40_000, 16, torch.bfloat16, 2)
    pairs = Pairs(torch.zeros(8).int(), (torch.arange(40_000) % 2).int(), None, None, None, 0, 40_000)
    problem = Problem(anchors, keys, pairs._replace(key_weights=torch.full((40_000,), 0.1)), 1.0, flags)
    found, truth = problem.run(native), problem.run(reference, wide=True)
    for name, actual, exact in zip(NAMES[:4], found, truth, strict=False):
        assert_within_budget(name, actual, exact.double(), exact.float(), amplification=16.0)


@pytest.mark.parametrize("flags", [Flag.UNIT, Flag.NEGATIVES], ids=str)
def test_the_same_bits_in_any_order_and_the_budget_at_any_cut(flags: Flag, emulated: Any) -> None:
    anchors, keys = unit(130, 130, torch.bfloat16, 1), unit(600, 130, torch.bfloat16, 2)
    problem = Problem(anchors, keys, weighted(every_rule(130, 600)), 10.0, flags)
    emulated.set_multiprocessors(1)
    first, launches = problem.run(native), emulated.launches()
    emulated.set_reversed(True)
    assert same(problem.run(native), first)
    one = emulated.launches() - launches
    emulated.set_multiprocessors(100)
    check(problem)
    assert emulated.launches() - launches - one > one


def test_sorted_rows_take_their_weights_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "pays", lambda *_: True)
    anchors, keys = unit(150, 40, torch.bfloat16, 1), unit(230, 40, torch.bfloat16, 2)
    for pairs in (mixed, every_rule, prototypes):
        check(Problem(anchors, keys, weighted(pairs(150, 230)), 10.0, Flag.NEGATIVES))


def test_the_kernels_of_hopper_leave_them_to_the_others(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECL_CUDA_PATH", "hopper")
    emulated.set_capability(90)
    anchors, keys = unit(130, 64, torch.bfloat16, 1), unit(300, 64, torch.bfloat16, 2)
    check(Problem(anchors, keys, weighted(sorted_classes(130, 300)), 10.0, Flag.UNIT))


def test_nothing_is_read_outside_the_weights() -> None:
    anchors, keys = unit(70, 24, torch.bfloat16, 1), unit(135, 24, torch.bfloat16, 2)
    alone = Problem(anchors, keys, weighted(every_rule(70, 135)), 10.0, Flag.UNIT)
    inside, around = surrounded(present(alone.pairs.key_weights))
    assert same(alone.run(native), alone._replace(pairs=alone.pairs._replace(key_weights=inside)).run(native))
    assert all(bool(values.isfinite().all()) for values in alone.run(native) if values.ndim == 2)
    assert bool(around[:80].isnan().all() and around[-80:].isnan().all())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [90, 9000])
def test_a_reduction_shares_by_the_sum_of_weights(rows: int, reduction: str) -> None:
    loss, pull = draw(rows, seed=1).abs(), draw(rows, seed=2).sigmoid()
    count = torch.where(torch.arange(rows) % 3 == 0, 0.0, draw(rows, seed=3).abs() + 0.01)
    for weights in (None, draw(rows, seed=4).abs()):
        found = native.reduce(loss, pull, count, weights, reduction)
        wide: list[Tensor | None] = [None if each is None else each.double() for each in (loss, pull, count, weights)]
        truth = reference.reduce(wide[0], wide[1], wide[2], wide[3], reduction)  # type: ignore[arg-type]
        plain = reference.reduce(loss, pull, count, weights, reduction)
        for name, actual, exact, rough in zip(("value", "factor", "push", "draw"), found, truth, plain, strict=True):
            assert_within_budget(name, actual, exact, rough, amplification=4.0)
