# SPDX-License-Identifier: Apache-2.0
"""The command `secl suggest`; everything heavy is imported inside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secl_models.command.arguments import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    LogFormatOption,
    QuietOption,
    SpacingOption,
    spacing_from,
)
from secl_models.command.errors_to_exit import progress_bar, speak
from secl_models.options.terminal import print_table

if TYPE_CHECKING:
    from secl_models.inference.suggest import Candidate

SHOWN = 10  # patients behind the suggested ones


def suggest(
    checkpoint: CheckpointOption,
    data: DataOption,
    count: Annotated[int, typer.Option(help="Patients to label next.")] = 2,
    by: Annotated[
        str, typer.Option(help="Of each look the patient in most `doubt`, or the most `typical` one.")
    ] = "doubt",
    out: Annotated[Path, typer.Option(help="Folder for suggest.csv and suggest.html.")] = Path("suggest"),
    device: DeviceOption = "auto",
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Name the patients that are worth labelling next.

    In doubt are first the patients in whom no network sees a structure that every labelled one has, then those on whom
    student, teacher and, where training mirrored, their mirrored answers are furthest apart. The more doubtful half is
    put into as many groups of alike looks as are asked for, and the most doubtful of each is suggested. With --by
    typical the groups are of all, and the most typical of each is. It is not sure yet that they are worth more than
    patients at random, see `secl study suggest`. The page shows the slices that the networks are unsure of.
    """
    speak(log_format, quiet)
    from secl_models.data.layouts import read_data_set
    from secl_models.data.splits import load_split
    from secl_models.inference.metrics import structure_names
    from secl_models.inference.suggest import Committee, require_way
    from secl_models.inference.suggest import suggest as rank
    from secl_models.method.device import choose_device
    from secl_models.report.suggestions import write_suggestions

    require_way(by)
    data_set = read_data_set(data, spacing_from(set_))
    committee = Committee.of(checkpoint, choose_device(device))
    known = {case.patient for case in data_set.cases if case.label is not None}
    unlabeled = {case.patient for case in data_set.cases} - known  # none: to try it, those whose labels were not used
    with progress_bar("asking the networks") as progress:
        candidates = rank(
            checkpoint, data_set, count, committee=committee, by=by, among=unlabeled or None, progress=progress
        )
    files = write_suggestions(candidates, committee, data_set, out, by)
    print_table(_table(candidates, structure_names(committee.teacher.classes)))
    for file in files:
        typer.echo(f"Wrote {file}")
    if not unlabeled:
        typer.echo("These have labels already: `secl study suggest` compares such patients with others at random.")
        return
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    split = load_split(run / "split.json", data_set)
    labeled = known - {case.patient for case in (*split.val, *split.test)}
    settings, place, source = (shlex.quote(str(path)) for path in (run / "config.yaml", run, data))
    typer.echo("Next: label these, and train again, with the same settings, validation and test patients:")
    typer.echo(
        f"  secl train --data {source} --preset {settings} --split-of {place} --labeled {len(labeled) + count} "
        "--out NEW_RUN"
    )


def _table(candidates: list[Candidate], structures: Sequence[str]) -> Table:
    """The suggested patients, and the first of the others."""
    from secl_models.report.suggestions import missing_names

    chosen = sum(candidate.suggested for candidate in candidates)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    missing = any(candidate.missing for candidate in candidates)
    for name in ("", "patient", "disagreement", *(["not found"] if missing else []), "group"):
        table.add_column(name, justify="right" if name == "disagreement" else "left", overflow="fold")
    for number, candidate in enumerate(candidates[: chosen + SHOWN], start=1):
        group = "" if candidate.group is None else str(candidate.group + 1)
        cells = ("label next" if candidate.suggested else "", escape(candidate.patient))
        overlooked = [escape(missing_names(candidate, structures).replace(";", ", "))] if missing else []
        table.add_row(*cells, f"{candidate.disagreement:.4f}", *overlooked, group, end_section=number == chosen)
    if left := len(candidates) - chosen - SHOWN:
        table.caption = f"and {left} more, see the table" if left > 0 else None
    return table
