# SPDX-License-Identifier: Apache-2.0
"""How time and memory are measured: every contender in every round; memory of one pass above what was there."""

from __future__ import annotations

import ctypes
import json
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.contenders import COMPILED, contender
from benchmarks.originals import OriginalCase, original_contender
from benchmarks.pixel import PixelCase, pixel_contender

STATUS = Path("/proc/self/status")
FLUSH = 256 << 20  # bytes, five times the L2 cache of an H200
Work = Callable[[], object]
BUILDERS: dict[str, tuple[Callable[..., Any], Callable[[Any, str], Work]]] = {
    "Case": (Case, contender),
    "OriginalCase": (OriginalCase, original_contender),
    "PixelCase": (PixelCase, pixel_contender),
}


def cap_memory(spare: int | None = None) -> None:
    """An allocation beyond what the machine has left fails here instead of waking the kernel's out-of-memory killer.

    Args:
        spare: Bytes that may still be allocated; None: whatever is available.
    """
    available = _kib(Path("/proc/meminfo"), "MemAvailable") * 1024 if spare is None else spare
    limit = _kib(STATUS, "VmSize") * 1024 + available
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Clock:
    """Milliseconds of one call: by the clock on a CPU; between two events on a GPU, its L2 cache emptied before."""

    def __init__(self, device: str = "cpu", cold: bool = True) -> None:
        self.device = device
        self.flush = torch.empty(FLUSH, dtype=torch.int8, device=device) if device == "cuda" and cold else None

    def __call__(self, work: Work) -> float:
        """Time one call."""
        if self.device == "cpu":
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self.flush is not None:
            self.flush.zero_()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    @property
    def cache(self) -> str:
        """What the column `cold_l2` says."""
        return "" if self.device == "cpu" else "no" if self.flush is None else "yes"


def milliseconds(
    steps: Mapping[str, Work],
    rounds: int,
    clock: Clock,
    patience: float = float("inf"),
    failed: dict[str, Exception] | None = None,
) -> dict[str, list[float]]:
    """Times of each contender, one per round; a first round that warms caches and allocators is not kept.

    Each round has an order of its own, always the same: what a slow contender leaves in the caches and of the thread
    pool is not met by the same one every time.

    Args:
        steps: Each contender's work.
        rounds: Most times each is timed.
        clock: Measures one call.
        patience: Seconds that one contender may take in all: a slow one is timed fewer times, at least once.
        failed: Takes the error of each contender that fails, which is then timed no more; None: it is raised.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for number in range(rounds + 1):
        if number:
            random.Random(number).shuffle(order)
        for name in order:
            seconds = times[name][0] / 1e3 if times[name] else 0.0
            if (failed and name in failed) or (number > 1 and number * seconds > patience):
                continue
            try:
                times[name].append(clock(steps[name]))
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
    return {name: values[1:] for name, values in times.items() if not (failed and name in failed)}


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile.

    Example:
        >>> percentiles([10.0, 20.0, 30.0])
        (14.0, 20.0, 26.0)
    """
    low, middle, high = (float(each) for each in np.percentile(values, (20, 50, 80)))
    return low, middle, high


def extra_mib(
    case: Case | PixelCase, name: str, threads: int, spare: int | None = None, timeout: float | None = None
) -> float:
    """Growth of memory over one forward and backward pass: resident in a fresh process, or allocated on the GPU.

    Args:
        case: What is computed.
        name: By whom.
        threads: Of that process.
        spare: Bytes that it may allocate; None: what the machine has.
        timeout: Seconds that it may take.

    Raises:
        RuntimeError: That process died; its last line is in the message.
        TimeoutError: It took longer.
    """
    if case.device == "cuda":
        return allocated_mib(BUILDERS[type(case).__name__][1](case, name))
    arguments = [type(case).__name__, json.dumps(asdict(case)), name, str(threads), "" if spare is None else str(spare)]
    command = [sys.executable, "-m", "benchmarks.measure", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"one pass took longer than {timeout:g} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        raise RuntimeError(f"measuring the memory of {name} exited with {done.returncode}: {last[-300:]}")
    return int(done.stdout.splitlines()[-1]) / 1024


def allocated_mib(step: Work) -> float:
    """Peak of what the GPU's allocator gave out during one pass, above what it had given out before."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _kib(file: Path, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", file.read_text())
    if found is None:
        raise RuntimeError(f"{file} must have a line {field}; it has none; memory is measured on Linux")
    return int(found[1])


def growth_kib(case: Case | PixelCase, name: str, spare: int | None = None) -> int:
    """The peak of one pass above what was resident before it; libraries and thread pools are loaded beforehand."""
    build = BUILDERS[type(case).__name__][1]
    build(case.small(), name)()
    step = build(case, name)
    if name == COMPILED:
        step()  # the compiler's own memory is not the step's
        ctypes.CDLL(None).malloc_trim(0)
    if spare is not None:
        cap_memory(spare)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _kib(STATUS, "VmHWM")  # of this process alone: ru_maxrss still holds the parent's
    step()
    return _kib(STATUS, "VmHWM") - before


if __name__ == "__main__":
    kind, fields, asked, count, bytes_left = sys.argv[1:]
    torch.set_num_threads(int(count))
    made = BUILDERS[kind][0](**{key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(fields).items()})
    sys.stdout.write(f"{growth_kib(made, asked, int(bytes_left) if bytes_left else None)}\n")
