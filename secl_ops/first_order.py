# SPDX-License-Identifier: Apache-2.0
"""Gradients that may be used and not differentiated: a second derivative is refused by name, whatever it is of.

torch's `once_differentiable` refuses it only where the upstream gradient is differentiable: elsewhere a Hessian is zero
and a gradient penalty vanishes, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")
Gradients = tuple[Tensor | None, ...]


class _Refusal(torch.autograd.Function):
    """A gradient, joined to all that it depends on by an edge that no derivative can pass."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "secl_ops has first derivatives only; for a second derivative (a gradient penalty, a Hessian) write that "
            "loss in plain torch"
        )


def remember(found: Found, arguments: Sequence[Any]) -> Found:
    """What a function found, whose node now knows a way back to each source, without the values that a graph forgets.

    Args:
        found: A tensor, or a tuple that begins with one.
        arguments: What the function was applied to.
    """
    first = found[0] if isinstance(found, tuple) else found
    node = first.grad_fn if isinstance(first, Tensor) else None
    if node is not None:
        node.sources = [  # type: ignore[attr-defined]  # it is the context of the backward pass
            value if value.is_leaf or value.ndim == 0 else value.index_select(0, value.new_empty(0, dtype=torch.int64))
            for value in arguments if isinstance(value, Tensor) and value.requires_grad
        ]  # fmt: skip
    return found


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward pass whose gradients refuse to be differentiated, by their sources and by what came from upstream."""

    @wraps(backward)
    def refusing(ctx: Any, *upstream: Tensor | None) -> Gradients:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # torch refuses the former itself
            return backward(ctx, *upstream)
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        known = [*getattr(ctx, "sources", ()), *(grad for grad in upstream if grad is not None and grad.requires_grad)]
        return tuple(
            None if grad is None else _Refusal.apply(grad, *known)  # type: ignore[no-untyped-call]
            for grad in gradients
        )

    return refusing
