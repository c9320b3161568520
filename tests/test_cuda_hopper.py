# SPDX-License-Identifier: Apache-2.0
"""Hopper's contrast kernels, executed on the emulated GPU against fp64 truth.

Executed are the main loop, its barriers' phases, the ring, the descriptors and the swizzle, with everything
asynchronous as late as it may be. Not shown here: that the PTX says the same (its encodings, and what fences order
between the copy engine, the tensor cores and ordinary stores), and any speed. That takes a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw, surrounded
from tests.problems import (
    Problem,
    check,
    draw,
    every_rule,
    forward,
    mixed,
    prototypes,
    same,
    sorted_classes,
    unit,
)

WIDTHS = [64, 128, 256]
MODES = [Flag.UNIT, Flag.UNIT | Flag.NEGATIVES]
BF16, FP16 = torch.bfloat16, torch.float16
HALVES = [BF16, FP16]
FAULTS = {
    "copy not waited for": "a product is wrong",
    "too few bytes expected": "deadlock in block .*: 128 threads wait at barrier_wait",
    "too many arrivals": "more arrivals at a barrier than its phase has",
    "barrier without a start": "a barrier is used before it is initialised",
    "sums read early": "the product has not arrived",
    "sums written early": "sums were written while a product was at them",
    "weights written early": "the left side was written while a product was at it",
    "tile reused early": "a product is wrong",
    "products without a group": "products are waited for that no group holds",
    "operand without a swizzle": "a descriptor without the 128-byte swizzle",
    "operands that differ": "warps of one warpgroup multiply different operands",
    "tile off its boundary": "copy_box needs a place on a multiple of 1024 bytes",
}


@pytest.fixture
def gpu(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serves the native backend by the kernels on an emulated Hopper."""
    monkeypatch.setattr(native, "_operations", lambda: emulated)
    monkeypatch.setattr(native, "serves_cuda", lambda tensor: True)
    monkeypatch.delenv("SECL_CUDA_PATH", raising=False)
    emulated.set_capability(90)
    emulated.set_multiprocessors(1)
    return emulated


@pytest.fixture
def hopper(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same for an owner who has asked for Hopper's kernels."""
    monkeypatch.setenv("SECL_CUDA_PATH", "hopper")
    return gpu


@pytest.mark.thinned(8)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule, prototypes])
def test_anchors_and_keys(
    pairs: Callable[..., Pairs], flags: Flag, width: int, dtype: torch.dtype, hopper: Any
) -> None:
    anchors, keys = unit(150, width, dtype, 1), unit(290, width, dtype, 2)
    check(Problem(anchors, keys, pairs(150, 290), 10.0, flags))


@pytest.mark.thinned(8)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("pairs", [mixed, sorted_classes, every_rule])
def test_self_contrast(pairs: Callable[..., Pairs], flags: Flag, width: int, dtype: torch.dtype, hopper: Any) -> None:
    rows = unit(140, width, dtype)
    check(Problem(rows, rows, pairs(140, 140, shared=True), 10.0, flags | Flag.SELF))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("anchors", "keys"), [(1, 1), (1, 300), (300, 1), (255, 127), (256, 128), (257, 129)])
def test_ragged_sizes(anchors: int, keys: int, width: int, hopper: Any) -> None:
    rows = unit(anchors, width, BF16, 1), unit(keys, width, BF16, 2)
    check(Problem(*rows, mixed(anchors, keys), 10.0, Flag.UNIT | Flag.NEGATIVES))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_ring_goes_round(width: int, hopper: Any) -> None:
    anchors, keys = unit(150, width, BF16, 1), unit(900, width, BF16, 2)
    pairs = sorted_classes(150, 900)
    check(Problem(anchors, keys, pairs, 10.0, Flag.UNIT))
    check(Problem(keys, anchors, sorted_classes(900, 150), 10.0, Flag.UNIT))
    scan = hopper.contrast_forward(anchors, keys, *pairs, None, None, 10.0, int(Flag.UNIT))[1]
    assert (scan - Problem(anchors, keys, pairs, 10.0, Flag.UNIT).run(reference, wide=True)[1]).abs().max() < 1e-5


@pytest.mark.parametrize("width", WIDTHS)
def test_ignored_columns_stop_no_copy(width: int, hopper: Any) -> None:
    anchors, keys = unit(150, width, BF16, 1), unit(900, width, BF16, 2)
    most = []
    for every in (901, 50):  # no key, and some of each tile
        labels = (torch.arange(900) % 7).int()
        labels[every - 1 :: every] = -1
        keys[labels < 0] = torch.nan
        hopper.most_copies()
        Problem(anchors, keys, mixed(150, 900)._replace(key_labels=labels), 10.0, Flag.UNIT).run(native)
        most.append(hopper.most_copies())
    assert most[0] == most[1] >= 2 * width // 64  # boxes of 64 numbers: two tiles at least


@pytest.mark.parametrize("anchors", [0, 5])
def test_nothing_to_contrast(anchors: int, hopper: Any) -> None:
    rows = unit(anchors, 64, BF16), unit(0, 64, BF16)
    state = forward(Problem(*rows, mixed(anchors, 0), 10.0, Flag.UNIT))
    assert torch.equal(state.lse, torch.full((anchors,), -torch.inf))
    assert torch.equal(state.grad_anchors, torch.zeros(anchors, 64))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pairs", [every_rule, sorted_classes])
def test_sums_alone(pairs: Callable[..., Pairs], dtype: torch.dtype, width: int, hopper: Any) -> None:
    anchors, keys = unit(150, width, dtype, 1), unit(290, width, dtype, 2)
    for flags in MODES:
        problem = Problem(anchors, keys, pairs(150, 290), 10.0, flags)
        given = (anchors, keys, *problem.pairs, None, None, 10.0, int(flags))
        lse = hopper.contrast_forward(*given)[1]
        truth, plain = (problem.run(reference, wide=wide)[1] for wide in (True, False))
        finite = truth.isfinite()
        assert torch.equal(finite, lse.isfinite())
        # Sums in fp32 of exponentials that err by 3e-6 where fused multiply-adds compute them.
        assert (lse - truth)[finite].abs().max() < 1e-5 + (plain.double() - truth)[finite].abs().max()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flags", MODES, ids=str)
def test_frozen_keys(flags: Flag, width: int, hopper: Any) -> None:
    anchors, raw = unit(150, width, BF16, 1), (3 * draw(290, width, seed=2)).to(BF16)
    inverse = 1 / raw.float().norm(dim=1)
    pairs = every_rule(150, 290)
    assert pairs.key_labels is not None
    raw[pairs.key_labels < 0] = torch.nan  # ignored: never read
    check(Problem(anchors, raw, pairs, 10.0, flags, key_inverse=inverse))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 39.0])
def test_temperatures(scale: float, dtype: torch.dtype, hopper: Any) -> None:
    anchors = unit(20, 64, dtype, 1)
    for near in (anchors, -anchors):  # similarities from -1 to 1, and back: fp16 weights rise by 2^112 on the way
        keys = torch.cat([-near, unit(300, 64, dtype, 2), near])
        check(Problem(anchors, keys, mixed(20, 340), scale, Flag.UNIT))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weights_of_any_size(dtype: torch.dtype, hopper: Any) -> None:
    anchors, keys = unit(300, 64, dtype, 1), unit(40, 64, dtype, 2)
    pairs = mixed(300, 40)
    state = reference.contrast_forward(anchors.double(), keys.double(), pairs, 10.0, Flag.UNIT)
    push, share = push_and_draw(state)
    for weights in (torch.logspace(-20, 20, 300), torch.logspace(25, -5, 300), torch.full((300,), 1e-30)):
        truth, plain = (
            reference.contrast_backward(
                (weights.to(kind), push.to(kind), share.to(kind)), anchors.to(kind), keys.to(kind), pairs,
                state.lse.to(kind), 10.0, Flag.UNIT | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT,
            )
            for kind in (torch.float64, torch.float32)
        )  # fmt: skip
        given = (
            anchors,
            keys,
            *pairs,
            state.lse.float(),
            10.0,
            int(Flag.UNIT | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT),
        )
        found = hopper.contrast_backward(weights, push.float(), share.float(), *given)
        rounding = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        for name, *values in zip(("anchors", "keys"), found, truth, plain, strict=True):
            assert_within_budget(name, *values, amplification=rounding)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flags", [*MODES, Flag.UNIT | Flag.SELF], ids=str)
def test_splitting_the_columns(flags: Flag, width: int, hopper: Any) -> None:
    anchors = unit(40, width, BF16, 1)
    keys = anchors if Flag.SELF in flags else unit(1300, width, BF16, 2)
    problem = Problem(anchors, keys, every_rule(40, len(keys), shared=Flag.SELF in flags), 10.0, flags)
    launches = hopper.launches()
    whole = problem.run(native)
    one = hopper.launches() - launches
    hopper.set_multiprocessors(100)
    launches = hopper.launches()
    parted = check(problem)
    assert (hopper.launches() - launches > one) == (Flag.SELF not in flags)
    assert same(parted, whole) == (Flag.SELF in flags)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flags", [*MODES, Flag.UNIT | Flag.SELF], ids=str)
def test_the_same_bits_in_any_order(flags: Flag, width: int, hopper: Any) -> None:
    anchors = unit(140, width, BF16, 1)
    keys = anchors if Flag.SELF in flags else unit(290, width, BF16, 2)
    problem = Problem(anchors, keys, mixed(140, len(keys), shared=Flag.SELF in flags), 10.0, flags)
    first = problem.run(native)
    assert same(problem.run(native), first)
    hopper.set_reversed(True)
    assert same(problem.run(native), first)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_read_outside_the_rows(width: int, hopper: Any) -> None:
    rows = [unit(count, width, BF16, count) for count in (70, 135)]
    pairs = every_rule(70, 135)
    for side, labels in zip(rows, pairs[:2], strict=True):
        side[labels < 0] = torch.nan
    alone = Problem(rows[0], rows[1], pairs, 10.0, Flag.UNIT).run(native)
    (anchors, before), (keys, after) = map(surrounded, rows)
    fields: list[Any] = [surrounded(value)[0] if isinstance(value, Tensor) else value for value in pairs]
    assert same(Problem(anchors, keys, Pairs(*fields), 10.0, Flag.UNIT).run(native), alone)
    assert all(values.isfinite().all() for values in alone if values.ndim == 2)
    assert all(buffer[:80].isnan().all() and buffer[-80:].isnan().all() for buffer in (before, after))


@pytest.mark.parametrize("flags", MODES, ids=str)
def test_what_does_not_count_passes_no_nan_on(flags: Flag, hopper: Any) -> None:
    anchors, keys = unit(90, 64, BF16, 1), unit(120, 64, BF16, 2)
    anchors[5] = torch.nan
    labels = torch.zeros(90).int()
    labels[5] = 7  # without a positive
    pairs = Pairs(labels, (torch.arange(120) % 2).int(), None, None, None, 0, 120)
    found = check(Problem(anchors, keys, pairs, 10.0, flags))
    assert found[6].isfinite().all()
    assert torch.equal(found[5][5], torch.zeros(64))
    labels = torch.arange(90).int()
    found = Problem(anchors, anchors, Pairs(labels, labels, None, None, None, 0, 90), 10.0, flags | Flag.SELF).run(
        native
    )
    assert torch.equal(found[5], torch.zeros(90, 64))


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_no_number_reaches_the_loss(width: int, hopper: Any) -> None:
    anchors, keys = unit(40, width, BF16, 1), unit(320, width, BF16, 2)
    for key in range(0, 320, 41):
        keys[key] = torch.nan
        problem = Problem(anchors, keys, sorted_classes(40, 320), 10.0, Flag.UNIT)
        assert torch.equal(forward(problem).lse.isnan(), problem.run(reference, wide=True)[1].isnan())
        keys[key] = 0


def test_only_who_asks_gets_these_kernels(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(width: int = 64, scale: float = 10.0, flags: Flag = Flag.UNIT) -> list[Tensor]:
        rows = unit(60, width, BF16, 1), unit(150, width, BF16, 2)
        return Problem(*rows, sorted_classes(60, 150), scale, flags).run(native)

    others: list[dict[str, Any]] = [{"width": 96}, {"scale": 41.0}, {"flags": Flag(0)}]
    default, defaults = found(), [found(**other) for other in others]
    for path, capability in (("portable", 90), ("hopper", 80), ("hopper", 100)):
        monkeypatch.setenv("SECL_CUDA_PATH", path)
        gpu.set_capability(capability)
        assert same(found(), default)
    gpu.set_capability(90)
    assert not same(found(), default)  # other tiles, other roundings
    for other, expected in zip(others, defaults, strict=True):
        assert same(found(**other), expected), other
    monkeypatch.setenv("SECL_CUDA_PATH", "hooper")
    with pytest.raises(RuntimeError, match="SECL_CUDA_PATH must be portable or hopper; got hooper: set one of them"):
        found()


def test_powers_by_multiply_adds(emulated: Any) -> None:
    x = torch.linspace(-125, 125, 100_001)
    truth = x.double().exp2()
    assert ((emulated.exp2_polynomial(x) - truth) / truth).abs().max() < 3.5e-6
    assert emulated.exp2_polynomial(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "reversed"])
def test_the_emulation_finds_faults(backwards: bool, emulated: Any) -> None:
    emulated.set_reversed(backwards)
    emulated.hopper_probe("sound")
    for name, message in FAULTS.items():
        with pytest.raises(RuntimeError, match=message):
            emulated.hopper_probe(name)
        emulated.hopper_probe("sound")
