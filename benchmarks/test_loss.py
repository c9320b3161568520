# SPDX-License-Identifier: Apache-2.0
"""The loss on rows under pytest-benchmark, small sizes first; `python -m benchmarks run` has the rest."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import Case
from benchmarks.contenders import YARDSTICKS, contender, names, ours
from benchmarks.gate import agree
from benchmarks.packages import CannotExpressError
from benchmarks.published import CASES
from benchmarks.run import DTYPE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHORT = (
    "chaitanya-local", "u2pl", "ugpcl", "reco", "mona", "contrastiveseg", "dycon", "self-all-N4096-D128",
    "self-negatives-N4096-D128", "both-all",
)  # fmt: skip
RIVALS = ("eager torch", "chunked + checkpoint", "F.linear_cross_entropy")  # the fastest of those that need no compiler
TIMED = [
    (case.on(DEVICE, DTYPE[DEVICE]), name)
    for case in CASES
    if case.name.startswith(SHORT) and case.flop < 1e11
    for name in names(case.on(DEVICE, DTYPE[DEVICE]))
    if name in (*ours(DEVICE), *RIVALS, *YARDSTICKS)
]


@pytest.mark.parametrize(("case", "name"), TIMED, ids=[f"{case.name}-{name}" for case, name in TIMED])
def test_forward_and_backward(case: Case, name: str, benchmark: BenchmarkFixture) -> None:
    try:
        step = contender(case, name)
    except (RuntimeError, CannotExpressError) as error:
        pytest.skip(f"{name} cannot run here: {error}")
    if name not in YARDSTICKS:
        agree(case, name, step())

    def synchronised() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {case.dtype}"
    benchmark.extra_info["gflop"] = case.flop / 1e9
    benchmark.extra_info |= {"order": (0, case.pairs, case.width), "rows": case.rows, "contender": name}
    benchmark.pedantic(synchronised, rounds=5, warmup_rounds=1)
