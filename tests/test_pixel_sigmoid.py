# SPDX-License-Identifier: Apache-2.0
"""`PixelSigmoidLoss`: the sigmoid loss of the pixels that it draws, a line's change from `PixelContrastLoss`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import secl_ops
from secl_ops.maps import KEY_DRAW
from secl_ops.pixels import draw_pixels
from tests.budget import assert_within_budget
from tests.test_ops import compiled

untyped: Any = secl_ops
DRAW: dict[str, Any] = {"per_class": 4, "num_classes": 3, "ignore_index": 255}
NUMBERS: dict[str, Any] = {"scale": 4.0, "bias": -1.0}
LABELS = torch.randint(0, 3, (2, 12, 12), generator=torch.Generator().manual_seed(0))
MAPS = torch.randn(2, 2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def rows(criterion: secl_ops.PixelSigmoidLoss, features: Tensor, stream: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and labels of the pixels that the next call draws from a map."""
    options: dict[str, Any] = {"eligible": None, "scores": None, "seed": criterion.draws, "stream": stream}
    drawn = draw_pixels(LABELS[:, 1::2, 1::2], criterion.sampling, **options)
    return secl_ops.gather_pixels(features, drawn.index, unique=True, backend="reference"), drawn.label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["self", "teacher", "head", "queue", "teacher and queue"])
def test_it_is_the_loss_of_the_rows_that_are_drawn(kind: str, dtype: torch.dtype) -> None:
    head = nn.Linear(8, 5, dtype=dtype) if kind == "head" else None
    queue = secl_ops.ClassQueue(3, 4, 8) if "queue" in kind else None
    criterion = secl_ops.PixelSigmoidLoss(**DRAW, **NUMBERS, head=head, queue=queue)
    features, teacher = (each.to(dtype) for each in MAPS)
    sides = (teacher,) if "teacher" in kind else ()
    criterion(features, LABELS, *sides)  # a queue is filled
    assert queue is None or queue.written.any()
    leaves = [features.clone().requires_grad_() for _ in range(2)]
    anchors, anchor_labels = rows(criterion, leaves[1])
    anchors = anchors if head is None else head(anchors)
    sets = [rows(criterion, teacher, KEY_DRAW) if sides else (anchors, anchor_labels)]
    if queue is not None:
        sets.append((queue.keys.clone().to(dtype), queue.key_labels.clone()))
    keys, key_labels = ([*each] for each in zip(*sets, strict=True))
    expected = secl_ops.sigmoid_contrast(
        anchors, keys, anchor_labels=anchor_labels, key_labels=key_labels, backend="reference", **NUMBERS,
        exclude=torch.full((24,), -1) if sides else torch.arange(24),
    )  # fmt: skip
    loss = criterion(leaves[0], LABELS, *sides)
    rounding = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps  # unit rows and gradients take the maps' dtype
    true = expected.detach()
    assert_within_budget("loss", loss.detach(), true.double(), true, amplification=4 * rounding)
    ours, theirs = (torch.autograd.grad(*each)[0].float() for each in zip((loss, expected), leaves, strict=True))
    assert_within_budget("map", ours, theirs.double(), theirs, amplification=40 * rounding)


def test_scale_and_bias_learn() -> None:
    criterion = secl_ops.PixelSigmoidLoss(**DRAW)
    assert {name for name, _ in criterion.named_parameters()} == {"log_scale", "bias"}
    optimiser = torch.optim.SGD(criterion.parameters(), lr=0.01)
    before = criterion(MAPS[0], LABELS)
    for _ in range(20):
        optimiser.zero_grad()
        criterion(MAPS[0], LABELS).backward()
        optimiser.step()
    assert criterion(MAPS[0], LABELS) < before
    assert criterion.bias > -10.0
    criterion.requires_grad_(False)
    assert not criterion(MAPS[0], LABELS).requires_grad


def test_each_call_draws_afresh_and_a_resumed_run_goes_on() -> None:
    criterion = secl_ops.PixelSigmoidLoss(**DRAW, seed=3)
    losses = [criterion(MAPS[0], LABELS).item() for _ in range(2)]
    resumed = secl_ops.PixelSigmoidLoss(**DRAW)
    resumed.load_state_dict(criterion.state_dict())
    losses += [each(MAPS[0], LABELS).item() for each in (criterion, resumed)]
    assert losses[2] == losses[3]
    assert len(set(losses)) == 3


def test_a_recomputation_sees_the_pixels_that_it_repeats() -> None:
    features, found = MAPS[0].clone().requires_grad_(), []
    for around in (False, True):
        criterion = secl_ops.PixelSigmoidLoss(**DRAW, queue=secl_ops.ClassQueue(3, 4, 8))
        for _ in range(2):
            given: tuple[Any, ...] = (features, LABELS)
            loss = checkpoint(criterion, *given, use_reentrant=False) if around else criterion(*given)
        found.append([loss.detach(), *torch.autograd.grad(loss, [features, criterion.bias]), criterion.draws])
    assert all(map(torch.equal, *found))


def test_it_compiles_to_one_graph() -> None:
    found = []
    for wrap in (lambda module: module, compiled):
        criterion = secl_ops.PixelSigmoidLoss(**DRAW, queue=secl_ops.ClassQueue(3, 6, 8))
        run, leaf = wrap(criterion), MAPS[0].clone().requires_grad_()
        losses = [run(leaf, LABELS, MAPS[1]) for _ in range(3)]
        losses[-1].backward()
        gradients = [parameter.grad for parameter in criterion.parameters()]
        found.append([*(loss.detach() for loss in losses), leaf.grad, *gradients, *criterion.state_dict().values()])
    for eager, graph in zip(*found, strict=True):
        assert_within_budget("compiled", graph.float(), eager.double(), eager.float(), amplification=4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be above 0, since its logarithm learns; got 0.0"),
        ({"scale": torch.ones(1)}, TypeError, "scale must be a float, what the module's own parameter starts at; got"),
        ({"bias": nn.Parameter(torch.ones(1))}, TypeError, "bias must be a float, what the module's own parameter"),
        ({"bias": None}, TypeError, "bias must be a float or a one-element tensor; got NoneType"),
        ({"head": 1}, TypeError, "head must be a torch.nn.Module"),
        ({"queue": secl_ops.ClassQueue(2, 2, 3)}, ValueError, "queue must hold num_classes=3 classes"),
        ({"seed": 1.5}, TypeError, "seed must be an int; got float"),
    ],
)
def test_refusal(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        untyped.PixelSigmoidLoss(**{**DRAW, **options})


def test_an_option_that_is_set_is_checked_as_at_the_start() -> None:
    criterion = secl_ops.PixelSigmoidLoss(**DRAW)
    with pytest.raises(ValueError, match="reduction must be one of"):
        criterion.reduction = "avg"
    criterion.reduction = "none"
    assert criterion(MAPS[0], LABELS).shape == (2 * 3 * 4,)
    assert "reduction='none'" in repr(criterion)
