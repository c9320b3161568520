# SPDX-License-Identifier: Apache-2.0
"""The CUDA contrast kernels, executed on the emulated GPU against fp64 truth: every mode and gradient, every edge."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, ordering, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw, surrounded

HALVES = [torch.bfloat16, torch.float16]
MODES = [Flag(0), Flag.NEGATIVES, Flag.UNIT, Flag.UNIT | Flag.NEGATIVES]
NAMES = ("loss", "lse", "pull", "count", "forward anchor gradient", "anchor gradient", "key gradient")
ANCHORS, KEYS = Flag.ANCHOR_GRADIENT, Flag.KEY_GRADIENT


@pytest.fixture(autouse=True)
def gpu(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serves the native backend by the emulated CUDA kernels."""
    monkeypatch.setattr(native, "_operations", lambda: emulated)
    monkeypatch.setattr(native, "_serves_cuda", lambda tensor: True)
    return emulated


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(draw(count, width, seed=seed), dim=1).to(dtype)


def integers(low: int, high: int, size: int, seed: int) -> Tensor:
    return torch.randint(low, high, (size,), generator=torch.Generator().manual_seed(seed))


def mixed(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Classes in any order, some rows ignored."""
    labels = integers(-1, 4, anchors, 1).int()
    return Pairs(labels, labels if shared else integers(-1, 4, keys, 2).int(), None, None, None, 0, keys)


def sorted_classes(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Class by class: tiles without a positive, without a negative, and without need of a mask."""
    labels = (torch.arange(anchors) * 3 // anchors).int()
    key_labels = labels if shared else (torch.arange(keys) * 3 // keys).int()
    return Pairs(labels, key_labels, None, None, None, 0, keys)


def every_rule(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Ignored rows, groups, exclusions, keys that are no positives and keys that are no negatives."""
    pairs = mixed(anchors, keys, shared=shared)
    groups = integers(-1, 1, anchors, 3).int()
    key_groups = groups if shared else integers(-1, 1, keys, 4).int()
    return pairs._replace(
        anchor_groups=groups, key_groups=key_groups, exclude=integers(-1, keys, anchors, 5),
        positive_start=keys // 4, negative_stop=keys - keys // 3,
    )  # fmt: skip


def prototypes(anchors: int, keys: int) -> Pairs:
    """The last four keys are the classes' prototypes, the only positives, and no negatives."""
    pairs = sorted_classes(anchors, keys)
    assert pairs.key_labels is not None
    pairs.key_labels[-4:] = torch.arange(4).int()
    return pairs._replace(positive_start=keys - 4, negative_stop=keys - 4)


class Problem(NamedTuple):
    anchors: Tensor  # [N, D]
    keys: Tensor  # [M, D]
    pairs: Pairs
    scale: float
    flags: Flag
    known_lse: Tensor | None = None  # [N]
    key_inverse: Tensor | None = None  # [M]

    def run(self, backend: Any, *, wide: bool = False) -> list[Tensor]:
        """Every output of the forward pass and, where it has one, of the backward pass."""
        rows = (self.anchors.double(), self.keys.double()) if wide else (self.anchors, self.keys)
        state = backend.contrast_forward(
            *rows, self.pairs, self.scale, self.flags | ANCHORS, self.known_lse, self.key_inverse
        )
        if self.key_inverse is not None or Flag.SCAN in self.flags:  # frozen keys, and sums without a backward pass
            return [*state]
        factors = (weight_of_anchors(self).to(state.loss.dtype), *push_and_draw(state))
        both = self.flags | ANCHORS | KEYS
        return [*state, *backend.contrast_backward(factors, *rows, self.pairs, state.lse, self.scale, both)]


def forward(problem: Problem) -> reference.ContrastState:
    given = problem.anchors, problem.keys, problem.pairs, problem.scale, problem.flags | ANCHORS
    return native.contrast_forward(*given, problem.known_lse, problem.key_inverse)


def weight_of_anchors(problem: Problem) -> Tensor:
    return draw(problem.anchors.shape[0], seed=6)


def check(problem: Problem, *, cancels: bool = False) -> list[Tensor]:
    """Hold every output against fp64, beside plain torch on the same rows.

    Where gradients cancel, what the value product rounds is far larger than what is left of it.
    """
    found, plain, truth = problem.run(native), problem.run(reference), problem.run(reference, wide=True)
    lengths = [float(rows.float().norm(dim=1).nan_to_num(0.0).max()) if len(rows) else 0.0 for rows in problem[:2]]
    peak = problem.scale * lengths[0] * (lengths[1] if problem.key_inverse is None else 1.0)
    # The weights of the value product take the rows' dtype.
    rounding = torch.finfo(problem.anchors.dtype).eps / torch.finfo(torch.float32).eps
    for name, actual, rough, exact in zip(NAMES, found, plain, truth, strict=False):
        assert torch.equal(actual.isneginf(), exact.isneginf()), name
        # A pair's exponential errs by the rounding of its logit, and may meet an attraction that cancels it.
        weights = weight_of_anchors(problem)
        largest = problem.scale * float(weights.abs().max()) if len(weights) and exact.ndim == 2 else 1.0
        magnitude = max(peak, largest * (rounding if cancels else peak))
        amplification = max(4 * peak, rounding if exact.ndim == 2 else 1.0)
        values = (
            shown.nan_to_num(nan=torch.nan, neginf=0.0) for shown in (actual.float(), exact.double(), rough.float())
        )
        assert_within_budget(name, *values, amplification=amplification, magnitude=magnitude)
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit, NaN included."""
    return all(
        torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule, prototypes])
def test_anchors_and_keys(pairs: Callable[..., Pairs], flags: Flag, dtype: torch.dtype) -> None:
    anchors, keys = unit(290, 40, dtype, 1), unit(420, 40, dtype, 2)
    check(Problem(anchors, keys, pairs(290, 420), 10.0, flags))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule])
def test_self_contrast(pairs: Callable[..., Pairs], flags: Flag, dtype: torch.dtype) -> None:
    rows = unit(400, 40, dtype)
    check(Problem(rows, rows, pairs(400, 400, shared=True), 10.0, flags | Flag.SELF))


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


def test_tiles_without_a_positive_are_not_multiplied() -> None:
    anchors, keys = unit(128, 64, torch.bfloat16, 1), unit(192, 64, torch.bfloat16, 2)
    pairs = Pairs(torch.zeros(128).int(), (torch.arange(192) >= 64).int(), None, None, None, 0, 192)
    keys[100] = torch.nan  # its weight is 0: only a product would show it
    known = Problem(anchors, keys, pairs, 10.0, Flag.NEGATIVES, known_lse=torch.zeros(128))
    assert forward(known).grad_anchors.isfinite().all()
    keys[10] = torch.nan
    assert forward(known).grad_anchors.isnan().all()


def test_tiles_without_a_negative_are_not_multiplied() -> None:
    anchors, keys = unit(128, 64, torch.bfloat16, 1), unit(192, 64, torch.bfloat16, 2)
    pairs = Pairs(torch.zeros(128).int(), (torch.arange(192) >= 64).int(), None, None, None, 0, 192)
    keys[10] = torch.nan  # a positive
    scan = Problem(anchors, keys, pairs, 10.0, Flag.NEGATIVES | Flag.SCAN)
    assert forward(scan).grad_anchors.isfinite().all()
    assert forward(scan._replace(flags=Flag.SCAN)).grad_anchors.isnan().all()


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_classes_that_share_a_bit(flags: Flag) -> None:
    anchors, keys = unit(130, 32, torch.bfloat16, 1), unit(200, 32, torch.bfloat16, 2)
    labels = torch.tensor([0, 64, 2**31 - 1, 63])
    pairs = Pairs(
        labels[torch.arange(130) // 40].int(), labels[torch.arange(200) // 50].int(), None, None, None, 0, 200
    )
    check(Problem(anchors, keys, pairs, 10.0, flags))
    groups = torch.tensor([-(2**31), 7, 2**31 - 1])
    grouped = pairs._replace(
        anchor_groups=groups[torch.arange(130) % 3].int(), key_groups=groups[torch.arange(200) % 3].int()
    )
    check(Problem(anchors, keys, grouped, 10.0, flags))


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_an_anchor_without_a_positive_passes_no_nan_to_the_keys(flags: Flag) -> None:
    anchors, keys = unit(90, 32, torch.bfloat16, 1), unit(120, 32, torch.bfloat16, 2)
    anchors[5] = torch.nan
    labels = torch.zeros(90).int()
    labels[5] = 7
    pairs = Pairs(labels, (torch.arange(120) % 2).int(), None, None, None, 0, 120)
    found = check(Problem(anchors, keys, pairs, 10.0, flags))
    assert found[6].isfinite().all()
    assert torch.equal(found[5][5], torch.zeros(32))


@pytest.mark.parametrize("flags", [Flag.SELF, Flag.SELF | Flag.UNIT | Flag.NEGATIVES], ids=str)
def test_without_an_anchor_that_counts_the_gradient_is_zero(flags: Flag) -> None:
    rows = unit(80, 32, torch.bfloat16)
    rows[3] = torch.nan
    labels = torch.arange(80).int()
    found = Problem(rows, rows, Pairs(labels, labels, None, None, None, 0, 80), 10.0, flags).run(native)
    assert torch.equal(found[0], torch.zeros(80))
    assert torch.equal(found[5], torch.zeros(80, 32))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_what_is_no_number_reaches_the_loss(flags: Flag, value: float) -> None:
    anchors, keys = unit(40, 32, torch.bfloat16, 1), unit(90, 32, torch.bfloat16, 2)
    keys[7, 3] = value
    problem = Problem(anchors, keys, mixed(40, 90), 10.0, flags)
    state, truth = forward(problem), problem.run(reference, wide=True)
    for name, actual, exact in zip(NAMES[:3], state[:3], truth[:3], strict=True):
        assert torch.equal(actual.isnan(), exact.isnan()), name
        assert torch.equal(actual.isposinf(), exact.isposinf()), name


@pytest.mark.parametrize(("anchors", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_without_a_pair_nothing_is_launched(anchors: int, keys: int, emulated: Any) -> None:
    before = emulated.launches()
    rows = torch.ones(anchors, 8).bfloat16(), torch.ones(keys, 8).bfloat16()
    check(Problem(*rows, mixed(anchors, keys), 10.0, Flag.NEGATIVES))
    assert emulated.launches() == before


def test_a_tiny_loss_keeps_its_digits() -> None:
    anchors, keys = torch.tensor([[1.0]]).bfloat16(), torch.tensor([[1.0], [-1.0]]).bfloat16()
    pairs = Pairs(torch.tensor([3]).int(), torch.tensor([3, 4]).int(), None, None, None, 0, 2)
    loss = forward(Problem(anchors, keys, pairs, 15.0, Flag.NEGATIVES | Flag.UNIT)).loss
    truth = torch.tensor([-30.0], dtype=torch.float64).exp().log1p()
    assert_within_budget("loss", loss, truth, truth.float(), amplification=30.0)


def test_a_scaled_upstream_overflows_nothing(emulated: Any) -> None:
    rows = torch.nn.functional.normalize(1 + 0.05 * draw(150, 16), dim=1).bfloat16()
    rows[75:] *= -1
    pairs = sorted_classes(150, 150, shared=True)
    state = reference.contrast_forward(
        rows.double(), rows.double(), pairs, 40.0, Flag.SELF | Flag.UNIT | Flag.NEGATIVES
    )
    push, share = push_and_draw(state)
    narrow = (torch.full((150,), 2.0**24), push.float(), share.float())
    flags = Flag.SELF | Flag.UNIT | Flag.NEGATIVES
    found, _ = native.contrast_backward(narrow, rows, rows, pairs, state.lse.float(), 40.0, flags)
    wide = (torch.full((150,), 2.0**24, dtype=torch.float64), push, share)
    truth, plain = (
        reference.contrast_backward(
            factors, rows.to(dtype), rows.to(dtype), pairs, state.lse.to(dtype), 40.0, Flag.SELF | Flag.NEGATIVES
        )[0]
        for dtype, factors in ((torch.float64, wide), (torch.float32, narrow))
    )
    assert_within_budget("gradient", found, truth, plain, amplification=2.0**16)


REFUSED: dict[str, tuple[str, Callable[[Problem], Problem]]] = {
    "float32": (
        "float16 and bfloat16 rows on tensor cores; got float32: use backend=\"triton\" or \"reference\"",
        lambda given: given._replace(anchors=given.anchors.float(), keys=given.keys.float()),
    ),
    "too wide": (
        "serve rows up to 512 wide; got 513: use backend=\"triton\" or \"reference\"",
        lambda given: given._replace(anchors=unit(6, 513, torch.float16), keys=unit(9, 513, torch.float16)),
    ),
    "two dtypes": ("one dtype and one width", lambda given: given._replace(keys=given.keys.bfloat16())),
    "short labels": (
        "anchor_labels must have 6 elements; got 5",
        lambda given: given._replace(pairs=given.pairs._replace(anchor_labels=torch.zeros(5).int())),
    ),
    "scan of a known sum": (
        "a scan finds the log-sum-exp that known_lse gives",
        lambda given: given._replace(flags=Flag.SCAN, known_lse=torch.zeros(6)),
    ),
    "self with keys": (
        "under SELF the keys are the anchors", lambda given: given._replace(flags=Flag.SELF)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    message, change = REFUSED[name]
    given = Problem(unit(6, 8, torch.float16), unit(9, 8, torch.float16), mixed(6, 9), 10.0, Flag(0))
    with pytest.raises(RuntimeError, match=message):
        forward(change(given))
