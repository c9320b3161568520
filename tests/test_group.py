# SPDX-License-Identifier: Apache-2.0
"""The keys of a group of processes: loss and gradients of each are its part of the joined batch's, in either way."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tests import group_ranks
from tests.budget import assert_within_budget
from tests.cases import labels, rows
from tests.conftest import skip_or_fail
from tests.group_ranks import ANCHORS, CASES, WAYS, Case, Model, upstream
from tests.models.ranks import finish, start_ranks
from tests.oracle import dense_loss, present

Found = list[dict[str, Any]]
SEVERAL = (  # what more than two processes are asked
    "self, negatives, mean", "keys, all, none", "frozen keys, all, sum", "self, all that learns",
    "keys, all that learns", "prototypes of self", "pieces", "a process without an anchor", "bf16, odd",
)  # fmt: skip
REPLICATED = ("temperature", "positives")  # which every process holds: it has the gradient of its own part


def ran(world: int, folder: Path, tasks: dict[str, Callable[..., Any]]) -> Found:
    """What each of these processes found."""
    importlib.import_module("torch._dynamo")  # which DistributedDataParallel does: once, not in each process
    ranks = start_ranks(world, partial(group_ranks.run, world=world, folder=folder, tasks=tasks))
    assert [finish(each) for each in ranks] == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The sweep, or that of several."""
    names = tuple(CASES) if request.param == 2 else SEVERAL
    return ran(request.param, tmp_path_factory.mktemp("group"), {"sweep": partial(group_ranks.sweep, names=names)})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What is looked at in two processes alone."""
    tasks = (group_ranks.learned, group_ranks.refused, group_ranks.same_bits)
    return ran(2, tmp_path_factory.mktemp("pair"), {each.__name__: each for each in tasks})


def by_hand(case: Case, world: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and gradients of the joined batch in one process."""
    call, leaves = case.joined(world).to(case.dtype).to(dtype).leaves(case.learning)
    loss = dense_loss(
        replace(call, anchors=call.anchors.nan_to_num(), keys=None if call.keys is None else call.keys.nan_to_num())
    )
    sent = torch.stack([upstream(call, rank, world).to(loss) for rank in range(world)])
    total = (loss * sent.flatten()).sum()
    names = [name for name in case.learning if isinstance(getattr(call, name), Tensor)]
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True) if leaves else ()
    return {"loss": loss.detach(), **dict(zip(names, gradients, strict=True))}


def together(name: str, parts: list[Tensor]) -> Tensor:
    """The parts of all processes as one."""
    if name in REPLICATED:
        return torch.stack(parts).sum(dim=0)
    return torch.cat(parts) if parts[0].ndim else parts[0]


def compare(name: str, found: Found) -> None:
    """Hold what all processes found in a case against the joined batch, and against itself."""
    case, world = CASES[name], len(found)
    dtype = torch.float32 if case.dtype == torch.float64 else case.dtype
    truth, rough = by_hand(case, world, torch.float64), by_hand(case, world, dtype)
    degree = case.joined(world).degree
    for way in WAYS:
        for output, true in truth.items():
            parts, again = zip(*([of[output] for of in each["sweep"][name, way]] for each in found), strict=True)
            assert all(map(torch.equal, parts, again)), f"{output}, {way}: other bits"
            if output == "loss" and not parts[0].ndim:
                assert all(torch.equal(part, parts[0]) for part in parts), f"{way}: another loss in each process"
            assert_within_budget(
                f"{output}, {way}", together(output, [*parts]), true, rough[output], amplification=4 / degree,
                magnitude=1 / degree if output == "loss" else 0,
            )  # fmt: skip


def test_the_two_ways_are_two(found: Found) -> None:
    sweep = found[0]["sweep"]
    assert any(
        not torch.equal(sweep[name, WAYS[0]][0]["anchors"], sweep[name, WAYS[1]][0]["anchors"]) for name in SEVERAL
    )


@pytest.mark.parametrize("name", CASES)
def test_each_process_has_its_part_of_the_joined_batch(name: str, found: Found) -> None:
    if (name, WAYS[0]) in found[0]["sweep"]:
        compare(name, found)


def test_over_nccl(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        skip_or_fail("nccl", f"a group over NCCL needs two GPUs; torch sees {torch.cuda.device_count()}")
    tasks = {"sweep": partial(group_ranks.sweep, names=tuple(CASES), device="cuda")}
    spawn(group_ranks.run, (2, tmp_path, tasks, "cuda"), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in CASES:
        compare(name, found)


def test_the_average_of_data_parallel_training_is_the_joined_gradient(pair: Found) -> None:
    def alone(dtype: torch.dtype) -> list[Tensor]:
        model = Model().to(dtype)
        model(rows(2 * ANCHORS, 5, 2).to(dtype), labels(2 * ANCHORS, 3, 2, 0.2), None).backward()
        return [present(parameter.grad) for parameter in model.parameters()]

    for each in pair:
        for gradients in each["learned"]:
            for gradient, true, rough in zip(gradients, alone(torch.float64), alone(torch.float32), strict=True):
                assert_within_budget("parameter", gradient, true, rough, amplification=20)


REFUSALS = {
    "rows": r"ValueError: group needs one call in all its processes, .*; got anchors=\[11, 8\] in process 0; "
    r"anchors=\[10, 8\] in process 1; give each the same, rows padded with label -1",
    "options": "ValueError: .* got denominator=all in process 0; denominator=negatives in process 1",
    "device": "ValueError: group must exchange tensors on the rows' device, meta; its backends do so on cpu, cuda;",
    "kinds": "ValueError: .* got call=a loss in process 0; call=rows for a queue in process 1",
    "second derivative": "RuntimeError: secl_ops has first derivatives only",
    "whole graph": "Unsupported: .*",
    "and goes on": "nothing",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_the_same_in_every_process(name: str, pair: Found) -> None:
    first, second = (each["refused"][name] for each in pair)
    assert re.match(REFUSALS[name], first, re.DOTALL), first
    assert first == second


def test_a_process_outside_of_the_group_is_refused(pair: Found) -> None:
    inside, outside = (each["refused"]["outside"] for each in pair)
    assert inside == "nothing"
    assert "group must be a torch.distributed.ProcessGroup that this process is in, or None; got what torch" in outside


def test_processes_that_have_parted_are_refused(pair: Found) -> None:
    for each in pair:
        assert "RuntimeError: group needs torch.distributed, which is not initialised (any more)" in each["parted"]


def test_alone_or_compiled_the_bits_are_the_same(pair: Found) -> None:
    for each in pair:
        assert all(each["same_bits"].values()), each["same_bits"]


def test_a_ring_holds_as_many_blocks_at_once_whatever_the_processes(tmp_path: Path) -> None:
    for world in (3, 5):
        (folder := tmp_path / str(world)).mkdir()
        for each in ran(world, folder, {"blocks": group_ranks.blocks}):
            assert each["blocks"]["ring"] <= 8  # seven, and one that an exchange lets go a moment later
            assert each["blocks"]["gathered"] >= 3 * world  # the measure sees them
