# SPDX-License-Identifier: Apache-2.0
"""Keys in pieces: the loss and every gradient are those of the joined keys, in one call or merged by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from tests.budget import assert_within_budget
from tests.cases import labels, rows, separate
from tests.oracle import Call, Separate, present
from tests.oracle import dense as plain
from tests.test_backends import on

pytestmark = pytest.mark.usefixtures("poisoned")
LEARNING = ("anchors", "keys")
CUTS = (0, 5, 5, 31, 45)  # of 45 keys: shards of ragged sizes, one of them empty


def pieces(value: Tensor) -> list[Tensor]:
    return [value[begin:end] for begin, end in itertools.pairwise(CUTS)]


def joined(denominator: str) -> Separate:
    call = separate(31, 45, 16, 3)
    return replace(
        call, denominator=denominator, anchor_groups=labels(31, 2, 8), key_groups=labels(45, 2, 9),
        exclude=labels(31, 45, 5, ignored=0.3), weights=torch.arange(31) % 4 / 2.0,
    )  # fmt: skip


def in_pieces(call: Separate) -> dict[str, Any]:
    """Keywords of `info_nce` with the keys cut, and leaves of their own."""
    shards = [piece.detach().clone().requires_grad_() for piece in pieces(call.keys)]
    cut: dict[str, Any] = {"keys": shards, "key_labels": pieces(call.key_labels)}
    if call.key_groups is not None:
        cut["key_groups"] = pieces(call.key_groups)
    return {**call.arguments(), **cut}


def compare(call: Call, loss: Tensor, gradients: list[Tensor]) -> None:
    truth, true_gradients = plain(call.to(torch.float64), LEARNING)
    rough, rough_gradients = plain(call, LEARNING)
    values = zip((loss, *gradients), (truth, *true_gradients), (rough, *rough_gradients), strict=True)
    for number, (actual, true, near) in enumerate(values):
        assert_within_budget(
            f"output {number}", actual.detach().cpu(), true, near, amplification=4 / call.degree,
            magnitude=0 if number else 1 / call.degree,
        )  # fmt: skip


@pytest.mark.thinned(3, backend="triton")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [0.1, 0.004])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_shards_equal_joined_keys(
    denominator: str, temperature: float, reduction: str, backend: str, device: str
) -> None:
    call = replace(joined(denominator), temperature=temperature, reduction=reduction)
    moved = on(call, device)
    arguments = in_pieces(moved)
    arguments["anchors"] = anchors = moved.anchors.clone().requires_grad_()
    loss = secl_ops.info_nce(**arguments, backend=backend)
    found = torch.autograd.grad(loss.sum(), [anchors, *arguments["keys"]])
    compare(call, loss, [found[0], torch.cat(found[1:])])


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_places_merge_to_the_joined_loss(denominator: str, backend: str, device: str) -> None:
    call = replace(joined(denominator), exclude=None, weights=None, reduction="none")
    moved = on(call, device)
    anchors, keys = (value.clone().requires_grad_() for value in (moved.anchors, moved.keys))
    common: dict[str, Any] = {
        "anchor_labels": moved.anchor_labels, "anchor_groups": moved.anchor_groups, "denominator": denominator,
        "backend": backend,
    }  # fmt: skip
    places: list[dict[str, Any]] = [
        {"keys": part, "key_labels": part_labels, "key_groups": groups}
        for part, part_labels, groups in zip(
            pieces(keys), pieces(moved.key_labels), pieces(present(moved.key_groups)), strict=True
        )
    ]
    found = [secl_ops.info_nce_parts(anchors, **place, **common) for place in places]
    lse = torch.stack([part.lse for part in found]).logsumexp(0)
    parts = [secl_ops.info_nce_parts(anchors, **place, **common, lse=lse) for place in places]
    count = torch.stack([part.count for part in parts]).sum(0)
    loss = sum(part.loss * part.count for part in parts) / count.clamp(min=1)
    assert all(torch.equal(part.lse, lse) for part in parts)
    compare(call, loss, list(torch.autograd.grad(loss.sum(), [anchors, keys])))


def test_a_temperature_tensor_learns_from_every_shard(backend: str, device: str) -> None:
    call = on(separate(19, 45, 12, 3, classes=3), device)
    temperature = torch.tensor(0.2, device=device, requires_grad=True)
    whole = torch.tensor(0.2, device=device, requires_grad=True)
    loss = secl_ops.info_nce(**{**in_pieces(call), "temperature": temperature}, backend=backend)
    other = secl_ops.info_nce(**{**call.arguments(), "temperature": whole}, backend=backend)
    (found,), (expected,) = torch.autograd.grad(loss, temperature), torch.autograd.grad(other, whole)
    assert_within_budget("loss", loss.detach().cpu(), other.detach().double().cpu(), other.detach().cpu(),
                         amplification=20)  # fmt: skip
    assert_within_budget("temperature", found.cpu(), expected.double().cpu(), expected.cpu(), amplification=20)


def test_frozen_shards_are_neither_copied_nor_given_a_gradient(backend: str, device: str) -> None:
    call = on(separate(9, 45, 12, 3, classes=3), device)
    anchors = call.anchors.clone().requires_grad_()
    frozen, learning = call.keys[:30], call.keys[30:].clone().requires_grad_()
    loss = secl_ops.info_nce(
        anchors, [frozen, learning], anchor_labels=call.anchor_labels,
        key_labels=[call.key_labels[:30], call.key_labels[30:]], backend=backend,
    )  # fmt: skip
    frozen.fill_(torch.nan)  # what the backward pass needs of it is saved as rows of the anchors
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [anchors, learning]))


def test_nan_in_an_ignored_key_stays_there_and_in_a_read_one_travels(backend: str, device: str) -> None:
    call = on(separate(9, 45, 12, 3, classes=3, ignored=0.0), device)
    keys = call.keys.clone()
    keys[40] = torch.nan
    for label, finite in ((-1, True), (1, False)):
        key_labels = call.key_labels.clone()
        key_labels[40] = label
        anchors = call.anchors.clone().requires_grad_()
        loss = secl_ops.info_nce(
            anchors, [keys[:30], keys[30:]], anchor_labels=call.anchor_labels,
            key_labels=[key_labels[:30], key_labels[30:]], backend=backend,
        )  # fmt: skip
        assert bool(loss.isfinite()) is finite
        assert bool(torch.autograd.grad(loss, anchors)[0].isfinite().all()) is finite


def test_an_infinite_upstream_reaches_only_anchors_that_count(backend: str, device: str) -> None:
    call = on(separate(9, 45, 12, 3, classes=3, ignored=0.4), device)
    keys = [call.keys[:30].clone().requires_grad_(), call.keys[30:]]
    anchors = call.anchors.clone().requires_grad_()
    loss = secl_ops.info_nce(
        anchors, keys, anchor_labels=call.anchor_labels, key_labels=[call.key_labels[:30], call.key_labels[30:]],
        backend=backend,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, anchors, torch.full_like(loss, torch.inf))
    ignored = call.anchor_labels < 0
    assert ignored.any()
    assert (gradient[ignored] == 0).all()
    assert not gradient[~ignored].isfinite().any()


def test_nothing_to_contrast_gives_zero_with_a_graph(backend: str, device: str) -> None:
    anchors = rows(4, 6, 0).to(device).requires_grad_()
    keys = [rows(3, 6, 1).to(device), rows(0, 6, 2).to(device)]
    absent = [torch.full((3,), -1, device=device), torch.full((0,), -1, device=device)]
    for anchor_labels in (torch.zeros(4, dtype=torch.int64, device=device), torch.full((4,), -1, device=device)):
        loss = secl_ops.info_nce(anchors, keys, anchor_labels=anchor_labels, key_labels=absent, backend=backend)
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, anchors)[0], torch.zeros_like(anchors))


def test_second_derivative_is_refused(backend: str, device: str) -> None:
    call = on(separate(5, 45, 4), device)
    anchors = call.anchors.clone().requires_grad_()
    loss = secl_ops.info_nce(**{**in_pieces(call), "anchors": anchors}, backend=backend)
    (gradient,) = torch.autograd.grad(loss, anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


def test_compiles_to_one_graph() -> None:
    call = separate(9, 45, 12, 3)

    def step(anchors: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return secl_ops.info_nce(
            anchors, [first, second], anchor_labels=call.anchor_labels,
            key_labels=[call.key_labels[:30], call.key_labels[30:]],
        )  # fmt: skip

    values = (call.anchors.clone().requires_grad_(), call.keys[:30], call.keys[30:])
    torch._dynamo.reset()
    loss, eager = torch.compile(step, fullgraph=True, backend="aot_eager")(*values), step(*values)
    assert torch.equal(loss, eager)
    assert torch.equal(torch.autograd.grad(loss, values[0])[0], torch.autograd.grad(eager, values[0])[0])
