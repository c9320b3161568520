# SPDX-License-Identifier: Apache-2.0
"""Watches a pixel step: what it launches, and that nothing in it waits for the device.

Every torch operation that the library, its Triton backend and autograd ask for passes a dispatch mode, which lists it
and refuses those whose result the host would have to wait for. On fake CUDA tensors, which any machine can make, the
Triton backend's own code runs but for its kernels; torch's engine refuses them where torch has no CUDA, so a tape
takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from secl_ops import ops
from secl_ops.autograd import Contrast, Gather
from secl_ops.engines import triton
from secl_ops.engines.triton import contrast, grids
from secl_ops.engines.triton.grids import Card
from secl_ops.shards import ShardedContrast
from secl_ops.sigmoid import SigmoidContrast

WAITS = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "masked_select",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2", "bincount",
    "repeat_interleave",
}  # fmt: skip
FREE = {"empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like", "detach", "lift_fresh"}


class HostWaitError(AssertionError):
    """An operation whose result the host needs before it can go on."""


class Watched(TorchDispatchMode):
    """Lists the launches of what runs inside, and refuses an operation that waits for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch types it not
        self.launches: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation: the library's own run their implementation under this mode."""
        name = func._schema.name.split("::")[1]
        if func.namespace == "secl":
            with self:
                return ops.IMPLEMENTATIONS[name](*args, **(kwargs or {}))
        self._refuse_waits(func, name, args, kwargs or {})
        if not (func.is_view or name in FREE):
            self.launches.append(name)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _refuse_waits(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        masks = name.removeprefix("_").rstrip("_") in ("index", "index_put", "unsafe_index", "index_put_impl")
        if masks and any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]):
            raise HostWaitError(f"{func} with a boolean index waits for the device")
        leaves = name in ("_to_copy", "copy_") and _leaves_the_device(name, args, kwargs)
        dynamic = torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags
        if name in WAITS or leaves or (dynamic and not masks):
            raise HostWaitError(f"{func} waits for the device")


def _leaves_the_device(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    source = args[1] if name == "copy_" else args[0]
    target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
    return bool(source.device.type != torch.device(target).type)


@contextmanager
def listed(mode: Watched, *, run: bool) -> Iterator[None]:
    """Every Triton launch joins the list; whether the kernel also runs is the caller's."""
    kernels = type(contrast.denominator_kernel)
    true = kernels.__getitem__

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def start(*arguments: Any, **options: Any) -> None:
            mode.launches.append(kernel.fn.__name__)
            if run:
                with _disable_current_modes():  # what the interpreter does is no launch
                    true(kernel, grid)(*arguments, **options)

        return start

    # A planned launch asks Triton each time, whatever it was given before.
    asked = patch.object(grids.Launch, "__call__", lambda planned, *given: planned._ask(given))
    with patch.object(kernels, "__getitem__", launcher), asked:
        yield


@contextmanager
def watched() -> Iterator[Watched]:
    """The world as it is, with every launch listed."""
    mode = Watched()
    with listed(mode, run=True), mode:
        yield mode


@contextmanager
def fake_cuda() -> Iterator[tuple[Watched, Tape]]:
    """A world of fake CUDA tensors where the kernels do not run, and a tape for the gradients."""
    mode, tape = Watched(), Tape()
    with (
        listed(mode, run=False),
        patch.object(triton, "objections", lambda *_: []),
        patch.object(grids, "card", lambda _: Card(90, 132)),
        patch.object(grids, "is_aligned", lambda _: True),
        patch.object(torch.cuda, "current_device", lambda: 0),
        patch.object(torch.cuda, "device", lambda _: nullcontext()),
        patch.object(Contrast, "apply", partial(tape.apply, Contrast)),
        patch.object(Gather, "apply", partial(tape.apply, Gather)),
        patch.object(ShardedContrast, "apply", partial(tape.apply, ShardedContrast)),
        patch.object(SigmoidContrast, "apply", partial(tape.apply, SigmoidContrast)),
        FakeTensorMode(),
        mode,
    ):
        yield mode, tape


class Context:
    """What a `torch.autograd.Function` keeps between its passes."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(isinstance(value, Tensor) and value.requires_grad for value in inputs)

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass."""
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Gradients that do not exist come as None here."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """The tape follows the first output alone."""


class Tape:
    """Runs functions forward, and backward in the opposite order: what torch's engine does, one after the other."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Context, Sequence[Any], Tensor, int]] = []

    def apply(self, function: Any, *inputs: Any) -> Any:
        """The forward pass of one function; the first of several outputs is the one that is differentiated."""
        context = Context(inputs)
        with torch.no_grad():
            outputs = function.forward(context, *inputs)
        if any(context.needs_input_grad):
            output = outputs[0] if isinstance(outputs, tuple) else outputs
            output.requires_grad_()
            others = len(outputs) - 1 if isinstance(outputs, tuple) else 0
            self.steps.append((function, context, inputs, output, others))
        return outputs

    @torch.no_grad()
    def backward(self, value: Tensor, upstream: Tensor, leaf: Tensor) -> Tensor:
        """Gradient of the leaf under this upstream gradient of the value."""
        gradients = {id(value): upstream}
        for function, context, inputs, output, others in reversed(self.steps):
            if id(output) not in gradients:
                continue
            passed = function.backward(context, gradients[id(output)], *[None] * others)
            for given, found in zip(inputs, passed, strict=True):
                if isinstance(given, Tensor) and given.requires_grad and found is not None:
                    before = gradients.get(id(given))
                    gradients[id(given)] = found if before is None else before + found
        return gradients[id(leaf)]
