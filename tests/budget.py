# SPDX-License-Identifier: Apache-2.0
"""The error budget of `benchmarks`, which the tests share: no test states a tolerance of its own."""

from benchmarks.budget import Wide, assert_within_budget, rounding_band

__all__ = ["SAME_CLASS", "Wide", "assert_within_budget", "rounding_band"]
SAME_CLASS = 0.999  # share of the voxels that an exported network and `predict` must agree in
