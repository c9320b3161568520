# SPDX-License-Identifier: Apache-2.0
"""How much a backend may err: twice what plain torch errs in the same dtype, plus one rounding band."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Wide(NamedTuple):
    """Numbers that float64 cannot hold: the sum of the two."""

    high: Tensor
    low: Tensor


def rounding_band(dtype: torch.dtype, result: float, amplification: float, magnitude: float) -> float:
    """What one rounding may cost: of the result, amplified, or of an intermediate of this magnitude."""
    return torch.finfo(dtype).eps * max(result * max(1.0, amplification), magnitude)


def assert_within_budget(
    name: str,
    actual: Tensor,
    truth: Tensor | Wide,
    plain: Tensor,
    *,
    amplification: float = 1.0,
    magnitude: float = 0.0,
) -> None:
    """Hold `actual` against a truth in more digits than its own.

    Args:
        name: What is compared, for the message.
        actual: Result of the backend.
        truth: The same from inputs of the same (already rounded) values: in float64, and for float64 in two of them.
        plain: The same by plain torch in the backend's dtype.
        magnitude: Of the largest number that is added up on the way, where the result itself may cancel to nothing.
        amplification: By how much an intermediate's relative error grows: 1 / temperature for an exponential.
    """
    if plain.dtype == torch.float64 and not isinstance(truth, Wide):
        raise AssertionError(f"{name}: float64 is no truth about float64; give a Wide")
    right = truth if isinstance(truth, Wide) else Wide(truth, torch.zeros_like(truth))
    if actual.shape != right.high.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, not {tuple(right.high.shape)}")
    if not torch.equal(actual.isnan(), right.high.isnan()):
        found, expected = (int(values.isnan().sum()) for values in (actual, right.high))
        raise AssertionError(f"{name}: NaN in {found} places, not in {expected}")
    if right.high.numel() == 0:
        return
    error = _distance(actual, right)
    allowed = 2 * _distance(plain, right) + rounding_band(plain.dtype, _largest(right.high), amplification, magnitude)
    if not error <= allowed:
        raise AssertionError(f"{name}: error {error:.3e} above its budget {allowed:.3e}")


def _distance(values: Tensor, truth: Wide) -> float:
    return _largest((values.double() - truth.high) - truth.low)


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(0.0).abs().max())
