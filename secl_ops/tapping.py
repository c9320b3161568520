# SPDX-License-Identifier: Apache-2.0
"""What a layer of a network gives, kept for the loss, without a change of the network.

A forward hook keeps it. A closure as a hook would be shared by copies of the network, so that a teacher's pass would
overwrite what the student's has kept; a kept tensor would stand in the way of a copy or a pickle; what a recomputation
of `torch.utils.checkpoint` gives would replace what it repeats. So the hook is an object, which knows all three.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parallel import DistributedDataParallel

from secl_ops import replay

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")  # how wrappers call what they hold
_NEAR = 5  # names that a refusal lists
_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # an older torch does not say: False


def tap(model: nn.Module, name: str, *, pick: int | str | None = None) -> Tap:
    """Keep what a submodule returns, for a loss on the features of a network that stays as it is.

    The model's forward pass keeps the map with its graph; a call of the tap takes it, and nothing of it stays behind.
    Kept is the map of the submodule's **last** call: where a model runs on several batches before their loss is found,
    take the map after each. A pass under `no_grad` keeps its map too, as a teacher's: taken in place of the student's
    it makes a loss without a gradient. It works under `torch.compile(fullgraph=True)`, `DistributedDataParallel`,
    `fully_shard` and `torch.utils.checkpoint(use_reentrant=False)`; the model is tapped before it is wrapped or after.

    A map that a later layer changes in place is refused when it is taken; within a compiled graph that is not seen.

    The model can be copied and pickled: a copy alone has no tap, and keeps nothing. The hook goes with the tap: hold
    on to it.

    Args:
        model: The network, or what `torch.compile` or `DistributedDataParallel` made of it.
        name: Name of the submodule as in `model.named_modules()`, without the parts that wrappers add; "": the model.
        pick: Which of what it returns, where that is a tuple, a list, a mapping or an object: an index, a key or a
            name.

    Returns:
        A `Tap`: call it after the model to take the map.

    Raises:
        TypeError: An argument of the wrong kind, or a model under `nn.DataParallel`. From the model's forward pass: the
            submodule returns no tensor.
        ValueError: There is no such submodule, or it is a container that is never called itself; the message lists
            names near it.

    Example:
        >>> import torch, secl_ops
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1))
        >>> features = secl_ops.tap(model, "0")
        >>> criterion = secl_ops.PixelContrastLoss(per_class=8, num_classes=3)
        >>> images, labels = torch.randn(2, 1, 16, 16), torch.randint(0, 3, (2, 16, 16))
        >>> loss = torch.nn.functional.cross_entropy(model(images), labels)
        >>> (loss + 0.1 * criterion(features(), labels)).backward()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a nn.Module; got {type(model).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, as in model.named_modules(); got {type(name).__name__}")
    if pick is not None and (isinstance(pick, bool) or not isinstance(pick, (int, str))):
        raise TypeError(f"pick must be an int, a str or None; got {type(pick).__name__}")
    if any(isinstance(each, nn.DataParallel) for each in model.modules()):
        raise TypeError(_parallel(name))
    module = _submodule(model, name)
    if getattr(module.forward, "__func__", None) is nn.Module.forward:
        raise ValueError(
            f"name must be that of a submodule that is called; {name!r} is a {type(module).__name__}, which only holds "
            f"others; {_near(name, [each for each in _names(model) if each.startswith(name + '.')])}"
        )
    return Tap(module, name, pick)


class Tap:
    """The map that a submodule gave last; made by `tap`.

    A call takes the map and forgets it. Without this object the hook keeps nothing, so that a copy of the network alone
    carries no tap; a copy of an object that holds both, such as a LightningModule, has one of its own.

    Example:
        >>> import torch, secl_ops
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 2, 1))
        >>> features = secl_ops.tap(model, "0")
        >>> logits = model(torch.zeros(1, 1, 6, 6))
        >>> features().shape
        torch.Size([1, 8, 4, 4])
        >>> features.remove()
    """

    def __init__(self, module: nn.Module, name: str, pick: int | str | None) -> None:
        self.name = name
        self._hook = _Hook(name, pick)
        self._hook.wanted = True
        self._handle = module.register_forward_hook(self._hook)
        self._module = weakref.ref(module)
        _set_apart(module)
        self._removed = self._taken = False

    def __call__(self) -> Tensor:
        """Take the map of the submodule's last call, with its graph.

        Returns:
            What the submodule returned, or the element `pick` of it.

        Raises:
            RuntimeError: There is none, or not the one that the submodule returned; the message says why.
        """
        value, fault = self._hook.take()
        if value is None:
            raise RuntimeError(f"nothing is kept of {self.name!r}: {self._absence()}")
        self._taken = True
        if fault:
            raise RuntimeError(f"the map of {self.name!r} {fault}")
        return value

    def remove(self) -> None:
        """Take the hook off the network; the map that is kept is forgotten."""
        self._handle.remove()
        module = self._module()
        if module is not None:
            _set_back(module)
        self._hook.wanted, self._removed = False, True
        self._hook.take()

    def __repr__(self) -> str:
        return f"Tap({self.name!r}{', removed' if self._removed else ''})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # A copy of the tap alone has a module that nobody holds.
        self._module = weakref.ref(state["_module"] or nn.Module())
        self._hook.wanted = not self._removed

    def __del__(self) -> None:
        if "_removed" in vars(self):  # what a refusal or a failed copy leaves half made has no hook
            self.remove()

    def _absence(self) -> str:
        if self._removed:
            return "the tap was removed; make another one with tap(model, name)"
        if self._taken:
            return "each map is taken once, and its last one was; run the model again, or hold on to what the tap gave"
        return "it has not run since it was tapped; call model(x) first, and the submodule itself, not its .forward"


class _Hook:
    """The forward hook: what it keeps is neither copied nor pickled."""

    def __init__(self, name: str, pick: int | str | None) -> None:
        self.name, self.pick = name, pick
        self.wanted = False  # a Tap takes from here
        self.value: Tensor | None = None
        self.version: int | None = None
        self.reentrant = False

    def __call__(self, module: nn.Module, args: object, output: Any) -> None:
        if not self.wanted or _is_exporting():
            return
        if not torch.compiler.is_compiling():
            self._keep(module, output)
        elif replay.compiled_inside():
            self._keep_between_graphs(module, output)
        else:  # a graph is recomputed by itself, without its hooks
            self.value, self.version, self.reentrant = self._tensor(output), None, False

    def take(self) -> tuple[Tensor | None, str]:
        """What is kept, which is then forgotten, and what is wrong with it."""
        value, version = self.value, self.version
        self.value = self.version = None
        if value is not None and version is not None and value._version != version:
            return value, (
                "was changed in place after the submodule returned it, as by a ReLU(inplace=True) that follows; tap "
                "the layer that changes it or the block around both, or set inplace=False"
            )
        if value is not None and self.reentrant:
            return value, (
                "has no graph, for a reentrant checkpoint made it; pass use_reentrant=False to "
                "torch.utils.checkpoint, or tap a layer outside of it"
            )
        return value, ""

    def _keep(self, module: nn.Module, output: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise TypeError(_parallel(self.name))
        if torch._C._current_graph_task_id() != -1:  # within a backward pass: a checkpoint repeats what was kept
            return
        value = self._tensor(output)
        self.value, self.version = value, None if value.is_inference() else value._version
        self.reentrant = replay.inside_reentrant()

    _keep_between_graphs = _disable_dynamo(_keep)

    def _tensor(self, output: Any) -> Tensor:
        found = output if self.pick is None else self._picked(output)
        if isinstance(found, Tensor):
            return found
        if self.pick is None:
            raise TypeError(
                f"{self.name!r} must return a tensor, or pick must say which of the things it returns; got "
                f"{_described(output)}; pass pick to tap"
            )
        raise TypeError(
            f"pick must name a tensor of what {self.name!r} returns; {self.pick!r} is a {type(found).__name__}"
        )

    def _picked(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            raise TypeError(f"pick goes with a submodule that returns several things; {self.name!r} returns a tensor")
        try:
            if isinstance(self.pick, str) and not isinstance(output, Mapping):
                return getattr(output, self.pick)
            return output[self.pick]
        except (AttributeError, LookupError, TypeError):
            raise TypeError(
                f"pick must name an element of what {self.name!r} returns, {_described(output)}; got {self.pick!r}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        # A Tap that is copied beside its hook says so to the copy.
        return {**vars(self), "value": None, "version": None, "wanted": False}


def _set_apart(module: nn.Module) -> None:
    """Give a module a `forward` of its own, which is that of its class.

    torch.compile shares a graph between modules of one class, and does not look whether they have hooks; it does look
    whether `forward` is their own. Without this, a tapped model that runs after an untapped twin keeps nothing.
    """
    if isinstance(getattr(type(module), "forward", None), FunctionType):
        vars(module).setdefault("forward", module.forward)


def _set_back(module: nn.Module) -> None:
    """Undo that with the last tap of the module."""
    if any(isinstance(each, _Hook) for each in module._forward_hooks.values()):
        return
    own = vars(module).get("forward")
    if own is not None and own == MethodType(type(module).forward, module):
        del vars(module)["forward"]


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}: {', '.join(type(each).__name__ for each in output)}"
    return f"a {type(output).__name__}"


def _parallel(name: str) -> str:
    return (
        f"model must not run in nn.DataParallel, whose threads would overwrite each other's map of {name!r}; "
        "use DistributedDataParallel"
    )


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a name that is written as without wrappers."""
    found: nn.Module | None = model
    for part in filter(None, name.split(".")):
        while found is not None and found._modules.get(part) is None:
            found = _inner(found)
        if found is None:
            raise ValueError(f"name must be that of a submodule of model; got {name!r}; {_near(name, _names(model))}")
        found = found._modules[part]
    return model if found is None else found


def _inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None: it is no wrapper."""
    if isinstance(module, DistributedDataParallel):
        wrapped: nn.Module = module.module
        return wrapped
    return next((module._modules[name] for name in _WRAPPED if name in module._modules), None)


def _names(model: nn.Module) -> list[str]:
    """Names of all submodules, without the parts of wrappers."""
    inner = model
    while (wrapped := _inner(inner)) is not None:
        inner = wrapped
    names = (name.split(".") for name, _ in inner.named_modules() if name)
    return [".".join(part for part in parts if part not in _WRAPPED) for parts in names]


def _near(name: str, known: list[str]) -> str:
    """Of the names that are known, those that were perhaps meant."""
    near = difflib.get_close_matches(name, known, _NEAR, cutoff=0.5)
    shown = near or known[:_NEAR]
    more = ", ..." if len(known) > len(shown) else ""
    return f"{'near it' if near else 'there'}: {', '.join(map(repr, shown))}{more}" if shown else "it has none"
