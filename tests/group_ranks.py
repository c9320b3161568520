# SPDX-License-Identifier: Apache-2.0
"""What each process of `tests/test_group.py` runs: cases of a joined batch, each process its part of every one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import secl_ops
from secl_ops import joined
from tests.cases import alone, copies, labels, rows, separate
from tests.oracle import Call

ANCHORS, KEYS, WIDTH = 11, 13, 8  # of each process
LEARNING = ("anchors", "keys", "positives", "temperature", "weights")
WAYS = ("gathered", "ring")
Made = Callable[[int], Call]


@dataclass(frozen=True)
class Case:
    """A joined call, of which each process gives its part."""

    make: Made  # the joined batch of this many processes; `exclude` numbers the keys of the anchor's own process
    learning: tuple[str, ...] = LEARNING
    pieces: bool = False  # whether the keys come as a list
    dtype: torch.dtype = torch.float32

    def joined(self, world: int) -> Call:
        """The call as one process makes it."""
        call = self.make(world)
        if call.exclude is not None:
            first = torch.arange(world).repeat_interleave(ANCHORS) * KEYS
            call = replace(call, exclude=torch.where(call.exclude < 0, -1, call.exclude + first))
        return call

    def part(self, rank: int, world: int) -> Call:
        """The call as this process makes it."""
        call = self.make(world)
        cut: dict[str, Any] = {}
        for name, count in COUNTS.items():
            value, count = getattr(call, name), ANCHORS if call.keys is None else count
            cut[name] = None if value is None else value[rank * count : (rank + 1) * count]
        return replace(call, **cut)


COUNTS = {
    "anchors": ANCHORS, "anchor_labels": ANCHORS, "weights": ANCHORS, "anchor_groups": ANCHORS, "exclude": ANCHORS,
    "keys": KEYS, "key_labels": KEYS, "key_groups": KEYS, "key_weights": KEYS,
}  # fmt: skip


def _alone(**options: Any) -> Made:
    return lambda world: replace(alone(world * ANCHORS, WIDTH, 3), **options)


def _apart(**options: Any) -> Made:
    return lambda world: replace(separate(world * ANCHORS, world * KEYS, WIDTH, 5, classes=3), **options)


def _grouped(make: Made) -> Made:
    def grouped(world: int) -> Call:
        call, groups = make(world), labels(world * ANCHORS, 2, 8)
        keys = None if call.keys is None else labels(world * KEYS, 2, 9)
        return replace(call, anchor_groups=groups, key_groups=keys)

    return grouped


def _weighted(make: Made) -> Made:
    return lambda world: replace(make(world), weights=torch.arange(world * ANCHORS) % 4 / 2.0)


def _weighted_keys(make: Made) -> Made:
    def weighted(world: int) -> Call:
        call = make(world)
        return replace(call, key_weights=copies(len(call.columns().rows), 9))

    return weighted


def _excluding(make: Made) -> Made:
    return lambda world: replace(make(world), exclude=labels(world * ANCHORS, KEYS, 5, ignored=0.3))


def _learned(make: Made) -> Made:
    return lambda world: replace(make(world), temperature=torch.tensor(0.2))


def _prototypes(make: Made) -> Made:
    return lambda world: replace(make(world), positives=rows(4, WIDTH, 6), positive_labels=torch.arange(4))


def _without(first: int, last: int, make: Made) -> Made:
    """Without a valid anchor in some processes."""

    def ignored(world: int) -> Call:
        call = make(world)
        kept = call.anchor_labels.clone()
        kept[first * ANCHORS : (world if last < 0 else last) * ANCHORS] = -1
        return replace(call, anchor_labels=kept)

    return ignored


def _spoiled(value: float) -> Made:
    """An ignored anchor and an ignored key of this value, and a key of zeros."""

    def spoiled(world: int) -> Call:
        call = separate(world * ANCHORS, world * KEYS, WIDTH, 5, classes=3)
        call.anchors[0], call.anchor_labels[0] = value, -1
        call.keys[-1], call.key_labels[-1], call.keys[0] = value, -1, 0.0
        return call

    return spoiled


def _sweep() -> Iterator[tuple[str, Case]]:
    for denominator in ("negatives", "all"):
        for reduction in ("mean", "sum", "none"):
            options = {"denominator": denominator, "reduction": reduction}
            yield f"self, {denominator}, {reduction}", Case(_alone(**options))
            yield f"keys, {denominator}, {reduction}", Case(_apart(**options))
            yield f"frozen keys, {denominator}, {reduction}", Case(_apart(**options), ("anchors",))


CASES: dict[str, Case] = {
    **dict(_sweep()),
    "self, all that learns": Case(_grouped(_weighted(_learned(_alone())))),
    "keys, all that learns": Case(_grouped(_weighted(_learned(_excluding(_apart()))))),
    "weights under sum": Case(_weighted(_alone(reduction="sum"))),
    "weights under none": Case(_weighted(_apart(reduction="none", denominator="all"))),
    "temperature of frozen rows": Case(_learned(_alone()), ("temperature",)),
    "excluding": Case(_excluding(_apart(denominator="all"))),
    "prototypes": Case(_prototypes(_apart())),
    "prototypes of self": Case(_grouped(_prototypes(_alone(denominator="all")))),
    "pieces": Case(_grouped(_excluding(_apart())), pieces=True),
    "weighted keys": Case(_weighted_keys(_grouped(_excluding(_learned(_apart()))))),
    "weighted keys in pieces": Case(_weighted_keys(_apart(denominator="all", reduction="none")), pieces=True),
    "self, weighted as keys": Case(_weighted_keys(_weighted(_alone()))),
    "prototypes, weighted keys": Case(_weighted_keys(_prototypes(_apart()))),
    "weighted keys of fp64": Case(_weighted_keys(_grouped(_apart())), dtype=torch.float64),
    "not normalised": Case(_apart(normalize=False, temperature=1.0)),
    "nothing learns": Case(_apart(), ()),
    "a process without an anchor": Case(_without(1, 2, _weighted(_apart()))),
    "no anchor": Case(_without(0, -1, _alone())),
    "no weight": Case(lambda world: replace(_apart()(world), weights=torch.zeros(world * ANCHORS))),
    "NaN in ignored rows": Case(_spoiled(torch.nan)),
    "bf16": Case(_apart(), dtype=torch.bfloat16),
    "fp16 with a temperature": Case(_learned(_alone()), dtype=torch.float16),
    "fp64": Case(_apart(), dtype=torch.float64),
    "bf16, odd": Case(_grouped(_apart(denominator="all")), dtype=torch.bfloat16),
}


def upstream(call: Call, rank: int, world: int) -> Tensor:
    """What this process sends back into its loss: one number, or one for each of its anchors."""
    if call.reduction != "none":
        return torch.tensor(1.0 + rank)
    every = torch.arange(world * ANCHORS) % 5 + 1.0
    return every[rank * ANCHORS : (rank + 1) * ANCHORS]


@contextmanager
def exchanged(way: str) -> Iterator[None]:
    """The keys gathered, or sent round the ring, whatever their size."""
    before, joined.GATHERED_BYTES = joined.GATHERED_BYTES, -1 if way == "ring" else joined.GATHERED_BYTES
    try:
        yield
    finally:
        joined.GATHERED_BYTES = before


def found(case: Case, rank: int, world: int, way: str, device: str) -> list[dict[str, Tensor]]:
    """The loss and the gradients of a process, twice; on a GPU the second call may not wait for it."""
    call, leaves = on(case.part(rank, world).to(case.dtype), device).leaves(case.learning)
    arguments = call.arguments()
    if case.pieces:
        for name in ("keys", "key_labels", "key_groups", "key_weights"):
            value = arguments[name]
            arguments[name] = None if value is None else [value[:5], value[5:5], value[5:]]
    sent = upstream(call, rank, world).to(device, torch.float64 if case.dtype == torch.float64 else torch.float32)
    names = [name for name in case.learning if isinstance(getattr(call, name), Tensor)]
    results = []
    for again in (False, True):
        with exchanged(way), never_waiting(again and device != "cpu"):
            loss = secl_ops.info_nce(**arguments, group=dist.group.WORLD)
            gradients = torch.autograd.grad(loss, leaves, sent) if leaves else ()
        results.append({"loss": loss.detach(), **dict(zip(names, gradients, strict=True))})
    return [{name: value.cpu() for name, value in each.items()} for each in results]


@contextmanager
def never_waiting(asked: bool) -> Iterator[None]:
    """What waits for the GPU raises."""
    if asked:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if asked:
            torch.cuda.set_sync_debug_mode("default")


def on(call: Call, device: str) -> Call:
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in call.arguments().items() if isinstance(value, Tensor)
    }
    return replace(call, **moved)


def sweep(
    rank: int, world: int, names: Sequence[str], device: str = "cpu"
) -> dict[tuple[str, str], list[dict[str, Tensor]]]:
    """These cases in every way, twice."""
    return {(name, way): found(CASES[name], rank, world, way, device) for name in names for way in WAYS}


class Model(nn.Module):
    """Rows of a layer, and a loss whose temperature learns with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, WIDTH)
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, values: Tensor, of_values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return secl_ops.info_nce(self.layer(values), anchor_labels=of_values, temperature=self.temperature, group=group)


def learned(rank: int, world: int) -> list[list[Tensor]]:
    """The gradients that DistributedDataParallel gives the parameters, in each way."""
    values, of_values = rows(world * ANCHORS, 5, 2), labels(world * ANCHORS, 3, 2, 0.2)
    here, results = slice(rank * ANCHORS, (rank + 1) * ANCHORS), []
    for way in WAYS:
        model = DistributedDataParallel(Model())
        with exchanged(way):
            model(values[here], of_values[here], dist.group.WORLD).backward()
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    return results


def said(call: Callable[[], object]) -> str:
    """What a call is refused with."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused(rank: int, world: int) -> dict[str, str]:
    """What the calls are refused with in this process."""
    every = dist.group.WORLD
    first = dist.new_group([0])
    anchors, of_anchors = rows(ANCHORS - (rank == 1), WIDTH, 0), labels(ANCHORS - (rank == 1), 3, 0)
    same, of_same = rows(ANCHORS, WIDTH, 0).requires_grad_(), labels(ANCHORS, 3, 0)
    queue = secl_ops.ClassQueue(3, 4, WIDTH)

    def loss(group: Any, **options: Any) -> Tensor:
        return secl_ops.info_nce(same, anchor_labels=of_same, group=group, **options)

    def again() -> None:
        (gradient,) = torch.autograd.grad(loss(every), same, create_graph=True)
        gradient.sum().backward()

    calls: dict[str, Callable[[], object]] = {
        "rows": lambda: secl_ops.info_nce(anchors, anchor_labels=of_anchors, group=every),
        "options": lambda: loss(every, denominator="negatives" if rank else "all"),
        "device": lambda: secl_ops.info_nce(same.to("meta"), anchor_labels=of_same.to("meta"), group=every),
        "kinds": lambda: queue.enqueue(anchors, of_anchors, group=every) if rank else loss(every),
        "outside": lambda: loss(first),
        "second derivative": again,
        "whole graph": lambda: torch.compile(loss, fullgraph=True, backend="eager")(every),
        "and goes on": lambda: loss(every),
    }
    return {name: said(call) for name, call in calls.items()}


def same_bits(rank: int, world: int) -> dict[str, bool]:
    """Whether two ways to the same bits lead there."""
    own = [dist.new_group([each]) for each in range(world)][rank]
    case, every = CASES["keys, all that learns"], dist.group.WORLD

    def with_gradients(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)

    results = {}
    for name in ("self, all, mean", "keys, negatives, none"):
        call, leaves = CASES[name].part(rank, world).leaves()
        ways = [with_gradients(secl_ops.info_nce(**call.arguments(), group=group), leaves) for group in (None, own)]
        results[f"alone: {name}"] = all(map(torch.equal, *ways))
    call, leaves = case.part(rank, world).leaves()

    def step(*_: Tensor) -> Tensor:
        return secl_ops.info_nce(**call.arguments(), group=every) * 1.0

    with warnings.catch_warnings():  # torch.compile looks for a gradient of what stands between two graphs
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        ways = [with_gradients(run(*leaves), leaves) for run in (step, torch.compile(step, backend="eager"))]
    results["compiled"] = all(map(torch.equal, *ways))
    none = rows(0, WIDTH, 0)
    for way in WAYS:
        leaf = rows(3, WIDTH, 0).requires_grad_()
        with exchanged(way):
            loss = secl_ops.info_nce(leaf, none, anchor_labels=labels(3, 2, 0), key_labels=labels(0, 2, 0), group=every)
            empty = secl_ops.info_nce(none, anchor_labels=labels(0, 2, 0), group=every)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results[f"without a row, {way}"] = not (loss.any() or empty.any() or gradient.any())
    return results


class Living(TorchDispatchMode):
    """Sums up the tensors of at least some bytes that live at once."""

    def __init__(self, least: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch types it not
        self.least, self.peak = least, 0
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for value in tree_leaves(result):
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if storage is not None and storage.nbytes() >= self.least:
                held = StorageWeakRef(storage)
                self._seen[held.cdata] = held, storage.nbytes()
        self._seen = {key: (held, size) for key, (held, size) in self._seen.items() if not held.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._seen.values()))
        return result


def blocks(rank: int, world: int) -> dict[str, int]:
    """Blocks of keys that live at once in a forward and a backward pass, beside the keys themselves."""
    anchors, keys = rows(3, 64, rank).requires_grad_(), rows(512, 64, rank + 9).requires_grad_()
    of_rows: dict[str, Any] = {
        "anchor_labels": labels(3, 2, rank),
        "key_labels": labels(512, 2, rank),
        "group": dist.group.WORLD,
    }
    size, counts = 512 * 64 * 4, {}
    for way in WAYS:
        with exchanged(way), Living(size) as living:
            torch.autograd.grad(secl_ops.info_nce(anchors, keys, **of_rows), (anchors, keys))
        counts[way] = living.peak // size
    return counts


def run(rank: int, world: int, folder: Path, tasks: dict[str, Callable[..., Any]], device: str = "cpu") -> None:
    """The tasks, and what they found, in a file of this process."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if device != "cpu":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl", f"file://{folder}/store", rank=rank, world_size=world
    )
    group = dist.group.WORLD
    results = {name: task(rank, world) for name, task in tasks.items()}
    dist.barrier()
    dist.destroy_process_group()
    results["parted"] = said(lambda: secl_ops.info_nce(torch.eye(2), anchor_labels=torch.zeros(2).long(), group=group))
    torch.save(results, folder / f"{rank}.pt")
