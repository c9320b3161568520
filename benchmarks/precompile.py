# SPDX-License-Identifier: Apache-2.0
"""One step of all that is timed later, in several processes on the one GPU: each finds its kernels compiled.

A launch is the one sure way to Triton's cache: its key holds what the launch made of the arguments.

python -m benchmarks.precompile
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import gate, native_cuda, pixel
from benchmarks.cases import Case
from benchmarks.contenders import TRITON, contender
from benchmarks.gpu import demand_gpu
from benchmarks.native_cuda import Trial
from benchmarks.pixel import PixelCase, pixel_contender
from benchmarks.published import CASES, SQUARE_ROWS, square
from benchmarks.run import BUDGET_GFLOP
from benchmarks.targets import TARGETS

MOST = 12  # processes, each of which takes half a gibibyte of the GPU
SWEPT = "self", 128  # what the stage `sweep` times


class Job(NamedTuple):
    """One step of what is timed."""

    name: str
    run: Callable[[], object]


def one_step(case: Case | PixelCase) -> object:
    """Build a case by our own kernels, and run it once."""
    here = case.on("cuda", "bfloat16")
    return (pixel_contender(here, TRITON) if isinstance(here, PixelCase) else contender(here, TRITON))()


def one_trial(trial: Trial) -> object:
    """Build our side of a trial, and run it once."""
    return trial.step("triton")()


def cases() -> list[Case | PixelCase]:
    """Those of the targets first, then those of the other tables; none above the budget of the stages."""
    kind, width = SWEPT
    known = [*CASES, *(square(rows, width, kind) for rows in SQUARE_ROWS)]
    timed = [case for case in known if case.flop / 1e9 <= BUDGET_GFLOP["cuda"]]
    return list(dict.fromkeys([*(target.case for target in TARGETS), *pixel.CASES, *timed]))


def work() -> list[Job]:
    """One step of each case, and of each trial beside the native kernels."""
    steps = [Job(case.name, partial(one_step, case)) for case in cases()]
    trials = list(native_cuda.trials("cuda"))
    names = (f"{trial.operation} {trial.dtype} {trial.width} {trial.case}" for trial in trials)
    return steps + [Job(name, partial(one_trial, trial)) for name, trial in zip(names, trials, strict=True)]


def state(job: Job) -> str:
    """Run it once; the seconds that it took, or what it failed of."""
    start = time.monotonic()
    try:
        job.run()
        torch.cuda.synchronize()
    except Exception as error:  # one that fails must not keep the others cold; its own stage fails aloud
        return f"failed: {gate.reason(error)}"
    return f"{time.monotonic() - start:.1f} s"


def part(number: int, parts: int) -> int:
    """Run every `parts`-th job; how many failed."""
    torch.set_num_threads(1)
    failed = 0
    for job in work()[number::parts]:
        said = state(job)
        failed += said.startswith("failed")
        print(f"{job.name}: {said}", flush=True)
    return failed


def main(arguments: Sequence[str]) -> int:
    """All jobs, a process for each processor; or one process's part of them. How many failed, or processes did."""
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
