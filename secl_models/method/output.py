# SPDX-License-Identifier: Apache-2.0
"""What a network gives beside its logits: the maps that are contrasted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor  # [B, K + 1, *spatial]
    features: tuple[Tensor, ...]  # one [B, C_t, *spatial_t] per tap
    last: Tensor  # [B, C, *spatial] near the output
