# SPDX-License-Identifier: Apache-2.0
"""Rows of bf16 on a CPU that multiplies them: right at every size, the same bits, and faster than fp32 rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import secl_ops
from tests.cases import alone, labels, separate
from tests.conftest import ISAS, skip_or_fail
from tests.oracle import DIFFERENTIABLE, Call
from tests.test_backends import check

pytestmark = pytest.mark.usefixtures("built", "many_rows")


@pytest.fixture
def matrix_unit(built: None) -> None:
    """Skip where the processor has no matrix unit for bf16."""
    if not torch.ops.secl_native.matrix_unit():
        skip_or_fail("amx", "this processor has no matrix unit for bf16")


def gradients(call: Call) -> list[Tensor]:
    moved, leaves = call.leaves()
    loss = secl_ops.info_nce(**moved.arguments())
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


# About tiles of 16 and 32, panels of 96 and blocks of 192, whole ones and ragged ones.
SIZES = [(1, 1, 16), (5, 40, 17), (32, 96, 32), (33, 97, 33), (100, 30, 48), (193, 250, 64), (210, 500, 100)]
ALONE = [(2, 16), (31, 20), (96, 32), (97, 33), (200, 128), (450, 40)]


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [*SIZES, *ALONE], ids=str)
def test_every_size_keeps_the_budget(size: tuple[int, ...], normalize: bool, denominator: str) -> None:
    call = separate(*size) if len(size) == 3 else alone(*size)
    cold = replace(call, normalize=normalize, denominator=denominator, temperature=0.1 if normalize else 4.0)
    check(cold.to(torch.bfloat16), "native", "cpu")


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_groups_and_exclusions_keep_the_budget(denominator: str) -> None:
    call = replace(separate(120, 150, 40), denominator=denominator)
    grouped = replace(call, anchor_groups=labels(120, 3, 8), key_groups=labels(150, 3, 9))
    for each in (grouped, replace(call, exclude=labels(120, 150, 5, ignored=0.3))):
        check(each.to(torch.bfloat16), "native", "cpu")


def test_narrow_rows_are_widened(matrix_unit: None) -> None:
    for width in (1, 15):
        check(separate(40, 50, width).to(torch.bfloat16), "native", "cpu")


@pytest.mark.parametrize("call", [separate(400, 900, 64), alone(900, 64)], ids=["separate", "alone"])
def test_any_number_of_threads_gives_the_same_bits(call: Call, threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(gradients(call.to(torch.bfloat16)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_chosen_instruction_set_serves_half_rows_too(matrix_unit: None) -> None:
    call = alone(300, 64).to(torch.bfloat16)
    found = gradients(call)
    try:
        for name in ISAS:
            torch.ops.secl_native.set_isa(name)
            assert not torch.ops.secl_native.matrix_unit()
            assert not torch.equal(found[1], gradients(call)[1])  # the matrix unit rounds the coefficients
    finally:
        torch.ops.secl_native.set_isa("auto")
    assert all(map(torch.equal, found, gradients(call)))


MOST = 0.6  # of the time of fp32 rows


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("kind", ["alone", "both", "frozen"])
def test_half_rows_are_faster(kind: str, denominator: str, matrix_unit: None, threads: Callable[[int], None]) -> None:
    threads(1)
    rows, width = 4096, 128
    call = alone(rows, width) if kind == "alone" else separate(rows, rows, width)
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for number in range(12):  # what another program takes of the machine is in some of the rounds
        if number > 2 and fastest[torch.bfloat16] <= MOST * fastest[torch.float32]:
            break
        for dtype in fastest:
            names = ("anchors",) if kind == "frozen" else DIFFERENTIABLE
            moved, leaves = replace(call, denominator=denominator).to(dtype).leaves(names)
            start = time.perf_counter()
            loss = secl_ops.info_nce(**moved.arguments())
            torch.autograd.grad(loss, leaves)
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - start)
    assert fastest[torch.bfloat16] <= MOST * fastest[torch.float32], fastest


def test_frozen_keys_that_lie_on_their_anchors_leave_no_loss_below_its_floor(matrix_unit: None) -> None:
    """What the denominator reads and what the positives read are the same rounded rows."""
    classes = torch.arange(32).repeat(24)
    centres = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    rows = ((centres[classes] + torch.randn(768, 32) / 400) * 3.7).bfloat16()
    keys = (rows.float() * 1.37).bfloat16()
    call = Call(rows, classes, keys, classes, denominator="all", temperature=0.07, reduction="none")
    found = secl_ops.info_nce(**call.arguments())
    true = secl_ops.info_nce(**call.to(torch.float64).arguments())
    assert (found - true).abs().max() < 2e-3
    torch.ops.secl_native.set_isa(ISAS[-1])
    try:
        wide = secl_ops.info_nce(**call.arguments())
    finally:
        torch.ops.secl_native.set_isa("auto")
    assert (found - wide).abs().max() < 2e-3
    one = replace(call, anchors=rows[:32], anchor_labels=classes[:32], keys=keys[:32], key_labels=classes[:32])
    lone = replace(one, anchors=rows[:1], anchor_labels=classes[:1], keys=keys[:1], key_labels=classes[:1])
    assert secl_ops.info_nce(**lone.arguments()).item() == 0
