# SPDX-License-Identifier: Apache-2.0
"""Options that were checked in an earlier call: a training step gives the same ones again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Options = TypeVar("Options")


def remembered(kind: Callable[..., Options], *options: object) -> Options:
    """Options of a kind, checked once for all calls that give the same ones.

    Example:
        >>> from secl_ops.spec import ContrastSpec
        >>> remembered(ContrastSpec, 0.1) is remembered(ContrastSpec, 0.1)
        True
    """
    if torch.compiler.is_compiling() or isinstance(options[0], Tensor):  # a temperature, which may change
        return kind(*options)
    try:
        found: Options = _remembered(kind, *options)
    except TypeError:  # it cannot be remembered, and is perhaps no option
        return kind(*options)
    return found


@lru_cache(256, typed=True)
def _remembered(kind: Callable[..., Any], *options: object) -> Any:
    return kind(*options)
