# SPDX-License-Identifier: Apache-2.0
"""How much a backend may err: twice what plain torch errs in the same dtype, plus one rounding band."""

from __future__ import annotations

import torch
from torch import Tensor


def rounding_band(dtype: torch.dtype, magnitude: float, amplification: float) -> float:
    """What one rounding of an intermediate may cost: eps * magnitude * amplification."""
    return torch.finfo(dtype).eps * magnitude * max(1.0, amplification)


def assert_within_budget(
    name: str, actual: Tensor, truth: Tensor, plain: Tensor, *, amplification: float = 1.0
) -> None:
    """Hold `actual` against fp64 `truth`.

    Args:
        name: What is compared, for the message.
        actual: Result of the backend.
        truth: The same in float64, from inputs of the same (already rounded) values.
        plain: The same by plain torch in the backend's dtype.
        amplification: By how much an intermediate's relative error grows: 1 / temperature for an exponential.
    """
    if actual.shape != truth.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, not {tuple(truth.shape)}")
    if not torch.equal(actual.isnan(), truth.isnan()):
        raise AssertionError(f"{name}: NaN in {int(actual.isnan().sum())} places, not in {int(truth.isnan().sum())}")
    if truth.numel() == 0:
        return
    error = _largest(actual.double() - truth)
    allowed = 2 * _largest(plain.double() - truth) + rounding_band(plain.dtype, _largest(truth), amplification)
    if not error <= allowed:
        raise AssertionError(f"{name}: error {error:.3e} above its budget {allowed:.3e}")


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(0.0).abs().max())
