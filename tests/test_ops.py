# SPDX-License-Identifier: Apache-2.0
"""The operations are good torch citizens: opcheck, one graph under torch.compile, dynamic sizes, no graph break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import ops
from secl_ops.engines.reference import ContrastState
from secl_ops.spec import Flag
from tests.budget import assert_within_budget
from tests.cases import alone, labels, push_and_draw, rows, separate

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def permuted(value: Tensor) -> Tensor:
    """The same values in another dense layout: a contiguous input hides a fake that copies strides."""
    return value.T.contiguous().T


def contrast_arguments(
    flags: Flag, permute: bool, weights: Tensor | None = None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    call = separate(9, 13, 8)
    anchors, keys = (permuted(value) if permute else value for value in (call.anchors, call.keys))
    pairs = (
        call.anchor_labels.int(),
        call.key_labels.int(),
        labels(9, 2, 0).int(),
        labels(13, 2, 1).int(),
        None,
        0,
        13,
        weights,
    )
    return (anchors, keys, *pairs), (None, None, 10.0, int(flags), "auto")


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("denominator", [Flag.NEGATIVES, Flag(0)])
def test_opcheck_contrast(denominator: Flag, permute: bool) -> None:
    flags = denominator | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT
    tensors, options = contrast_arguments(flags, permute)
    torch.library.opcheck(ops.contrast, (*tensors, *options), test_utils=CHECKS)
    state = ContrastState(*ops.contrast(*tensors, *options))
    arguments = (torch.ones(9), *push_and_draw(state), *tensors, state.lse, *options[2:])
    torch.library.opcheck(ops.contrast_backward, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("denominator", [Flag.NEGATIVES, Flag(0)])
def test_opcheck_contrast_of_weighted_keys(denominator: Flag) -> None:
    tensors, options = contrast_arguments(denominator | Flag.ANCHOR_GRADIENT, False, torch.arange(1.0, 14.0))
    torch.library.opcheck(ops.contrast, (*tensors, *options), test_utils=CHECKS)
    state = ContrastState(*ops.contrast(*tensors, *options))
    assert state.count.dtype == torch.float32
    flags = int(denominator | Flag.KEY_GRADIENT)
    arguments = (torch.ones(9), *push_and_draw(state), *tensors, state.lse, options[2], flags, "auto")
    torch.library.opcheck(ops.contrast_backward, arguments, test_utils=CHECKS)
    torch.library.opcheck(ops.reduce, (*state[:1], *state[2:4], None, "mean", "auto"), test_utils=CHECKS)


@pytest.mark.parametrize("permute", [False, True])
def test_opcheck_rows_maps_and_samples(permute: bool) -> None:
    matrix = permuted(rows(7, 5, 0)) if permute else rows(7, 5, 0)
    unit, inverse = ops.unit_rows(matrix, labels(7, 3, 0).int(), "auto")
    torch.library.opcheck(ops.unit_rows, (matrix, labels(7, 3, 0).int(), "auto"), test_utils=CHECKS)
    numbers = (torch.ones(7), torch.tensor(0.5).expand(7))
    for factors in ((None, None), numbers):
        backward = (rows(7, 5, 1), *factors, unit, inverse, "auto")
        torch.library.opcheck(ops.unit_rows_backward, backward, test_utils=CHECKS)
    features = torch.randn(2, 3, 4, 5)
    features = features.contiguous(memory_format=torch.channels_last) if permute else features
    index = torch.tensor([0, 39, -1, 7])
    for normalize in (False, True):
        given = (features, index, normalize, torch.bfloat16, "auto")
        torch.library.opcheck(ops.gather, given, test_utils=CHECKS)
        norm = ops.gather(*given) if normalize else (None, None)
        factors = (torch.ones(4), torch.ones(4)) if normalize else (None, None)
        layout = (list(features.shape), list(features.stride()), torch.float32)
        backward = (torch.randn(4, 3), *factors, index, *norm, True, *layout, "auto")
        torch.library.opcheck(ops.gather_backward, backward, test_utils=CHECKS)
    maps = torch.randint(0, 3, (2, 4, 5))
    sample = (maps, None, None, torch.tensor([3]), 4, 3, -1, "uniform", 5, "auto")
    torch.library.opcheck(ops.sample, sample, test_utils=CHECKS)


@pytest.mark.parametrize("weights", [None, torch.arange(5) / 4])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_opcheck_reduce(reduction: str, weights: Tensor | None) -> None:
    count = torch.tensor([1, 0, 3, 2, 0], dtype=torch.int32)
    given = (torch.rand(5), torch.rand(5), count, weights, reduction, "auto")
    torch.library.opcheck(ops.reduce, given, test_utils=CHECKS)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_info_nce_compiles_to_one_graph_for_any_size(denominator: str) -> None:
    for kind in ([separate(n, n + 5, 8) for n in (12, 23)], [alone(n, 8) for n in (12, 23)]):
        calls = [replace(call, denominator=denominator) for call in kind]

        def loss(anchors: Tensor, anchor_labels: Tensor, keys: Tensor | None, key_labels: Tensor | None) -> Tensor:
            return secl_ops.info_nce(
                anchors,
                keys,
                anchor_labels=anchor_labels,
                key_labels=key_labels,
                denominator=denominator,
            )

        graph = compiled(loss)
        for call in calls:
            outputs = []
            for run in (loss, graph):
                moved, leaves = call.leaves()
                value = run(moved.anchors, moved.anchor_labels, moved.keys, moved.key_labels)
                outputs.append([value.detach(), *torch.autograd.grad(value, leaves)])
            assert all(map(torch.equal, *outputs))


def test_pixel_contrast_loss_compiles_to_one_graph_and_draws_afresh() -> None:
    maps = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for wrap in (lambda module: module, compiled):
        criterion = secl_ops.PixelContrastLoss(4, 3, queue=secl_ops.ClassQueue(3, 6, 8))
        run = wrap(criterion)
        leaf = features.clone().requires_grad_()
        values = [run(leaf, maps, features, maps) for _ in range(3)]
        values[-1].backward()
        losses.append([*(value.detach() for value in values), leaf.grad, *criterion.state_dict().values()])
    assert len({float(value) for value in losses[0][:3]}) == 3
    for eager, graph in zip(*losses, strict=True):
        assert_within_budget("compiled", graph.float(), eager.double(), eager.float())


def test_no_gradient_means_no_gradient_work() -> None:
    call = separate(6, 7, 4)
    assert not secl_ops.info_nce(**call.arguments()).requires_grad
    with torch.no_grad():
        moved, _ = call.leaves()
        assert not secl_ops.info_nce(**moved.arguments()).requires_grad
