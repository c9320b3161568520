# SPDX-License-Identifier: Apache-2.0
"""Times the loss beside its rivals, draws what was measured, and reports what the Triton kernels were compiled to."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.provenance import RESULTS
from benchmarks.run import SWEEP_ROWS, run, sweep
from benchmarks.static import report
from benchmarks.verified import write as write_verified


def _draw(_: argparse.Namespace) -> None:
    from benchmarks.plot import plot_contenders, plot_sweep  # matplotlib is needed for drawing alone

    plot_contenders(RESULTS / "cpu.csv", RESULTS / "cpu.png")
    plot_sweep(RESULTS / "sweep.csv", RESULTS / "sweep.png")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("run", help="time every case: python -m benchmarks run --case frozen --rounds 9")
    timing.add_argument("--case", default="", help="only cases whose name holds this, such as self-all or N4096")
    timing.add_argument("--out", type=Path, default=RESULTS / "cpu.csv", help="rows are appended")
    timing.set_defaults(call=lambda options: run(options.out, options.rounds, options.threads, options.case))
    growing = commands.add_parser("sweep", help="time and memory of self-contrast against the number of rows")
    growing.add_argument("--largest", type=int, default=SWEEP_ROWS[-1], help="stop at this many rows")
    growing.add_argument("--out", type=Path, default=RESULTS / "sweep.csv", help="written anew")
    growing.set_defaults(call=lambda options: sweep(options.out, options.rounds, options.threads, options.largest))
    for command in (timing, growing):
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--threads", type=int, default=2)
    drawing = commands.add_parser("plot", help="draw the figures from the tables in benchmarks/results")
    drawing.set_defaults(call=_draw)
    static = commands.add_parser("static", help="compile every Triton kernel and print what the machine code predicts")
    static.add_argument("--full", action="store_true", help="every dtype, width, group and exclusion, not bf16 alone")
    static.add_argument("--kernel", default="", help="only configurations whose name holds this, such as scan-bf16")
    static.add_argument("--out", type=Path, default=RESULTS / "static.csv", help="written anew")
    static.set_defaults(call=lambda options: report(options.out, full=options.full, only=options.kernel))
    verifying = commands.add_parser("verified", help="write where `auto` may take the CUDA kernels, from cuda.csv")
    verifying.set_defaults(call=lambda _: write_verified())
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
