# SPDX-License-Identifier: Apache-2.0
"""A second derivative is refused by name, of whatever and by whatever it is taken; a first one may be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import secl_ops
from tests.cases import labels, rows

ROWS = 12
Loss = Callable[..., Tensor]
Case = Callable[[str, str, bool], tuple[Loss, list[Tensor]]]


def _info_nce(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    anchor_labels, key_labels = (labels(ROWS, 3, seed).to(device) for seed in (0, 1))

    def loss(anchors: Tensor, keys: Tensor, temperature: Tensor, weights: Tensor) -> Tensor:
        return secl_ops.info_nce(
            anchors, keys, anchor_labels=anchor_labels, key_labels=key_labels, temperature=temperature,
            weights=weights, validate=validate, backend=backend,
        )  # fmt: skip

    return loss, [rows(ROWS, 8, 0), rows(ROWS, 8, 1), torch.tensor(0.2), torch.rand(ROWS)]


def _self_contrast(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    own = labels(ROWS, 3, 0).to(device)

    def loss(anchors: Tensor) -> Tensor:
        return secl_ops.info_nce(anchors, anchor_labels=own, validate=validate, backend=backend)

    return loss, [rows(ROWS, 8, 0)]


def _parts(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    anchor_labels, key_labels = (labels(ROWS, 3, seed).to(device) for seed in (0, 1))

    def loss(anchors: Tensor, keys: Tensor) -> Tensor:
        parts = secl_ops.info_nce_parts(
            anchors, keys, anchor_labels=anchor_labels, key_labels=key_labels, validate=validate, backend=backend
        )
        return parts.loss.sum()

    return loss, [rows(ROWS, 8, 0), rows(ROWS, 8, 1)]


def _sigmoid(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    own = labels(ROWS, 3, 0).to(device)

    def loss(anchors: Tensor, keys: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return secl_ops.sigmoid_contrast(
            anchors, keys, anchor_labels=own, key_labels=own, scale=scale, bias=bias, validate=validate,
            backend=backend,
        )  # fmt: skip

    return loss, [rows(ROWS, 8, 0), rows(ROWS, 8, 1), torch.tensor(10.0), torch.tensor(-10.0)]


def _pixels(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    own = labels(2 * 6 * 6, 3, 0).view(2, 6, 6).to(device)

    def loss(features: Tensor) -> Tensor:
        return secl_ops.pixel_contrast(
            features, own, per_class=4, num_classes=3, seed=0, validate=validate, backend=backend
        )

    return loss, [rows(2 * 8 * 6, 6, 0).view(2, 8, 6, 6)]


def _gathered(backend: str, device: str, validate: bool) -> tuple[Loss, list[Tensor]]:
    place = torch.arange(ROWS, device=device)

    def loss(features: Tensor) -> Tensor:
        found = secl_ops.gather_pixels(features, place, normalize=True, validate=validate, backend=backend)
        return found[:, 0].square().sum()

    return loss, [rows(8 * 6, 6, 0).view(1, 8, 6, 6)]


CASES: list[Case] = [_info_nce, _self_contrast, _parts, _sigmoid, _pixels, _gathered]


@pytest.mark.parametrize("validate", [False, True], ids=["short way", "long way"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_a_second_derivative_is_refused_by_every_source(case: Case, validate: bool, backend: str, device: str) -> None:
    loss, given = case(backend, device, validate)
    leaves = [source.to(device).requires_grad_() for source in given]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, create_graph=True)
    penalised = value + sum(gradient.square().sum() for gradient in gradients)
    for by in leaves:
        with pytest.raises(RuntimeError, match="secl_ops has first derivatives only"):
            torch.autograd.grad(penalised, by, retain_graph=True)


def test_a_hessian_is_refused(backend: str, device: str) -> None:
    loss, (anchors,) = _self_contrast(backend, device, False)
    with pytest.raises(RuntimeError, match="secl_ops has first derivatives only"):
        torch.autograd.functional.hessian(lambda rows: loss(2 * rows), anchors.to(device))


def test_a_second_derivative_by_the_weight_of_the_loss_is_refused(backend: str, device: str) -> None:
    loss, given = _self_contrast(backend, device, False)
    leaf, share = given[0].to(device).requires_grad_(), torch.tensor(2.0, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(share * loss(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="secl_ops has first derivatives only"):
        torch.autograd.grad(gradient.sum(), share)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_first_derivative_with_a_graph_is_that_without(backend: str, device: str) -> None:
    loss, given = _self_contrast(backend, device, False)
    found = []
    for create_graph in (False, True):
        leaf = given[0].clone().to(device).requires_grad_()
        loss(leaf).backward(create_graph=create_graph)
        assert leaf.grad is not None
        found.append(leaf.grad.detach())
    assert torch.equal(*found)


def test_fake_tensors_leave_nothing_behind() -> None:
    place = torch.arange(4)
    with FakeTensorMode() as mode:
        features = mode.from_tensor(torch.randn(1, 8, 12, 12)).requires_grad_()
        secl_ops.gather_pixels(2 * features, mode.from_tensor(place), backend="reference").sum().backward()
    real = torch.randn(1, 8, 12, 12, requires_grad=True)
    secl_ops.gather_pixels(2 * real, place, backend="reference").sum().backward()
    assert real.grad is not None


def test_the_way_back_to_a_source_keeps_none_of_its_values() -> None:
    features = torch.randn(1, 8, 12, 12, requires_grad=True)
    rows_of = secl_ops.gather_pixels(2 * features, torch.arange(4), backend="reference")
    (source,) = rows_of.grad_fn.sources  # type: ignore[union-attr]
    assert source.untyped_storage().nbytes() == 0
