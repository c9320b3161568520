# SPDX-License-Identifier: Apache-2.0
"""What the engines of few rows share: the sides of a call, what they find, and what they keep of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from secl_ops.engines.reference import Origin

Check = Callable[[], None]
"""Refuses, by name, what breaks a rule; asked where a call is of a kind not seen before."""


class Wanted(NamedTuple):
    """Whose gradient is asked for."""

    anchors: bool
    keys: bool


class Kept(NamedTuple):
    """What the gradient of one side is, but for the upstream number."""

    rows: Tensor  # [n, D]
    unit: Tensor | None = None  # [n, D], where it has still to go through the norm of the rows
    inverse: Tensor | None = None  # [n] 1 / norm
    pixels: Tensor | None = None  # [n] int64 of a map; None: the rows are those of the side


class Found(NamedTuple):
    """A loss, and what its gradients are made of; nothing of a side whose gradient was not asked for."""

    value: Tensor  # []
    anchors: Kept | None
    keys: Kept | None


Back = Callable[[Kept, Origin, Tensor], Tensor]
"""Brings what was kept, times the upstream number, to where the rows came from."""


class Call(NamedTuple):
    """One call of few rows."""

    find: Callable[[Wanted], Found | None]  # None where the call is not served after all
    back: tuple[Back, Back]  # of the anchors and of the keys; they hold no tensor of the call


class Pixels(NamedTuple):
    """One side of a pixel step."""

    features: Tensor  # [B, D, *spatial]
    labels: Tensor  # [B, *any]
    eligible: Tensor | None  # [B, *any]
    scores: Tensor | None  # [B, *any]
    seed: int | Tensor
    stream: int = 0


PLAIN = (Tensor, nn.Parameter)
"""Classes that give no operation another meaning."""


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether this is a dense tensor, of no class that gives its operations another meaning."""
    return (
        type(value) in PLAIN
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and not value.is_quantized
    )
