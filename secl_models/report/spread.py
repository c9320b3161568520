# SPDX-License-Identifier: Apache-2.0
"""Mean and spread of some numbers, and how far the mean of others alike would lie: Student's interval, bootstrap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9_999
LEAST = 3  # numbers: of two the bootstrap has three means to choose from


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds or patients; the deviation is None for one."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of values, or None where there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, *, sign: bool = False) -> str:
        """Such as `78.1 ± 0.4`, with a sign where it is a difference."""
        mean = f"{self.mean:+.1f}" if sign else f"{self.mean:.1f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.1f}"

    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean, mean ± t SD / sqrt(n); paired where the values are differences.

        Returns:
            Low and high; None for one value.

        Example:
            >>> low, high = Spread(2.0, 1.0, 3).interval()
            >>> f"{low:.2f} {high:.2f}"
            '-0.48 4.48'
        """
        if self.deviation is None:
            return None
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half


def bootstrap(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean that resampling gives, bias-corrected and accelerated (Efron 1987).

    Args:
        values: One number for each independent unit, as a patient; the same numbers give the same interval.

    Returns:
        Low and high; None for fewer than `LEAST` values.

    Example:
        >>> low, high = bootstrap([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> 1.0 < low < 3.0 < high < 5.0
        True
    """
    if len(values) < LEAST:
        return None
    low, high = min(values), max(values)
    rounding = len(values) * float(np.finfo(np.float64).eps) * max(abs(low), abs(high))
    if high - low <= rounding:  # nothing to resample, and no acceleration
        return low, high
    random = np.random.default_rng(0)
    found = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, random_state=random
    ).confidence_interval
    return float(found.low), float(found.high)
