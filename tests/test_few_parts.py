# SPDX-License-Identifier: Apache-2.0
"""Few rows on a GPU whose keys are many enough to be cut into parts: the same loss, by two launches or three more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import tiles
from secl_ops.engines import triton
from secl_ops.engines.triton import grids
from secl_ops.engines.triton.grids import Card
from tests.cases import alone, labels, separate
from tests.oracle import Call
from tests.test_backends import check, run
from tests.test_few_launches import DEVICE, Launches, beside_reference, forget, launches

__all__ = ["launches"]  # a fixture


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from tests.conftest import skip_or_fail

    if reasons := triton.objections(DEVICE, torch.float32, "info_nce"):
        skip_or_fail("triton", "; ".join(reasons))
    monkeypatch.setattr(grids, "INTERPRETED", Card(90, 132))
    forget()
    yield
    forget()


def grouped() -> Call:
    call = separate(20, 270, 8)
    return replace(call, anchor_groups=labels(20, 3, 8), key_groups=labels(270, 3, 9))


def far_apart() -> Call:
    """Each part of the keys is of one class: some parts hold no positive, and others nothing else."""
    call = separate(20, 256, 8, ignored=0.0)
    return replace(call, key_labels=torch.arange(256) // 128)


CALLS: dict[str, Callable[[], Call]] = {
    "self": lambda: alone(270, 8),
    "ragged": lambda: separate(19, 261, 70),
    "grouped": grouped,
    "excluding": lambda: replace(separate(20, 270, 8), exclude=labels(20, 270, 5, ignored=0.3)),
    "sum": lambda: replace(alone(270, 8), reduction="sum"),
    "a running maximum": lambda: replace(separate(20, 270, 8), normalize=False, temperature=3.0),
    "far apart": far_apart,
}


@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("name", CALLS)
def test_the_parts_add_up(name: str, denominator: str) -> None:
    call = replace(CALLS[name](), denominator=denominator)
    check(call, "triton", DEVICE)


@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_the_parts_of_weighted_anchors_add_up(denominator: str) -> None:
    call = replace(separate(20, 270, 8), denominator=denominator)
    given = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in call.arguments().items()}
    beside_reference(given | {"weights": (torch.arange(20) % 4 / 2.0).to(DEVICE)})


def test_the_parts_add_up_to_the_same_bits() -> None:
    (loss, gradients), (again, others) = (run(CALLS["ragged"](), "triton", DEVICE) for _ in range(2))
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, others))


@pytest.mark.parametrize(
    ("denominator", "expected"),
    [
        ("all", ["few_sums_kernel", "few_merge_kernel"]),
        ("negatives", ["few_sums_kernel", "few_draws_kernel", "few_merge_kernel"]),
    ],
)
def test_a_part_is_no_launch_of_its_own(denominator: str, expected: list[str], launches: Launches) -> None:
    call = alone(300, 16)
    anchors = call.anchors.to(DEVICE).requires_grad_()
    names = call.anchor_labels.to(DEVICE)
    secl_ops.info_nce(anchors, anchor_labels=names, denominator=denominator, backend="triton").backward()
    gradient = ["few_gradient_kernel", "sum_parts_kernel"]
    assert launches.started == ["unit_rows_kernel", *expected, *gradient, "unit_rows_backward_kernel"]


def test_the_rows_of_a_published_size_fill_the_card() -> None:
    rows, tile = -(-912 // 16), tiles.pick_few(128)
    for programs in (rows, rows * -(-128 // tile.block_out)):
        parts = tiles.few_parts(programs, -(-912 // tile.block_m), 132)
        assert programs * parts >= 2 * 132
    assert tiles.few_parts(4, 4, 132) == 1  # 64 rows: no launch is worth it
