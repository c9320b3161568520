# SPDX-License-Identifier: Apache-2.0
"""The whole pixel step under pytest-benchmark: feature map -> loss -> gradient of the map."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.pixel import CASES, LEAN, PixelCase, agree, pixel_contender, pixel_names

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIMED = [
    (case.on(DEVICE, "float32"), name)
    for case in CASES
    for name in pixel_names(case.on(DEVICE, "float32"))
    if name.startswith("secl_ops") or (name == LEAN and case.name == "la-3d")
]


@pytest.mark.parametrize(("case", "name"), TIMED, ids=[f"{case.name}-{name}" for case, name in TIMED])
def test_pixel_step(case: PixelCase, name: str, benchmark: BenchmarkFixture) -> None:
    try:
        step = pixel_contender(case, name)
    except RuntimeError as error:
        pytest.skip(f"{name} cannot run here: {error}")
    agree(case, name, step())

    def synchronised() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = case.name
    benchmark.extra_info |= {"order": (1, case.anchors, case.width), "rows": case.anchors, "contender": name}
    benchmark.pedantic(synchronised, rounds=3, warmup_rounds=1)
