# SPDX-License-Identifier: Apache-2.0
"""What a call read first, for the call that `torch.utils.checkpoint` repeats in the backward pass.

A recomputation must find the draw and the queue of the pass that it repeats, and must advance neither. Which pass that
is, torch keeps in an object of its own for each checkpoint, which lies on the stack in the first pass and again in each
recomputation; what was read is remembered beside it for as long as it lives. For a reentrant one that is the context
of its autograd function, and so it is in the checkpoints of other libraries.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, GeneratorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import FunctionCtx
from torch.utils import checkpoint


class Recalled(NamedTuple):
    """What a call reads, and what it may change."""

    state: tuple[Tensor, ...]
    first: bool  # False in a recomputation, which changes nothing
    learns: bool  # False where no backward pass can follow, as in an evaluation


class _Pass(NamedTuple):
    """A run of a checkpointed function that is under way."""

    key: object  # one for each checkpoint
    run: object  # of a recomputation: the backward pass that asks for it; None: the first pass
    learns: bool  # a backward pass can follow, though gradients are off within


class _Memory:
    """What the modules that one checkpoint runs have read, call by call."""

    def __init__(self) -> None:
        self.calls: dict[nn.Module, list[tuple[Tensor, ...]]] = {}
        self._run: object = None
        self._next: dict[nn.Module, int] = {}

    def repeat(self, owner: nn.Module, run: object) -> tuple[Tensor, ...] | None:
        """What the owner read at its next call of this run; None: there was no such call."""
        if run != self._run:
            self._run, self._next = run, {}
        place = self._next.get(owner, 0)
        self._next[owner] = place + 1
        calls = self.calls.get(owner, [])
        return calls[place] if place < len(calls) else None


_MEMORIES: WeakKeyDictionary[object, _Memory] = WeakKeyDictionary()


def recall(owner: nn.Module, *state: Tensor) -> Recalled:
    """State that a call of `owner` reads: its own, or in a recomputation a copy of what the repeated call read."""
    if not torch.compiler.is_compiling():
        return _recall(owner, *state)
    if compiled_inside():
        found: Recalled = _recall_between_graphs(owner, *state)
        return found
    return Recalled(state, True, torch.is_grad_enabled())  # a graph is recomputed by itself, from what it read


def _recall(owner: nn.Module, *state: Tensor) -> Recalled:
    passes = [*_passes(sys._getframe(1))]
    learns = torch.is_grad_enabled() or any(each.learns for each in passes)
    if not (passes and learns):
        return Recalled(state, True, learns)
    memories = [_MEMORIES.setdefault(each.key, _Memory()) for each in passes]
    repeated = None if passes[-1].run is None else memories.pop()
    found = None if repeated is None else repeated.repeat(owner, passes[-1].run)
    kept = tuple(one.clone() for one in state) if found is None else found
    for memory in memories:
        memory.calls.setdefault(owner, []).append(kept)
    return Recalled(kept, repeated is None, True)


# What torch.compiler offers for both imports the compiler, and Triton with it, when a program begins.
_recall_between_graphs = _disable_dynamo(_recall)


def compiled_inside() -> bool:
    """Whether a checkpoint runs what is compiled: its recomputation then runs the same graphs again."""
    return any(True for _ in _passes(sys._getframe(1)))


compiled_inside._dynamo_marked_constant = True  # type: ignore[attr-defined]


def inside_reentrant() -> bool:
    """Whether gradients are off because a reentrant checkpoint runs its first pass: a backward pass can follow."""
    return not torch.is_grad_enabled() and any(each.learns for each in _passes(sys._getframe(1)))


_CHECKPOINT = vars(checkpoint)


@functools.lru_cache(4096)  # each call of a module asks every function on the stack
def _takes_context(code: CodeType) -> bool:
    """Whether a function's first argument is the context of an autograd function, by its name."""
    return code.co_varnames[:1] == ("ctx",)


def _passes(frame: FrameType | None) -> Iterator[_Pass]:
    """Checkpoints around a call, from the innermost to a recomputation: what called that is none of the function."""
    while frame is not None:
        if frame.f_globals is _CHECKPOINT or _takes_context(frame.f_code):
            for found in _passes_of(frame.f_code.co_name, frame.f_locals):
                yield found
                if found.run is not None:
                    return
        frame = frame.f_back


def _passes_of(function: str, names: dict[str, Any]) -> Iterator[_Pass]:
    """What a function of a checkpoint says of its own: torch's without reentry unpacks, or drives a generator."""
    for value in names.values():
        if isinstance(value, checkpoint._CheckpointFrame):
            if "gid" in names:
                yield _Pass(value, names["gid"], True)
            return
        if isinstance(value, GeneratorType) and value.gi_frame is not None:
            for inner in value.gi_frame.f_locals.values():
                if isinstance(inner, checkpoint._CheckpointFrame):
                    yield _Pass(inner, None, torch.is_grad_enabled())
                    return
    ctx = names.get("ctx")
    if isinstance(ctx, FunctionCtx) and function in ("forward", "backward"):
        run = torch._C._current_graph_task_id() if function == "backward" else None
        yield _Pass(ctx, run, any(node for node, _ in getattr(ctx, "next_functions", ())))
