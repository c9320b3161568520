# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss by the CUDA kernels on the emulated GPU: every rule, width, order and gradient against fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, ordering, reference
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import WEIGHTED_KEYS, Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import surrounded
from tests.problems import HALVES, draw, every_rule, mixed, prototypes, same, sorted_classes, unit
from tests.test_sigmoid_native import NAMES, Problem

pytestmark = pytest.mark.usefixtures("gpu", "poisoned")
RULES = [mixed, sorted_classes, every_rule, prototypes]


def weight_of(count: int) -> Tensor:
    """Of each anchor, some without any."""
    return torch.where(torch.arange(count) % 5 == 0, 0.0, draw(count, seed=6))


def sides(
    n: int, m: int, width: int, dtype: torch.dtype, pairs: Callable[..., Pairs], logit: Logit | None = None
) -> Problem:
    rows = unit(n, width, dtype, 1), unit(m, width, dtype, 2)
    return Problem(*rows, pairs(n, m), Flag(0), weight_of(n), logit or Logit(6.0, -2.5))


def shared(n: int, width: int, dtype: torch.dtype, pairs: Callable[..., Pairs]) -> Problem:
    rows = unit(n, width, dtype)
    return Problem(rows, rows, pairs(n, n, shared=True)._replace(exclude=None), Flag.SELF, weight_of(n))


def run(given: Problem, backend: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    return given.run(backend, dtype or given.anchors.dtype)


def check(given: Problem) -> list[Tensor]:
    """Hold every output against fp64, beside plain torch on the same rows."""
    found, truth, plain = run(given, native), run(given, reference, torch.float64), run(given, reference)
    assert torch.equal(found[2], truth[2])
    # The weights of the value product take the rows' dtype.
    rounding = torch.finfo(given.anchors.dtype).eps / torch.finfo(torch.float32).eps
    for name, actual, exact, rough in zip(NAMES, found, truth, plain, strict=True):
        if name != "count":
            amplification = rounding if actual.ndim == 2 else 4 * 6.0
            assert_within_budget(name, actual, exact, rough.float(), amplification=amplification)
    return found


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pairs", RULES)
def test_anchors_and_keys(pairs: Callable[..., Pairs], dtype: torch.dtype) -> None:
    check(sides(290, 420, 40, dtype, pairs))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pairs", RULES[:3])
def test_self_contrast(pairs: Callable[..., Pairs], dtype: torch.dtype) -> None:
    check(shared(400, 40, dtype, pairs))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 64, 65, 128, 192, 300, 512])
def test_widths(width: int, dtype: torch.dtype, emulated: Any) -> None:
    emulated.set_shared_memory_limit(99 << 10)  # of the smallest GPUs served
    check(sides(21, 77, width, dtype, every_rule))
    check(shared(70, width, dtype, mixed))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 200), (15, 31), (16, 32), (17, 33), (129, 65), (300, 1)])
def test_ragged_sizes(n: int, m: int) -> None:
    check(sides(n, m, 20, torch.bfloat16, mixed))


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_without_a_pair_nothing_is_launched(n: int, m: int, emulated: Any) -> None:
    before = emulated.launches()
    assert not any(bool(values.any()) for values in run(sides(n, m, 8, torch.float16, mixed), native))
    assert emulated.launches() == before


def test_numbers_that_learn_stay_on_the_device() -> None:
    plain = run(sides(70, 130, 40, torch.bfloat16, mixed, Logit(6.0, -2.5)), native)
    tensors = Logit(torch.tensor([6.0], dtype=torch.float64, requires_grad=True), torch.tensor(-2.5).half())
    for logit in (tensors, Logit(tensors.scale, -2.5), Logit(6.0, tensors.bias)):
        assert same(plain, run(sides(70, 130, 40, torch.bfloat16, mixed, logit), native))


def test_losses_alone_are_those_beside_a_gradient() -> None:
    for width in (40, 200, 400):
        given = sides(90, 130, width, torch.bfloat16, every_rule)
        state = native.sigmoid_forward(given.anchors, given.keys, given.pairs, given.logit, Flag(0))
        assert state.grad_anchors.shape == (0, width)
        for name, alone, beside in zip(NAMES, state, check(given), strict=False):
            if alone.ndim == 1:
                assert_within_budget(name, alone, beside.double(), beside.float(), amplification=4.0)


def test_many_equal_losses_keep_their_digits(emulated: Any) -> None:
    """Thousands of additions of one number round the same way; which way depends on the number."""
    emulated.set_multiprocessors(1)
    rows = torch.eye(16)[:1].expand(8, 16).bfloat16(), torch.eye(16)[1:2].expand(40_000, 16).bfloat16()
    pairs = Pairs(torch.zeros(8).int(), torch.ones(40_000).int(), None, None, None, 0, 40_000)
    given = Problem(*rows, pairs, Flag(0), weight_of(8), Logit(1.0, 0.0))  # of every pair log 2
    found, truth = run(given, native), run(given, reference, torch.float64)
    for name, actual, exact in zip(NAMES[:2], found, truth, strict=False):
        assert_within_budget(name, actual, exact, exact.float(), amplification=4.0)


def test_the_kernels_of_hopper_leave_it_to_the_others(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECL_CUDA_PATH", "hopper")
    emulated.set_capability(90)
    check(sides(130, 300, 64, torch.bfloat16, sorted_classes))


def test_keys_that_are_normalised_as_they_are_read() -> None:
    anchors, raw = unit(90, 72, torch.float16, 1), (3 * draw(200, 72, seed=2)).half()
    inverse, logit = 1 / raw.float().norm(dim=1), Logit(6.0, -2.5)
    found, truth, plain = (
        backend.sigmoid_forward(rows, keys, every_rule(90, 200), logit, Flag.ANCHOR_GRADIENT, inverse)
        for backend, rows, keys in (
            (native, anchors, raw), (reference, anchors.double(), raw.double()), (reference, anchors, raw),
        )
    )  # fmt: skip
    for name, actual, exact, rough in zip(NAMES, found, truth, plain, strict=False):
        assert_within_budget(name, actual.float(), exact.double(), rough.float(), amplification=2.0**13)


def test_the_same_bits_in_any_order_and_with_any_ring(emulated: Any) -> None:
    for given in (sides(200, 400, 64, torch.bfloat16, mixed), shared(200, 64, torch.bfloat16, mixed)):
        first = run(given, native)
        emulated.set_reversed(True)
        assert same(run(given, native), first)
        for limit in (31 << 10, 41 << 10, 227 << 10):  # one, two and three tiles in flight
            emulated.set_shared_memory_limit(limit)
            assert same(run(given, native), first)


def test_splitting_the_columns(emulated: Any) -> None:
    given = sides(130, 600, 130, torch.bfloat16, every_rule)
    emulated.set_multiprocessors(1)
    launches = emulated.launches()
    run(given, native)
    one = emulated.launches() - launches
    emulated.set_multiprocessors(100)
    launches = emulated.launches()
    check(given)
    assert emulated.launches() - launches > one


def test_sorting_changes_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "pays", lambda *_: True)
    for pairs in RULES:
        check(sides(150, 230, 40, torch.bfloat16, pairs))
    check(shared(230, 40, torch.bfloat16, mixed))


@pytest.mark.parametrize("width", [24, 33], ids=["whole units", "ragged"])
def test_nothing_is_read_outside_the_rows_nor_of_ignored_ones(width: int) -> None:
    given = sides(70, 135, width, torch.bfloat16, every_rule)
    for side, labels in zip(given[:2], given.pairs[:2], strict=True):
        side[labels < 0] = torch.nan
    (anchors, before), (keys, after) = map(surrounded, given[:2])
    fields: list[Any] = [surrounded(value)[0] if isinstance(value, Tensor) else value for value in given.pairs]
    scale, weight = surrounded(torch.tensor([6.0]))[0], surrounded(given.weight)[0]
    moved = given._replace(anchors=anchors, keys=keys, pairs=Pairs(*fields), weight=weight, logit=Logit(scale, -2.5))
    inside = run(moved, native)
    assert same(run(given, native), inside)
    assert all(values.isfinite().all() for values in inside)
    assert all(buffer[:80].isnan().all() and buffer[-80:].isnan().all() for buffer in (before, after))


def test_an_anchor_of_weight_0_reaches_no_key() -> None:
    given = sides(60, 50, 24, torch.bfloat16, sorted_classes)
    weight = given.weight.index_fill(0, torch.tensor([7]), 0.0)
    dirty = given.anchors.clone()
    dirty[7] = torch.nan
    clean, found = (
        run(given._replace(anchors=anchors, weight=weight), native)[4] for anchors in (given.anchors, dirty)
    )
    assert torch.equal(clean, found)
    alone = shared(60, 24, torch.bfloat16, sorted_classes)
    rows = alone.anchors.clone()
    rows[7] = torch.nan
    assert not run(alone._replace(anchors=rows, keys=rows, weight=torch.zeros(60)), native)[4].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_reaches_the_loss(value: float) -> None:
    given = sides(40, 90, 32, torch.bfloat16, mixed)
    given.keys[7, 3] = value
    found, truth = run(given, native)[0], run(given, reference, torch.float64)[0]
    assert torch.equal(found.isnan(), truth.isnan())
    assert torch.equal(found.isposinf(), truth.isposinf())


def test_float32_rows_are_refused_by_name() -> None:
    for operation in ("sigmoid_contrast", WEIGHTED_KEYS):
        objection = "its CUDA kernels multiply fp16 and bf16 rows, as under autocast"
        assert objection in native.objections("cuda", torch.float32, operation)
        assert objection not in native.objections("cuda", torch.bfloat16, operation)
    with pytest.raises(RuntimeError, match="float16 and bfloat16 rows on tensor cores; got float32"):
        run(sides(5, 7, 8, torch.float32, mixed), native)
