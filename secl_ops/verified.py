# SPDX-License-Identifier: Apache-2.0
"""Where the CUDA kernels were seen right and faster than Triton's: written by `python -m benchmarks verified`."""

from __future__ import annotations

VERIFIED: frozenset[tuple[str, str, int, str]] = frozenset()
"""(architecture, dtype, width, operation), from `benchmarks/results/cuda.csv`; `auto` takes no other CUDA kernel."""
