# SPDX-License-Identifier: Apache-2.0
"""What programs do around a loss: fork, copy, pickle, export, go back twice, name a device that is not current."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import secl_ops

RANDOM = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 8, 12, 12, generator=RANDOM)
CLASSES = torch.randint(0, 3, (2, 12, 12), generator=RANDOM)
SECONDS = 120  # what a worker may take before it counts as hung


def criterion(backend: str = "auto", **options: Any) -> secl_ops.PixelContrastLoss:
    return secl_ops.PixelContrastLoss(10, 3, backend=backend, **options)


def gradient(loss: nn.Module, device: str = "cpu") -> Tensor:
    maps = MAPS.to(device, copy=True).requires_grad_()
    loss(maps, CLASSES.to(device)).backward()
    assert maps.grad is not None
    return maps.grad


def many(backend: str) -> Tensor:
    """The gradient of a loss of enough rows for several threads."""
    rows = torch.arange(2048.0 * 64).sin().reshape(2048, 64).requires_grad_()
    secl_ops.info_nce(rows, anchor_labels=torch.arange(2048) % 5, backend=backend).backward()
    assert rows.grad is not None
    return rows.grad


class Lossy(Dataset[Tensor]):
    """A data set whose workers find the gradient of a loss, as one that mines hard pixels may."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Tensor:
        return many(self.backend)


@pytest.mark.parametrize("backend", ["native"], indirect=True)  # the same bits whatever the threads
def test_workers_that_start_after_a_loss_neither_hang_nor_differ(backend: str, threads: Callable[[int], None]) -> None:
    threads(2)
    expected = many(backend)
    data = DataLoader(Lossy(backend), num_workers=2, timeout=SECONDS, multiprocessing_context="fork")
    assert all(torch.equal(found[0], expected) for found in data)
    assert torch.equal(many(backend), expected)


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("twin", [copy.deepcopy, _pickled])
def test_a_copy_goes_on_with_the_sequence_and_shares_nothing(twin: Callable[[Any], Any]) -> None:
    loss = criterion(
        head=nn.Linear(8, 4), queue=secl_ops.ClassQueue(3, 5, 4), temperature=nn.Parameter(torch.tensor(0.2))
    )
    loss.per_class = 9
    gradient(loss)
    other = twin(loss)
    assert other.per_class == 9
    shared = {value.data_ptr() for value in loss.state_dict().values()}
    assert not shared & {value.data_ptr() for value in other.state_dict().values()}
    for _ in range(2):
        assert torch.equal(gradient(other), gradient(loss))
    assert all(map(torch.equal, loss.state_dict().values(), other.state_dict().values()))
    gradient(loss)
    assert not torch.equal(loss.draws, other.draws)


class Learner(nn.Module):
    """A network of one layer, and its loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.loss = nn.Conv2d(8, 4, 1), criterion(**options)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.layer(maps), labels)
        return loss


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # torch's, of the counter
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("backend", ["native", "reference"], indirect=True)
def test_a_loss_is_exported_with_the_network(backend: str, strict: bool) -> None:
    exported = torch.export.export(Learner(backend=backend), (MAPS, CLASSES), strict=strict).module()
    learner = Learner(backend=backend)
    for _ in range(2):  # the counter of draws advances in the graph
        assert torch.equal(exported(MAPS, CLASSES), learner(MAPS, CLASSES))


def _joined(maps: Tensor, backend: str) -> Tensor:
    labels = CLASSES.to(maps.device)
    return secl_ops.pixel_contrast(maps, labels, per_class=10, num_classes=3, seed=0, backend=backend)


def _in_pieces(maps: Tensor, backend: str) -> Tensor:
    rows, labels = maps.movedim(1, -1).flatten(0, -2)[:90], CLASSES.to(maps.device).flatten()[:90]
    return secl_ops.info_nce(
        rows[:30], [rows[30:70], rows[70:]], anchor_labels=labels[:30],
        key_labels=[labels[30:70], labels[70:]], backend=backend,
    )  # fmt: skip


@pytest.mark.parametrize("call", [_joined, _in_pieces])
def test_a_second_backward_pass_adds_the_same_gradient(
    call: Callable[[Tensor, str], Tensor], backend: str, device: str
) -> None:
    maps = MAPS.to(device, copy=True).requires_grad_()
    loss, found = call(maps, backend), []
    for keeps in (True, True, False):
        loss.backward(retain_graph=keeps)
        assert maps.grad is not None
        found.append(maps.grad.clone())
    assert torch.equal(found[1], 2 * found[0])
    assert torch.equal(found[2], found[1] + found[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("backend", ["native", "triton", "reference"], indirect=True)
def test_tensors_lie_on_a_device_that_is_not_current(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device that is not current needs two CUDA devices")
    with torch.cuda.device(0):
        there, here = (gradient(criterion(backend).to(name), name) for name in ("cuda:1", "cuda:0"))
    assert torch.equal(there.cpu(), here.cpu())
