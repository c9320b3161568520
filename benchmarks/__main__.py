# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run` times the loss beside plain torch, interleaved in one process; `plot` draws the table;
`static` compiles every Triton kernel."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

import secl_ops
from benchmarks.contenders import CASES, Case, contenders
from benchmarks.plot import plot
from benchmarks.provenance import RESULTS, commit, machine
from benchmarks.static import report

FIELDS = ("case", "contender", "p50_ms", "min_ms", "max_ms", "rounds", "threads", "machine", "torch", "commit", "date")


def agree(case: Case) -> None:
    """No number from a wrong result: every contender's gradient is that of the reference backend in float64.

    Raises:
        SystemExit: One differs by more than fp32 rounding of similarities can explain.
    """
    rows, labels = case.tensors()
    loss = secl_ops.info_nce(rows.double(), anchor_labels=labels, denominator=case.denominator, backend="reference")
    truth = torch.autograd.grad(loss, rows)[0].double()
    for name, step in contenders(case).items():
        if name != "matrix products alone":
            error = float((step().double() - truth).abs().max() / truth.abs().max())
            if error > 1e-3:
                raise SystemExit(f"{name} is wrong on {case.name}: relative error {error:.1e}; nothing was timed")


def run(out: Path, rounds: int) -> None:
    """Time every case, contenders in turn within each round, and append the rows to `out`."""
    rows = []
    for case in CASES:
        agree(case)
        steps = contenders(case)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - start))
        base = statistics.median(times["eager torch"][1:])
        for name, all_values in times.items():
            values = all_values[1:]  # the first round warms caches and allocators
            middle = statistics.median(values)
            print(f"{case.name:32} {name:24} {middle:9.1f} ms   eager / this = {base / middle:6.2f}")
            rows.append(
                (case.name, name, f"{middle:.2f}", f"{min(values):.2f}", f"{max(values):.2f}", rounds,
                 torch.get_num_threads(), machine(), torch.__version__, commit(), datetime.now(UTC).date().isoformat())
            )  # fmt: skip
    new = not out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(FIELDS)
        writer.writerows(rows)
    print(f"written to {out}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("run", help="time the loss beside plain torch, for example: python -m benchmarks run")
    timing.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.csv"))
    timing.add_argument("--rounds", type=int, default=5)
    timing.set_defaults(call=lambda options: run(options.out, options.rounds))
    drawing = commands.add_parser("plot", help="draw the README's figure from the table")
    drawing.add_argument("--table", type=Path, default=Path("benchmarks/results/cpu.csv"))
    drawing.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.png"))
    drawing.set_defaults(call=lambda options: plot(options.table, options.out))
    static = commands.add_parser("static", help="compile every Triton kernel and print what the machine code predicts")
    static.add_argument("--full", action="store_true", help="every dtype, width, group and exclusion, not bf16 alone")
    static.add_argument("--kernel", default="", help="only configurations whose name holds this, such as scan-bf16")
    static.add_argument("--out", type=Path, default=RESULTS / "static.csv")
    static.set_defaults(call=lambda options: report(options.out, full=options.full, only=options.kernel))
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
