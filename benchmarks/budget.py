# SPDX-License-Identifier: Apache-2.0
"""How much a backend may err: twice what plain torch errs in the same dtype, plus one rounding band."""

from __future__ import annotations

import torch
from torch import Tensor


def rounding_band(dtype: torch.dtype, result: float, amplification: float, magnitude: float) -> float:
    """What one rounding may cost: of the result, amplified, or of an intermediate of this magnitude."""
    return torch.finfo(dtype).eps * max(result * max(1.0, amplification), magnitude)


def assert_within_budget(
    name: str, actual: Tensor, truth: Tensor, plain: Tensor, *, amplification: float = 1.0, magnitude: float = 0.0
) -> None:
    """Hold `actual` against fp64 `truth`.

    Args:
        name: What is compared, for the message.
        actual: Result of the backend.
        truth: The same in float64, from inputs of the same (already rounded) values.
        plain: The same by plain torch in the backend's dtype.
        magnitude: Of the largest number that is added up on the way, where the result itself may cancel to nothing.
        amplification: By how much an intermediate's relative error grows: 1 / temperature for an exponential.
    """
    if actual.shape != truth.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, not {tuple(truth.shape)}")
    if not torch.equal(actual.isnan(), truth.isnan()):
        raise AssertionError(f"{name}: NaN in {int(actual.isnan().sum())} places, not in {int(truth.isnan().sum())}")
    if truth.numel() == 0:
        return
    error = _largest(actual.double() - truth)
    allowed = 2 * _largest(plain.double() - truth) + rounding_band(
        plain.dtype, _largest(truth), amplification, magnitude
    )
    if not error <= allowed:
        raise AssertionError(f"{name}: error {error:.3e} above its budget {allowed:.3e}")


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(0.0).abs().max())
