# SPDX-License-Identifier: Apache-2.0
"""The same contenders under pytest-benchmark: `make bench`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.__main__ import agree
from benchmarks.contenders import CASES, Case, contenders


@pytest.mark.parametrize("name", ["eager torch", "secl_ops native", "matrix products alone"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_and_backward(case: Case, name: str, benchmark: BenchmarkFixture) -> None:
    steps = contenders(case)
    if name not in steps:
        pytest.skip(f"{name} cannot run here; see `secl doctor`")
    agree(case)
    benchmark.group = case.name
    benchmark.pedantic(steps[name], rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
