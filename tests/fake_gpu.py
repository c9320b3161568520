# SPDX-License-Identifier: Apache-2.0
"""A GPU that is not there, so that what needs one can be rehearsed: `python -m tests.fake_gpu MODULE [ARGUMENT...]`.

Tensors that are asked for on CUDA lie on the CPU. Triton's kernels are interpreted, the native CUDA kernels run on the
emulated GPU, and streams, events and graphs keep their order and nothing else. The cases of the benchmarks are cut to a
few rows. What it times means nothing. `-p tests.fake_gpu` brings the same to pytest and to its workers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.provenance import NO_GPU

CAPABILITY = (9, 0)
ROWS, KEYS = 40, 72  # of a case; neither is a multiple of a tile
ROUNDS = 2
MARK, PLACE = "lies_on_the_fake_gpu", re.compile(r"(cuda|cpu)(:\d+)?$")
STAND_INS = Path(__file__).parent / "stand_ins"  # for the programs that come with a GPU


class OnTheCpu(TorchFunctionMode):
    """Whatever is asked for on CUDA is made on the CPU, and marked: a call that mixes both sides fails as it would."""

    place = "cpu"  # of the call that is under way: our backends ask

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of torch with its places changed."""
        kwargs = kwargs or {}
        if func is Tensor.cuda:  # where there is a GPU, it is not the fake
            func, args = Tensor.to, (args[0], "cuda")
        if func in (torch.device, torch._C._nn._parse_to):  # which module.to asks what it was given
            return func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor)]
        if func == Tensor.device.__get__ and _marked(args[0]):
            return torch.device("cuda", 0)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return _marked(args[0])
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]  # as module.to does with its parameters
            setattr(args[0], MARK, _marked(args[1]))
        named = _named(func, given)
        if named is None and func not in MOVES:
            _refuse_mixtures(func, tensors)
        there = named == "cuda" if named else any(map(_marked, tensors))
        before, OnTheCpu.place = OnTheCpu.place, "cuda" if there else "cpu"
        try:
            found = func(*map(_here, args), **{name: _here(value) for name, value in kwargs.items()})
        finally:
            OnTheCpu.place = before
        if there:
            return tree_map_only(Tensor, lambda each: _mark(each, tensors), found)
        return found.clone() if isinstance(found, Tensor) and named == "cpu" and _marked(found) else found


MOVES = {  # from one side to the other
    Tensor.copy_, Tensor.__setitem__, torch._has_compatible_shallow_copy_type,
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.grad.__set__,  # type: ignore[union-attr]
}  # fmt: skip


def _marked(value: Tensor) -> bool:
    return getattr(value, MARK, False)


def _mark(value: Tensor, given: Sequence[Tensor]) -> Tensor:
    """A tensor on the fake; a copy where it would else be one that is not."""
    copy = value.clone() if not _marked(value) and any(value is each for each in given) else value
    setattr(copy, MARK, True)
    return copy


def _named(func: Any, given: Sequence[Any]) -> str | None:
    """The kind of device that a call names."""
    if func is Tensor.cpu:
        return "cpu"
    places = [each for each in given if isinstance(each, torch.device) or (isinstance(each, str) and PLACE.match(each))]
    return torch.device(places[0]).type if places else None


def _refuse_mixtures(func: Any, tensors: Sequence[Tensor]) -> None:
    kinds = {_marked(each) for each in tensors if each.ndim}
    indexing = func is Tensor.__getitem__ and _marked(tensors[0])  # an index may lie on the CPU
    if len(kinds) > 1 and not indexing:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu")


def _here(value: Any) -> Any:
    place = isinstance(value, torch.device) or (isinstance(value, str) and PLACE.match(value))
    return torch.device("cpu") if place and torch.device(value).type == "cuda" else value


class Event:
    """A moment on the host's clock."""

    def __init__(self, **_: object) -> None:
        self.at = 0.0

    def record(self, *_: object) -> None:
        """Now."""
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """All is done already."""

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds until the other."""
        return 1e3 * (other.at - self.at)


class Order:
    """A stream, or a graph: what it is given runs at once, and a replay finds it done."""

    def wait_stream(self, other: Order) -> None:
        """All is done already."""

    def replay(self) -> None:
        """The captured step's results stand where it left them."""


@contextlib.contextmanager
def _within(*_: object, **__: object) -> Iterator[None]:
    yield


def _nothing(*_: object, **__: object) -> int:
    return 0


def _properties(*_: object) -> SimpleNamespace:
    major, minor = CAPABILITY
    return SimpleNamespace(name=NO_GPU, total_memory=0, major=major, minor=minor, multi_processor_count=4)


STANDS_IN: dict[str, Any] = {
    "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
    "get_device_name": lambda *_: NO_GPU, "get_device_capability": lambda *_: CAPABILITY,
    "get_device_properties": _properties, "current_device": _nothing, "synchronize": _nothing,
    "empty_cache": _nothing, "reset_peak_memory_stats": _nothing, "memory_allocated": _nothing,
    "max_memory_allocated": _nothing, "Event": Event, "Stream": Order, "CUDAGraph": Order,
    "current_stream": lambda *_: Order(), "stream": _within, "graph": _within, "device": _within,
}  # fmt: skip


def native_stand_ins(on_gpu: Callable[[], bool] = lambda: True) -> list[tuple[Any, str, Any]]:
    """What takes the place of what in the native backend: its CUDA kernels serve tensors that lie on the CPU."""
    from secl_ops import library
    from secl_ops.engines import native

    true, operations = native.objections, native._operations
    return [
        (library, "cuda_objections", lambda operations: []),
        (native, "_operations", lambda: torch.ops.secl_emulated if on_gpu() else operations()),
        (native, "serves_cuda", lambda tensor: on_gpu()),
        (native, "objections", lambda device, *rest: true("cuda" if device == "cpu" and on_gpu() else device, *rest)),
    ]


def _engines() -> None:
    """Our own backends take the fake for a GPU."""
    import secl_ops
    from secl_ops import library
    from secl_ops.engines import select, triton
    from tests import emulate, interpreting

    interpreting.quicken()
    emulate.load()
    torch.ops.secl_emulated.set_capability(10 * CAPABILITY[0] + CAPABILITY[1])
    true = triton.objections

    def on_gpu() -> bool:
        return OnTheCpu.place == "cuda"

    def objections(device: str, dtype: torch.dtype, operation: str) -> list[str]:
        if device == "cpu" and not on_gpu():
            return ["Triton compiles for GPUs only"]
        return true("cpu" if device == "cuda" else device, dtype, operation)

    others: list[tuple[Any, str, Any]] = [
        (secl_ops, "backends", lambda: dict.fromkeys(select.MODULES)),
        (library, "cuda_archs", lambda: ("90a",)),
        (triton, "objections", objections),
    ]
    for module, name, stand_in in (*native_stand_ins(on_gpu), *others):
        patch.object(module, name, stand_in).start()


def _sizes() -> None:
    """Every case of the benchmarks is one of a few rows, every table of tiles one tile."""
    from benchmarks import measure, native_cuda, pixel, targets, tune
    from benchmarks.cases import Case
    from benchmarks.pixel import PixelCase
    from secl_ops import tiles

    def cut(case: Case, device: str, dtype: str) -> Case:
        keys = min(case.keys, KEYS)
        return replace(case, rows=min(case.rows, ROWS), keys=keys, device=device, dtype=dtype)

    cases: Any = Case, PixelCase
    cases[0].on = cut
    cases[1].on = lambda case, device, dtype: replace(case.small(), device=device, dtype=dtype)
    for module, name, value in (
        (measure, "FLUSH", 1), (targets, "ROUNDS", ROUNDS), (native_cuda, "ROUNDS", ROUNDS),
        (native_cuda, "ROWS", ROWS),
        (native_cuda, "WIDTHS", native_cuda.WIDTHS[:1]), (native_cuda, "MAPS", (2, 8)),
        (native_cuda, "LABELS", (2, 16, 16)), (native_cuda, "VOLUMES", (1, 4, 8, 8)), (tune, "ORDERED", (32,)),
        (tune, "ROWS", dict.fromkeys(tune.ROWS, 32)), (tune, "PURPOSES", tune.PURPOSES[-1:]),
        (tune, "candidates", lambda *given: [tiles.pick(*given)]), (pixel, "CASES", pixel.CASES[:1]),
    ):  # fmt: skip
        patch.object(module, name, value).start()  # which refuses a name that the module does not have


def install() -> None:
    """Put the fake in the place of this process's GPU, for good."""
    os.environ |= {"TRITON_INTERPRET": "1", "TORCH_COMPILE_DISABLE": "1"}
    torch.set_num_threads(1)
    for name, stand_in in STANDS_IN.items():
        patch.object(torch.cuda, name, stand_in).start()
    OnTheCpu().__enter__()  # type: ignore[no-untyped-call]  # torch types it not
    _engines()


def pytest_load_initial_conftests() -> None:
    """As a plugin: before a conftest asks for the GPU."""
    install()


def main(module: str, *arguments: str) -> None:
    """Run a module as a program, on the fake; a stage of the benchmarks as it was imported, with its cases cut."""
    install()
    _sizes()
    os.environ["PATH"] = os.pathsep.join((str(STAND_INS), os.environ["PATH"]))
    sys.argv[:] = [module, *arguments]
    if module.startswith("benchmarks."):
        sys.exit(importlib.import_module(module).main(arguments))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run: Callable[..., None] = main
    run(*sys.argv[1:])
