# SPDX-License-Identifier: Apache-2.0
"""The samples of one step, and which of them lie equally high."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Training samples of one step, on the device of the data."""

    image: Tensor  # [B, C, *patch] float32, 0 = padding
    label: Tensor  # [B, *patch] int64 class index, -1 = padding or ignored, -2 and below: see labels.OPEN
    position: Tensor  # [B] float32 in [0, 1): where slice (2-D) or patch centre (3-D) lies along the slice axis


def partition(position: Tensor, partitions: int) -> Tensor:
    """Group of relative slice position, `floor(position * partitions)`, int64 in `[0, partitions)`.

    Source: Chaitanya et al., Contrastive learning of global and local features, NeurIPS 2020.

    Args:
        position: `[B]` in `[0, 1)`.
        partitions: Number of groups.
    """
    return (position * partitions).to(torch.int64).clamp_(0, partitions - 1)
