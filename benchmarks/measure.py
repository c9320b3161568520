# SPDX-License-Identifier: Apache-2.0
"""How time and memory are measured: contenders in turn within each round, memory in a process of its own."""

from __future__ import annotations

import ctypes
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.contenders import COMPILED, Step, contender

STATUS = Path("/proc/self/status")
WARM_ROWS = 256


def cap_memory() -> None:
    """An allocation beyond the machine's memory fails here instead of waking the kernel's out-of-memory killer."""
    physical = _kib(Path("/proc/meminfo"), "MemTotal") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (physical, resource.getrlimit(resource.RLIMIT_AS)[1]))


def milliseconds(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Times of each contender, one per round; a first round that warms caches and allocators is not kept."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in times.items()}


def ratio(values: list[float], yardstick: list[float]) -> float:
    """Median over the rounds of one time over another of the same round: what slows both cancels.

    Example:
        >>> ratio([10.0, 30.0, 10.0], [10.0, 20.0, 20.0])
        1.0
    """
    return statistics.median(value / base for value, base in zip(values, yardstick, strict=True))


def extra_mib(case: Case, name: str, threads: int) -> float:
    """Growth of a fresh process's resident memory over one forward and backward pass.

    Raises:
        RuntimeError: That process died; its last line is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(case)), name, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name} exited with {done.returncode}: {done.stderr[-300:]}")
    return int(done.stdout.splitlines()[-1]) / 1024


def _kib(file: Path, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", file.read_text())
    if found is None:
        raise RuntimeError(f"{file} must have a line {field}; it has none; memory is measured on Linux")
    return int(found[1])


def growth_kib(case: Case, name: str) -> int:
    """The peak of one pass above what was resident before it; libraries and thread pools are loaded beforehand."""
    small = replace(case, rows=WARM_ROWS, keys=min(case.keys, 4 * WARM_ROWS))
    contender(small, name)()
    step = contender(case, name)
    if name == COMPILED:
        step()  # the compiler's own memory is not the step's
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _kib(STATUS, "VmHWM")  # of this process alone: ru_maxrss still holds the parent's
    step()
    return _kib(STATUS, "VmHWM") - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    asked = Case(**json.loads(sys.argv[1]))
    sys.stdout.write(f"{growth_kib(asked, sys.argv[2])}\n")
