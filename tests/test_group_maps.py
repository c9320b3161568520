# SPDX-License-Identifier: Apache-2.0
"""Feature maps in a group of processes: each draws its own pixels, all contrast them, and their queues stay equal."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import secl_ops
from secl_ops.distributed import STREAM_STRIDE
from tests.budget import assert_within_budget
from tests.group_ranks import WAYS, exchanged, said
from tests.oracle import Call, dense_loss
from tests.test_group import Found, ran

WORLD, STEPS = 2, 2
KEY_DRAW = 0x5ECC
DRAW: dict[str, Any] = {"per_class": 3, "num_classes": 3}
MODES = ("self", "teacher", "head", "queue", "self and queue", "head and queue")
CLASSES = torch.tensor([0] * 20 + [1] * 25 + [2] * 3 + [-1] * 2).reshape(2, 5, 5)  # class 2 leaves places free


def maps(rank: int, step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's map of a process."""
    random = torch.Generator().manual_seed(100 * step + rank)
    student, teacher = (torch.randn(2, 6, 5, 5, generator=random) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def made(mode: str) -> tuple[nn.Module | None, secl_ops.ClassQueue | None]:
    """Head and queue of a mode."""
    torch.manual_seed(3)
    head = nn.Linear(6, 4) if "head" in mode else None
    return head, secl_ops.ClassQueue(3, 5, 4 if head else 6) if "queue" in mode else None


def steps(rank: int, world: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Two steps in each mode and way: losses, gradients of the maps, and the queue that is left."""
    results = {}
    for mode in MODES:
        for way in WAYS:
            head, queue = made(mode)
            criterion = secl_ops.PixelContrastLoss(**DRAW, head=head, queue=queue, group=dist.group.WORLD)
            found = []
            for step in range(STEPS):
                student, teacher = maps(rank, step)
                with exchanged(way):
                    loss = criterion(student, CLASSES, None if mode.startswith("self") else teacher)
                    loss.backward()
                found.append((loss.detach(), student.grad))
            results[mode, way] = {"steps": found, "queue": {} if queue is None else queue.state_dict()}
    return results


class Model(nn.Module):
    """A layer and a loss with a queue; checkpointed or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.reentrant = nn.Conv2d(6, 6, 1), reentrant
        self.criterion = secl_ops.PixelContrastLoss(**DRAW, queue=secl_ops.ClassQueue(3, 5, 6), group=dist.group.WORLD)

    def forward(self, student: Tensor) -> Tensor:
        if self.reentrant is None:
            return self._loss(student)
        loss: Tensor = checkpoint(self._loss, student, use_reentrant=self.reentrant)
        return loss

    def _loss(self, student: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.layer(student), CLASSES)
        return loss


def replays(rank: int, world: int) -> list[list[Tensor | None]]:
    """What DistributedDataParallel leaves of two steps, without a checkpoint and with either."""
    left = []
    for reentrant in (None, False, True):
        model = DistributedDataParallel(Model(reentrant))
        for step in range(STEPS):
            model(maps(rank, step)[0]).backward()
        left.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    return left


def looked_at(rank: int, world: int) -> dict[str, Any]:
    """A copied module, a pickled one, and what else is asked once."""
    criterion = secl_ops.PixelContrastLoss(**DRAW, group=dist.group.WORLD)
    student, teacher = maps(0, 0)  # the same in every process
    again = copy.deepcopy(criterion)
    with torch.no_grad():
        losses = [each(student, CLASSES, teacher) for each in (criterion, again)]
    third = secl_ops.PixelContrastLoss(**DRAW, queue=secl_ops.ClassQueue(3, 5, 6))
    third.group = dist.group.WORLD
    fourth = copy.deepcopy(third)
    compiled = torch.compile(fourth, backend="eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile looks for a gradient of what stands between two graphs
        pairs = [(compiled(student, CLASSES, teacher), third(student, CLASSES, teacher)) for _ in range(2)]
    return {
        "copied": torch.equal(*losses) and again.group is criterion.group is third.group,
        "pickled": said(lambda: pickle.dumps(criterion)),
        "compiled": all(torch.equal(*pair) for pair in pairs),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    tasks = {"steps": steps, "replays": replays, "looked at": looked_at}
    return ran(WORLD, tmp_path_factory.mktemp("maps"), tasks)


def drawn(values: Tensor, seed: int, rank: int) -> tuple[Tensor, Tensor]:
    """Rows and labels of what a process draws with a seed."""
    stream = rank * STREAM_STRIDE % 2**63
    sample = secl_ops.sample_pixels(CLASSES, **DRAW, seed=seed ^ stream)
    index = sample.index[sample.index >= 0]
    return values.movedim(1, -1).flatten(0, -2)[index], sample.label[sample.index >= 0]


def by_hand(mode: str, dtype: torch.dtype) -> list[tuple[Tensor, list[Tensor]]]:
    """Loss and gradients of the maps in each step, of the joined batch in plain torch."""
    head, queue = made(mode)
    head = nn.Identity() if head is None else head.to(dtype)
    seed, results = int(secl_ops.PixelContrastLoss(**DRAW).draws), []
    for step in range(STEPS):
        every = [maps(rank, step, dtype) for rank in range(WORLD)]
        rows, labels = zip(*(drawn(student, seed + step, rank) for rank, (student, _) in enumerate(every)), strict=True)
        anchors = keys = head(torch.cat(rows))
        of_anchors = of_keys = torch.cat(labels)
        exclude: Tensor | None = torch.arange(len(anchors))
        if not mode.startswith("self"):
            rows, labels = zip(
                *(drawn(teacher, seed + step ^ KEY_DRAW, rank) for rank, (_, teacher) in enumerate(every)), strict=True
            )
            keys, of_keys, exclude = head(torch.cat(rows)).detach(), torch.cat(labels), None
        call = Call(anchors, of_anchors, keys, of_keys, exclude=exclude)
        if queue is not None:
            past = torch.cat([keys, queue.keys.to(dtype)]), torch.cat([of_keys, queue.key_labels.clone()])
            call = Call(anchors, of_anchors, *past, exclude=exclude)
        loss = dense_loss(call)
        gradients = torch.autograd.grad(WORLD * loss, [student for student, _ in every])
        results.append((loss.detach(), list(gradients)))
        if queue is not None:
            queue.enqueue(keys.detach().float(), of_keys)
    return results


@pytest.mark.parametrize("mode", MODES)
def test_the_pixels_of_all_processes_are_contrasted(mode: str, found: Found) -> None:
    truth, rough = by_hand(mode, torch.float64), by_hand(mode, torch.float32)
    for way in WAYS:
        for rank in range(WORLD):
            for actual, true, near in zip(found[rank]["steps"][mode, way]["steps"], truth, rough, strict=True):
                assert_within_budget("loss", actual[0], true[0], near[0], amplification=40, magnitude=10)
                assert_within_budget("map", actual[1], true[1][rank], near[1][rank], amplification=40)


@pytest.mark.parametrize("mode", [mode for mode in MODES if "queue" in mode])
def test_queues_stay_equal(mode: str, found: Found) -> None:
    for way in WAYS:
        first, second = (each["steps"][mode, way]["queue"] for each in found)
        assert first["written"].sum() > 6 * WORLD
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_recomputation_draws_and_exchanges_the_same(found: Found) -> None:
    for each in found:
        for left in each["replays"][1:]:
            assert all(map(torch.equal, left, each["replays"][0]))
    assert all(map(torch.equal, found[0]["replays"][0], found[1]["replays"][0]))


def test_a_copied_module_shares_its_processes_and_a_pickled_one_is_refused(found: Found) -> None:
    for each in found:
        assert each["looked at"]["copied"]
        assert "TypeError: a module with group= cannot be pickled" in each["looked at"]["pickled"]


def test_a_compiled_module_gives_the_same_bits(found: Found) -> None:
    assert all(each["looked at"]["compiled"] for each in found)


def test_each_process_draws_its_own_pixels_whether_their_seeds_differ_or_not() -> None:
    numbers = torch.arange(50.0).reshape(2, 1, 5, 5)
    first, *others = (drawn(numbers, 7, rank)[0] for rank in range(4))
    sample = secl_ops.sample_pixels(CLASSES, **DRAW, seed=7)
    assert torch.equal(first, secl_ops.gather_pixels(numbers, sample.index[sample.index >= 0]))
    assert not any(torch.equal(first, other) for other in others)
    seeded = [int(secl_ops.PixelContrastLoss(**DRAW, seed=rank).draws) for rank in range(4)]
    apart = {tuple(drawn(numbers, seed, rank)[0].flatten().tolist()) for rank, seed in enumerate(seeded)}
    assert len(apart) == 4
