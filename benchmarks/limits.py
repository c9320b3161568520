# SPDX-License-Identifier: Apache-2.0
"""What a case takes at best: on a known GPU by its products and exponentials, elsewhere what the bare products took."""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.cases import Case

EXP2_PER_CLOCK = 16  # of one multiprocessor


class Peak(NamedTuple):
    """The two ceilings that bind a fused contrast."""

    flop: float  # per second, bf16 matrix products
    exponentials: float  # per second
    source: str


# An H100 SXM is the same chip: its multiprocessors, clocks and tensor cores are those of an H200.
_HOPPER = Peak(790e12, 132 * EXP2_PER_CLOCK * 1.755e9, "790 TFLOP/s bf16 measured on an H200, 16 exp2 a clock")
PEAKS = {"H200": _HOPPER, "H100 80GB HBM3": _HOPPER}


def floor_ms(case: Case, machine: str) -> tuple[float, str] | None:
    """Least milliseconds of a case on a GPU of this name and by what; None where the ceilings are not known.

    Each pass takes the longer of its products and its exponentials, which overlap at best.

    Example:
        >>> case = Case("", 65536, 128, 65536, both=True, dtype="bfloat16")
        >>> print(f"{floor_ms(case, 'NVIDIA H200')[0]:.2f}")
        5.57
    """
    peak = next((peak for name, peak in PEAKS.items() if name in machine), None)
    if peak is None or case.dtype not in ("bfloat16", "float16"):
        return None
    product = 2 * case.pairs * case.width / peak.flop
    exponential = case.pairs / peak.exponentials
    passes = {"frozen": (2,), "both": (2, 2), "self": (1, 2)}[case.kind]
    return 1e3 * sum(max(products * product, exponential) for products in passes), peak.source


def device_name(device: str) -> str:
    """What the machine calls its GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else ""
