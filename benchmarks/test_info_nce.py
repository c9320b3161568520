# SPDX-License-Identifier: Apache-2.0
"""The same contenders under pytest-benchmark: `make bench`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import CASES, Case
from benchmarks.contenders import OURS, YARDSTICKS, contender, names
from benchmarks.gate import agree

TIMED = [
    (case, name) for case in CASES for name in names(case) if name in (OURS, "eager torch", *YARDSTICKS)
]  # the rivals take minutes; `python -m benchmarks run` has them


@pytest.mark.parametrize(("case", "name"), TIMED, ids=[f"{case.name}-{name}" for case, name in TIMED])
def test_forward_and_backward(case: Case, name: str, benchmark: BenchmarkFixture) -> None:
    try:
        step = contender(case, name)
    except RuntimeError as error:
        pytest.skip(f"{name} cannot run here: {error}")
    if name not in YARDSTICKS:
        agree(case, name, step())
    benchmark.group = case.name
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
