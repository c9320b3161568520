# SPDX-License-Identifier: Apache-2.0
"""A small loss of each path under compute-sanitizer: reads beyond a buffer, races, barriers that not all threads reach.

python -m benchmarks.memcheck
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from benchmarks.gpu import REPOSITORY, demand_gpu

TOOLS = ("memcheck", "racecheck", "synccheck")
WRONG = 9  # exit status of compute-sanitizer where it found something
SECONDS = 55.0  # that a check may take


@dataclass(frozen=True)
class Way:
    """One path of the kernels: a backend, a dtype that it serves, and what chooses it."""

    name: str
    backend: str
    dtype: str
    environment: Mapping[str, str] = field(default_factory=dict)


WAYS = (
    Way("native", "native", "bfloat16"),
    Way("native-hopper", "native", "float16", {"SECL_CUDA_PATH": "hopper"}),
    Way("triton", "triton", "bfloat16"),
    Way("triton-fp32", "triton", "float32"),
)


def sanitizer() -> str | None:
    """The program, from the path or from where CUDA lies; None where there is none."""
    places = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [f"{place}/bin" for place in (*places, "/usr/local/cuda") if place]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def ways_here(capability: tuple[int, int]) -> list[Way]:
    """Those that the GPU has: the Hopper kernels are for that chip alone."""
    return [way for way in WAYS if not way.environment or capability == (9, 0)]


def check(program: str, tool: str, way: Way, seconds: float = SECONDS) -> tuple[str, str]:
    """One tool over one path: "clean" or what came, and all that was printed."""
    command = [
        program, "--tool", tool, "--error-exitcode", str(WRONG), "--target-processes", "all",
        sys.executable, "-m", "benchmarks.build", way.backend, way.dtype,
    ]  # fmt: skip
    # Every tensor in an allocation of its own: what is read beyond one is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **way.environment}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as late:
        return f"not finished in {seconds:.0f} s", _text(late.stdout) + _text(late.stderr)
    printed = done.stdout + done.stderr
    if done.returncode == WRONG:
        return "faults found", printed
    return ("clean" if done.returncode == 0 else f"failed: exit code {done.returncode}"), printed


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def watch(program: str | None, ways: Sequence[Way] = WAYS) -> int:
    """Print a line for each tool and path, and what is not clean in full; how many are not."""
    if program is None:
        print("compute-sanitizer is not installed; it comes with the CUDA toolkit")
        return 1
    pairs = [(tool, way) for tool in TOOLS for way in ways]
    unclean = 0
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        for (tool, way), (state, printed) in zip(
            pairs, pool.map(lambda pair: check(program, *pair), pairs), strict=True
        ):
            print(f"{tool} {way.name}: {state}", flush=True)
            if state != "clean":
                unclean += 1
                print(printed, flush=True)
    return unclean


def main(_: Sequence[str]) -> int:
    """Watch what this GPU has; how many checks are not clean."""
    return watch(sanitizer(), ways_here(torch.cuda.get_device_capability()))


if __name__ == "__main__":
    demand_gpu("memcheck")
    sys.exit(main(sys.argv[1:]))
