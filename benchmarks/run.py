# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run` and `sweep`: the measured tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cases import CASES, Case
from benchmarks.contenders import OURS, YARDSTICKS, contender
from benchmarks.gate import admit, agree
from benchmarks.measure import cap_memory, extra_mib, milliseconds, ratio
from benchmarks.provenance import commit, machine, shown, today, write_rows

FIELDS = (
    "case", "contender", "p50_ms", "min_ms", "max_ms", "ratio_to_products", "extra_mib", "note", "rounds", "threads",
    "machine", "torch", "commit", "date",
)  # fmt: skip
SWEEP_FIELDS = (
    "contender", "rows", "width", "denominator", "p50_ms", "min_ms", "max_ms", "extra_mib", "rounds", "threads",
    "machine", "torch", "commit", "date",
)  # fmt: skip
SWEEP_ROWS = (2048, 4096, 8192, 16384, 32768)
SWEEP_LIMITS = {OURS: 32768, "eager torch": 8192}  # the dense form's matrices take 2 GiB at 8,192 rows already


def _provenance(rounds: int, threads: int) -> tuple[object, ...]:
    return (rounds, threads, machine(), torch.__version__, commit(), today())


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    return f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"


def run(out: Path, rounds: int, threads: int, only: str) -> None:
    """Time every case, contenders in turn within each round, and append the rows to `out`.

    Raises:
        SystemExit: No case is named so, or our own result is wrong.
    """
    chosen = [case for case in CASES if only in case.name]
    if not chosen:
        raise SystemExit(f"--case must be part of one of {', '.join(case.name for case in CASES)}; got {only}")
    torch.set_num_threads(threads)
    cap_memory()
    origin = _provenance(rounds, threads)
    for case in chosen:
        write_rows(out, FIELDS, [(*row, *origin) for row in measured(case, rounds, threads)], append=True)
    print(f"written to {shown(out)}")


def measured(case: Case, rounds: int, threads: int) -> list[tuple[object, ...]]:
    """One row per contender: times, their ratio to the faster yardstick, memory; or why there are none."""
    right, refused = admit(case)
    times = milliseconds(right, rounds)
    base = min((times[name] for name in YARDSTICKS if name in times), key=statistics.median)
    print(f"\n{case.name}: {case.flop / 1e9:.1f} GFLOP of products")
    print(f"{'':28}{'ms':>9}{'min':>9}{'max':>9}{'x products':>12}{'extra MiB':>11}")
    rows: list[tuple[object, ...]] = []
    for name, values in times.items():
        spread, times_products = _spread(values), f"{ratio(values, base):.2f}"
        memory = f"{extra_mib(case, name, threads):.1f}"
        rows.append((case.name, name, *spread, times_products, memory, ""))
        print(f"  {name:26}" + "".join(f"{value:>9}" for value in spread) + f"{times_products:>12}{memory:>11}")
    for name, reason in refused.items():
        rows.append((case.name, name, "", "", "", "", "", reason))
        print(f"  {name:26}  not timed: {reason}")
    return rows


def sweep(out: Path, rounds: int, threads: int, largest: int) -> None:
    """Time and memory of self-contrast against the number of rows; the table is written anew.

    Raises:
        AssertionError: A result is wrong; no table is written.
    """
    torch.set_num_threads(threads)
    cap_memory()
    origin = _provenance(rounds, threads)
    rows: list[tuple[object, ...]] = []
    for count in (count for count in SWEEP_ROWS if count <= largest):
        case = Case(count, 128, 8, "all")
        steps = {name: contender(case, name) for name, limit in SWEEP_LIMITS.items() if count <= limit}
        for name, step in steps.items():
            agree(case, name, step())
        for name, values in milliseconds(steps, rounds).items():
            spread, memory = _spread(values), f"{extra_mib(case, name, threads):.1f}"
            rows.append((name, count, case.width, case.denominator, *spread, memory, *origin))
            print(f"{count:>7} rows  {name:18}{spread[0]:>10} ms{memory:>9} MiB", flush=True)
    write_rows(out, SWEEP_FIELDS, rows, append=False)
    print(f"written to {shown(out)}")
