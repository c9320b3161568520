# SPDX-License-Identifier: Apache-2.0
"""The edges of the CUDA contrast kernels on the emulated GPU: what is skipped, what is no number, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from secl_ops.engines import native, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw
from tests.problems import (
    NAMES,
    Problem,
    check,
    draw,
    forward,
    mixed,
    sorted_classes,
    unit,
)

pytestmark = pytest.mark.usefixtures("gpu")


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
    "two dtypes": ("anchors and keys must have one dtype", lambda given: given._replace(keys=given.keys.bfloat16())),
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
