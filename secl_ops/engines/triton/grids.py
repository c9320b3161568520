# SPDX-License-Identifier: Apache-2.0
"""What every launch needs: the tensor's device made current, and the number of programs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from secl_ops import tiles


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def cells(count: int, block: int) -> int:
    """Blocks of this size that cover `count`."""
    return -(-count // block)


def copy_width(width: int) -> int:
    """Columns that a kernel which only moves memory takes at once."""
    return min(tiles.COPY_COLUMNS, max(16, tiles.next_power_of_two(width)))
