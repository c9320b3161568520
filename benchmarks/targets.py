# SPDX-License-Identifier: Apache-2.0
"""What a few cases should reach on a GPU, and how that is measured: seen right, timed, written one by one.

python -m benchmarks.targets TABLE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gate, pixel
from benchmarks.cases import Case
from benchmarks.contenders import TRITON, contender
from benchmarks.gpu import demand_gpu
from benchmarks.load import Watch
from benchmarks.measure import Clock, Work, extra_mib, milliseconds, percentiles
from benchmarks.pixel import GRAPH, PixelCase
from benchmarks.provenance import ORIGIN, origin, write_rows
from benchmarks.published import square

FIELDS = ("target", "case", "contender", "p20_ms", "p50_ms", "p80_ms", "extra_mib", "rounds", "note", *ORIGIN)
ROUNDS = 20
PATIENCE = 10.0  # seconds that the rounds of one target may take


@dataclass(frozen=True)
class Target:
    """What one case must reach on an H200, and what to try where it does not; the first six decide the most."""

    name: str
    case: Case | PixelCase
    contender: str
    column: str  # of the table: p50_ms or extra_mib
    most: float | None  # None: no figure is set, and what was measured decides what comes next
    next_step: str


_PIXEL = next(case for case in pixel.CASES if case.name == "contrastiveseg")
TARGETS = (
    Target(
        "both sides, 65,536 x 65,536, D 128", square(65_536, 128, "both"), TRITON, "p50_ms", 7.3,
        "python -m benchmarks tune, purposes value and gradient; then exponentials overlapped with the next product",
    ),
    Target(
        "frozen keys, 65,536 x 65,536, D 128", square(65_536, 128, "frozen"), TRITON, "p50_ms", 3.7,
        "python -m benchmarks tune, purpose value; then 256 rows a program, so that fewer keys cross from L2",
    ),
    Target(
        "self-contrast, 65,536, D 128", square(65_536, 128, "self"), TRITON, "p50_ms", 5.5,
        "python -m benchmarks tune, purposes scan and gradient; then a forward pass over the upper triangle alone",
    ),
    Target(
        "self-contrast, 4,096, D 128", square(4096, 128, "self"), TRITON, "p50_ms", None,
        "compare with torch.compile in cases.csv: below it, count the programs and the launches of one step",
    ),
    Target(
        "whole pixel step in a CUDA graph", _PIXEL, GRAPH, "p50_ms", 0.150,
        "profile one replay: a kernel above 20 us needs more programs (split the keys, ordered merge); the sampler's "
        "four passes over the labels come next",
    ),
    Target(
        "whole pixel step, launched from Python", _PIXEL, TRITON, "p50_ms", None,
        "what it takes beyond the graph is the host's: fewer launches, less Python around each",
    ),
    Target(
        "262,144 x 262,144 runs in little memory", square(262_144, 128, "both"), TRITON, "extra_mib", 1024.0,
        "print torch.cuda.memory_summary() after the forward pass: no tensor may hold more than (N + M) D numbers",
    ),
)  # fmt: skip


def _step(target: Target, case: Case | PixelCase) -> Work:
    """The work of a target, seen right.

    Raises:
        AssertionError: Its result is outside the error budget.
    """
    if isinstance(case, PixelCase):
        pixel_step = pixel.pixel_contender(case, target.contender)
        pixel.agree(case, target.contender, pixel_step())
        return pixel_step
    step = contender(case, target.contender)
    gate.agree(case, target.contender, step())
    return step


def measure(out: Path, targets: Sequence[Target], device: str, dtype: str, rounds: int) -> int:
    """Append a row per target; the number of those without a time, whose row says why."""
    source, watch, missing = origin(1, device), Watch(device), 0
    for target in targets:
        case, load = target.case.on(device, dtype), watch.before(target.name)
        spread, memory, count, note = ("", "", ""), "", 0, ""
        try:
            times = milliseconds({target.name: _step(target, case)}, rounds, Clock(device), PATIENCE)[target.name]
            low, middle, high = percentiles(times)
            spread, count = (f"{low:.4g}", f"{middle:.4g}", f"{high:.4g}"), len(times)
            memory = f"{extra_mib(case, target.contender, 1):.1f}"
        except Exception as error:  # a target that cannot be measured must not hide the next one
            note = gate.reason(error)
            missing += 1
        row = (target.name, case.name, target.contender, *spread, memory, count, note)
        write_rows(out, FIELDS, [load.stamp(row, source, timed=count)], append=True)
        print(f"{target.name:44}{spread[1]:>10} ms{memory:>10} MiB  {note}", flush=True)
    return missing


def main(arguments: Sequence[str]) -> int:
    """Measure all; 1 where a target has no time."""
    return measure(Path(arguments[0]), TARGETS, "cuda", "bfloat16", ROUNDS) > 0


if __name__ == "__main__":
    demand_gpu("targets")
    sys.exit(main(sys.argv[1:]))
