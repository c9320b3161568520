# SPDX-License-Identifier: Apache-2.0
"""The command `secl report`; everything heavy is imported inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secl_models.command.arguments import LogFormatOption, QuietOption
from secl_models.command.errors_to_exit import speak


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, of any data, methods and seeds.")],
    out: Annotated[Path, typer.Option(help="HTML file; one that this command wrote is replaced.")],
    split: Annotated[str, typer.Option(help="Scores of `test` or `val` patients.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="last, best, last-largest or best-largest.")] = "last",
    csv: Annotated[
        Path | None, typer.Option(help="Scores as a table too; the differences go to NAME_pairs.csv beside it.")
    ] = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Compare any runs in one page: scores, differences paired by case with 95 % intervals, curves.

    Runs with equal options are one method, whatever their seeds. Two methods are paired on the cases that
    `secl evaluate` scored for both; the patient is the unit of every interval. A run without scores, or of other data,
    is listed and said to be so.
    """
    speak(log_format, quiet)
    from secl_models.inference.evaluate import require_scored
    from secl_models.report.comparison import write_comparison

    require_scored(split)
    for file in write_comparison(runs, out, split=split, checkpoint=checkpoint, csv=csv):
        typer.echo(f"Wrote {file}")
