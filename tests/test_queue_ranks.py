# SPDX-License-Identifier: Apache-2.0
"""A queue in several processes: whose rows it holds under DistributedDataParallel, and that this is said."""

from __future__ import annotations

import importlib
import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secl_ops
from tests.models.ranks import finish, start_ranks

LABELS = torch.zeros(1, 2, 2, dtype=torch.int64)


class Model(nn.Module):
    """One weight, and a loss with a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.criterion = secl_ops.PixelContrastLoss(1, 1, queue=secl_ops.ClassQueue(1, 4, 1))

    def forward(self, maps: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.weight * maps, LABELS, maps)
        return loss


def options(keeps: bool) -> dict[str, Any]:
    """How each rank is told to keep its buffers, by the name that this torch has for it."""
    named = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
    return {name: False} if keeps else {}


def steps(rank: int, keeps: bool) -> tuple[list[float], list[str]]:
    """The rows after two passes over maps of the rank's own number, and what was said."""
    model = DistributedDataParallel(Model(), **options(keeps))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(2):
            model(torch.full((1, 1, 2, 2), 10.0 * rank + step + 1)).sum().backward()
    return model.module.criterion.queue.keys.flatten().tolist(), [str(each.message) for each in said]


def both(rank: int, folder: Path) -> None:
    """What a rank finds where buffers are kept, and where they are not."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.save([steps(rank, keeps) for keeps in (True, False)], folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_each_rank_keeps_its_rows_or_is_told_that_it_does_not(tmp_path: Path) -> None:
    importlib.import_module("torch._dynamo")  # which DistributedDataParallel does: once, not in each process
    assert [finish(each) for each in start_ranks(2, partial(both, folder=tmp_path))] == [0, 0]
    kept, lost = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    assert kept == (([1.0, 2.0, 0.0, 0.0], []), ([11.0, 12.0, 0.0, 0.0], []))
    assert [rows for rows, _ in lost] == [[1.0, 2.0, 0.0, 0.0], [1.0, 12.0, 0.0, 0.0]]  # 12: until the next pass
    for _, said in lost:
        (message,) = {each for each in said if "ClassQueue" in each}
        assert "overwrites the rows of a ClassQueue by those of rank 0" in message
        assert "broadcast_buffers=False" in message


def test_alone_nothing_is_said() -> None:
    criterion = secl_ops.PixelContrastLoss(1, 1, queue=secl_ops.ClassQueue(1, 4, 1))
    criterion(torch.ones(1, 1, 2, 2), LABELS)
