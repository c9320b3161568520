# SPDX-License-Identifier: Apache-2.0
"""One step of each case that is timed later, in several processes on the one GPU: each finds its kernels compiled.

A launch is the one sure way to Triton's cache: its key holds what the launch made of the arguments.

python -m benchmarks.precompile
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks import gate, pixel
from benchmarks.cases import Case
from benchmarks.contenders import TRITON, contender
from benchmarks.gpu import demand_gpu
from benchmarks.pixel import PixelCase, pixel_contender
from benchmarks.published import CASES, SQUARE_ROWS, square
from benchmarks.run import BUDGET_GFLOP
from benchmarks.targets import TARGETS

MOST = 12  # processes, each of which takes half a gibibyte of the GPU
SWEPT = "self", 128  # what the stage `sweep` times


def work() -> list[Case | PixelCase]:
    """The cases in the order in which they are timed; none above the budget of the stages."""
    kind, width = SWEPT
    cases = [*CASES, *(square(rows, width, kind) for rows in SQUARE_ROWS)]
    timed = [case for case in cases if case.flop / 1e9 <= BUDGET_GFLOP["cuda"]]
    return list(dict.fromkeys([*(target.case for target in TARGETS), *pixel.CASES, *timed]))


def step(case: Case | PixelCase) -> str:
    """Run a case once; the seconds that it took, or what it failed of."""
    start = time.monotonic()
    try:
        here = case.on("cuda", "bfloat16")
        (pixel_contender(here, TRITON) if isinstance(here, PixelCase) else contender(here, TRITON))()
        torch.cuda.synchronize()
    except Exception as error:  # one that fails must not keep the others cold; its own stage fails aloud
        return f"failed: {gate.reason(error)}"
    return f"{time.monotonic() - start:.1f} s"


def part(number: int, parts: int) -> int:
    """Run every `parts`-th case; how many failed."""
    torch.set_num_threads(1)
    failed = 0
    for case in work()[number::parts]:
        state = step(case)
        failed += state.startswith("failed")
        print(f"{case.name}: {state}", flush=True)
    return failed


def main(arguments: Sequence[str]) -> int:
    """All cases, a process for each processor; or one process's part of them. How many failed, or processes did."""
    if arguments:
        number, parts = map(int, arguments)
        return part(number, parts)
    parts = min(MOST, os.cpu_count() or 1)
    again = [sys.executable, *sys.orig_argv[1:]]
    children = [subprocess.Popen([*again, str(number), str(parts)]) for number in range(parts)]
    return sum(child.wait() != 0 for child in children)


if __name__ == "__main__":
    demand_gpu("precompile")
    sys.exit(main(sys.argv[1:]))
