# SPDX-License-Identifier: Apache-2.0
"""Times the loss beside its rivals, draws what was measured, and reports what the Triton kernels were compiled to."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.contenders import LOSSES
from benchmarks.gpu import gpu
from benchmarks.memory import BUDGET_MIB, largest
from benchmarks.provenance import RESULTS
from benchmarks.published import SQUARE_ROWS, SQUARE_WIDTHS, listing
from benchmarks.run import Options, run, run_originals, run_pixel, sweep
from benchmarks.static import report
from benchmarks.training import SETTINGS, training
from benchmarks.tune import ROWS, WIDTHS, tune
from benchmarks.verified import write as write_verified

Namespace = argparse.Namespace
HERE = "cuda" if torch.cuda.is_available() else "cpu"


def _options(given: Namespace) -> Options:
    return Options(
        given.out,
        given.rounds,
        given.threads,
        given.device,
        given.dtype,
        not given.warm,
        given.budget,
        given.patience,
        tuple(given.without),
        given.busy,
    )


def _draw(given: Namespace) -> None:
    from benchmarks.figures import draw  # matplotlib is needed for drawing alone

    draw(given.results, given.out or given.results)


def _timing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that time a loss and append to a table."""
    timing = commands.add_parser("run", help="time every case: python -m benchmarks run --case densecl --rounds 9")
    timing.set_defaults(call=lambda given: run(_options(given), given.case), table="cases.csv")
    pixel = commands.add_parser("pixel", help="time the whole pixel step: feature map -> loss -> gradient of the map")
    pixel.set_defaults(call=lambda given: run_pixel(_options(given), given.case), table="pixel.csv")
    compat = commands.add_parser("compat", help="time the losses of other projects beside ours under their names")
    compat.set_defaults(call=lambda given: run_originals(_options(given), given.case), table="compat.csv")
    growing = commands.add_parser("sweep", help="time and memory for N = M: python -m benchmarks sweep --width 64 128")
    growing.add_argument("--kind", nargs="+", choices=("self", "frozen", "both"), default=["self"])
    growing.add_argument("--width", nargs="+", type=int, default=list(SQUARE_WIDTHS))
    growing.add_argument("--largest", type=int, default=SQUARE_ROWS[-1], help="stop at this many rows")
    growing.set_defaults(
        call=lambda given: sweep(_options(given), given.kind, given.width, given.largest), table="growth.csv"
    )
    for command in (timing, pixel, compat):
        command.add_argument("--case", default="", help="only cases whose name holds this; `cases` lists them")
    for command in (timing, pixel, compat, growing):
        name = command.get_default("table")
        command.add_argument("--out", type=Path, default=RESULTS / name, help=f"rows are appended; default {name}")
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--device", choices=("cpu", "cuda"), default=HERE)
        command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="")
        command.add_argument("--warm", action="store_true", help="on a GPU: leave the L2 cache as it is between calls")
        command.add_argument("--budget", type=float, default=0.0, help="GFLOP of the largest case; 0: the device's")
        command.add_argument("--patience", type=float, default=60.0, help="seconds one contender of a case may take")
        command.add_argument("--without", nargs="+", choices=tuple(LOSSES), default=[], help="leave these out")
        _busy(command)


def _busy(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--busy", action="store_true", help="on a CPU: go on beside other processes; each row is marked"
    )


def _others(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listed = commands.add_parser("cases", help="every case: its shape, what it comes from, what it takes")
    listed.set_defaults(call=lambda _: print(listing()))
    memory = commands.add_parser("memory", help="the most rows that fit a memory budget, ours and each rival's")
    memory.add_argument("--mib", type=float, default=0.0, help=f"the budget; 0: {BUDGET_MIB} by device")
    memory.add_argument("--patience", type=float, default=150.0, help="seconds that one size may take")
    memory.add_argument("--device", choices=("cpu", "cuda"), default=HERE)
    memory.add_argument("--kind", choices=("self", "both"), default="self", help="or N = M, both learn")
    memory.add_argument("--out", type=Path, default=RESULTS / "memory.csv", help="rows are appended")
    memory.add_argument("--threads", type=int, default=2)
    memory.set_defaults(
        call=lambda given: largest(
            given.out, given.device, given.mib, given.patience, given.threads, given.kind, given.busy
        )
    )
    _busy(memory)
    whole = commands.add_parser("training", help="one SECL training step with secl_ops, and with the eager loss")
    whole.add_argument("--rounds", type=int, default=3)
    whole.add_argument("--threads", type=int, default=2)
    whole.add_argument(
        "--setting", choices=tuple(SETTINGS), nargs="+", default=[], help="default: all that suit the device"
    )
    whole.add_argument("--out", type=Path, default=RESULTS / "training.csv", help="rows are appended")
    whole.set_defaults(call=lambda given: training(given.out, given.setting, given.rounds, given.threads, given.busy))
    _busy(whole)
    drawing = commands.add_parser("plot", help="draw the figures from the tables of a folder")
    drawing.add_argument("--results", type=Path, default=RESULTS, help="where the tables are")
    drawing.add_argument("--out", type=Path, default=None, help="where the figures go; default: beside the tables")
    drawing.set_defaults(call=_draw)
    static = commands.add_parser("static", help="compile every Triton kernel and print what the machine code predicts")
    static.add_argument("--full", action="store_true", help="every dtype, width, group and exclusion, not bf16 alone")
    static.add_argument("--kernel", default="", help="only configurations whose name holds this, such as scan-bf16")
    static.add_argument("--out", type=Path, default=RESULTS / "static.csv", help="written anew, with --kernel in part")
    static.set_defaults(call=lambda given: report(given.out, full=given.full, only=given.kernel))
    verifying = commands.add_parser("verified", help="write where `auto` may take the CUDA kernels, from cuda.csv")
    verifying.set_defaults(call=lambda _: write_verified())


def _on_a_gpu(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What a machine without a GPU refuses."""
    tuning = commands.add_parser("tune", help="time tiles beside those of the table, and say which should change")
    tuning.add_argument("--dtype", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    tuning.add_argument("--width", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    tuning.add_argument("--rounds", type=int, default=15)
    tuning.add_argument("--seconds", type=float, default=3600.0, help="no group of tiles is begun after these")
    tuning.add_argument("--out", type=Path, default=RESULTS / "tune.csv", help="rows are appended")
    tuning.set_defaults(call=lambda given: tune(given.out, given.dtype, given.width, given.rounds, given.seconds))
    everything = commands.add_parser("gpu", help="build check, tests, targets, rivals, tiles, pictures: eight minutes")
    everything.add_argument("--out", type=Path, required=True, help="a folder for the report, logs, tables, pictures")
    everything.add_argument("--archive", type=Path, default=None, help="a .tar.gz of that folder, written as it grows")
    everything.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # on tests/fake_gpu.py
    everything.set_defaults(call=lambda given: gpu(given.out, given.archive, rehearse=given.rehearse))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _timing(commands)
    _others(commands)
    _on_a_gpu(commands)
    return parser


def main() -> None:
    """Run what the command line asks for."""
    given = parser().parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
