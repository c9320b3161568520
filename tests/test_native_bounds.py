# SPDX-License-Identifier: Apache-2.0
"""The C++ backend stays inside its tensors, also where their number of pairs needs more than 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, reference
from secl_ops.engines.reference import Origin
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import Guarded, push_and_draw, surrounded
from tests.test_native import PROBLEMS, problem

pytestmark = pytest.mark.usefixtures("built", "poisoned")


@pytest.mark.parametrize(("options", "seed"), PROBLEMS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (13, 33, 17), (101, 333, 37)])
def test_nothing_around_the_tensors_is_read_or_written(
    n: int, m: int, d: int, options: dict[str, bool], seed: int, isa: str
) -> None:
    given = problem(seed, **options, n=n, m=m, d=d)
    guarded = Guarded()
    expected = given.run(native)
    pairs = Pairs._make(guarded(value) if isinstance(value, Tensor) else value for value in given.pairs)
    rows = guarded(given.anchors), guarded(given.keys), guarded(given.grad_loss)
    found = replace(given, anchors=rows[0], keys=rows[1], grad_loss=rows[2], pairs=pairs).run(native)
    assert all(map(torch.equal, found, expected))
    assert guarded.untouched()


def test_a_gradient_of_a_map_is_written_at_its_pixels_alone() -> None:
    index, grad = torch.tensor([29, -1, 0, 29, 7]), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    like = Origin([2, 3, 3, 5], [45, 15, 5, 1], torch.float32)
    dense = native.gather_backward(grad, None, index, None, False, like)
    view, buffer = surrounded(torch.full((2, 3, 3, 5), torch.nan))
    torch.ops.secl_native.gather_backward(grad, None, None, index, None, None, False, view)
    written = torch.zeros(2, 15, dtype=torch.bool).flatten().index_fill(0, index[index >= 0], True)
    written = written.view(2, 1, 3, 5).expand(2, 3, 3, 5)
    assert torch.equal(view[written], dense[written])
    assert int(buffer.isfinite().sum()) == int(written.sum())


@pytest.mark.parametrize("shared", [False, True])
def test_more_pairs_than_32_bits_count(shared: bool, threads: Callable[[int], None]) -> None:
    n, scale, picked = 47_000, 5.0, torch.tensor([0, 23_500, 46_999])
    assert n * n > 2**31
    threads(2)
    generator = torch.Generator().manual_seed(1)
    anchors, keys = (torch.nn.functional.normalize(torch.randn(n, 2, generator=generator), dim=1) for _ in range(2))
    labels, key_labels = (torch.randint(0, 3, (n,), generator=generator, dtype=torch.int32) for _ in range(2))
    if shared:
        keys, key_labels = anchors, labels
    flags = Flag.UNIT | (Flag.SELF if shared else Flag.NEGATIVES | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT)
    pairs, upstream = Pairs(labels, key_labels, None, None, None, 0, n), torch.full((n,), 1 / n)
    state = native.contrast_forward(anchors, keys, pairs, scale, flags)
    factors = (upstream, *push_and_draw(state))
    both = native.contrast_backward(factors, anchors, keys, pairs, state.lse, scale, flags & ~Flag.ANCHOR_GRADIENT)
    found = [
        state.loss[picked],
        both[0][picked] if shared else state.grad_anchors[picked],
        *([] if shared else [both[1][picked]]),
    ]
    one_way = flags & (Flag.UNIT | Flag.NEGATIVES)
    as_anchors = Pairs(labels[picked], key_labels, None, None, picked if shared else None, 0, n)
    blind = torch.full((n,), -1).index_copy(0, picked, torch.arange(3)) if shared else None
    as_keys = Pairs(labels, key_labels[picked], None, None, blind, 0, 3)
    expected = []
    for dtype in (torch.float64, torch.float32):
        a, k = anchors.to(dtype), keys.to(dtype)
        row = reference.contrast_forward(a[picked], k, as_anchors, scale, one_way | Flag.ANCHOR_GRADIENT)
        of_keys = reference.contrast_backward(
            factors, a, k[picked], as_keys, state.lse, scale, one_way | Flag.KEY_GRADIENT
        )[1]
        gradients = [row.grad_anchors / n + of_keys] if shared else [row.grad_anchors, of_keys]
        expected.append([row.loss, *gradients])
    for name, *values in zip(("loss", "gradient", "key gradient"), found, *expected, strict=False):
        assert_within_budget(name, *values, amplification=4 * scale)


@pytest.mark.parametrize("n", [193, 1000, 2311])
@pytest.mark.parametrize(
    "flags", [Flag.SELF | Flag.UNIT, Flag.SELF | Flag.UNIT | Flag.NEGATIVES], ids=["all", "negatives"]
)
def test_every_pair_of_blocks_meets_once(flags: Flag, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
    labels = torch.randint(0, 5, (n,), generator=generator, dtype=torch.int32)
    pairs, upstream, found = Pairs(labels, labels, None, None, None, 0, n), torch.full((n,), 1 / n), []
    for backend, dtype in ((native, torch.float32), (reference, torch.float64), (reference, torch.float32)):
        values = rows.to(dtype)
        state = backend.contrast_forward(values, values, pairs, 5.0, flags)
        factors = (upstream.to(dtype), *push_and_draw(state))
        gradient = backend.contrast_backward(factors, values, values, pairs, state.lse, 5.0, flags)[0]
        found.append((state.loss, gradient))
    for name, *each in zip(("loss", "gradient"), *found, strict=True):
        assert_within_budget(name, *each, amplification=20, magnitude=5.0 if name == "loss" else 0.0)
