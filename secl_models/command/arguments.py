# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secl_models.options.errors import InputError
from secl_models.options.events import FORMATS, NOTE, tell

if TYPE_CHECKING:
    from secl_models.data.cases import DataSet
    from secl_models.data.splits import Split
    from secl_models.options.schema import RunConfig

DataOption = Annotated[Path, typer.Option("--data", help="Folder in Decathlon, nnU-Net or SSL4MIS layout, or a CSV.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option, as RUN/config.yaml lists them; may be repeated."),
]
SpacingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="data.spacing_from=affine or =pixdim: what counts where a header contradicts itself.",
    ),
]
CheckpointOption = Annotated[Path, typer.Option(help="Run folder, or a checkpoint file in it.")]

QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress: results, warnings and errors alone.")]
LogFormatOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(FORMATS),
        help="Progress as lines, or as a JSON object a line; `auto`: a bar on a terminal, else lines.",
    ),
]


def configure(preset: str | None, data: Path, assignments: Sequence[str]) -> RunConfig:
    """The preset, by name or by that of the data folder, with options on top.

    Args:
        preset: Name or file; None: named like the data folder, else `default`.
        data: Folder or CSV; its last part may be the name of a preset.
        assignments: `key=value` each.
    """
    from secl_models.method.device import choose_device
    from secl_models.options.schema import load_preset, override, preset_names

    if preset is None:
        name = data.resolve().name
        preset = name if name in preset_names() and name != "demo" else "default"
        tell("preset", f"Preset: {preset} (choose another with --preset).", level=NOTE, preset=preset)
    config = override(load_preset(preset), assignments)
    choose_device(config.train.device)
    return config


def data_and_split(data: Path, config: RunConfig, like: Path | None = None) -> tuple[DataSet, Split]:
    """Read a data set and draw who is labelled.

    Args:
        data: Folder or CSV.
        config: Says how many cases are labelled, and the seed.
        like: An earlier run, whose validation, test and labelled patients stay what they are.
    """
    from secl_models.data.layouts import read_data_set
    from secl_models.data.patients import cure_of_suspicion, grouping, suspicion
    from secl_models.data.splits import make_split, split_like

    data_set = read_data_set(data, config.data.spacing_from)
    if groups := grouping(data_set):
        tell("patients", groups, level=NOTE)
    if alike := suspicion(data_set):
        cure = cure_of_suspicion(data_set)
        tell("note", f"May be of one patient: {alike}. To say who is who, {cure}.", level=logging.WARNING)
    if like is not None:
        return data_set, split_like(data_set, config.labeled, config.seed, like)
    return data_set, make_split(data_set, config.labeled, config.seed)


def spacing_from(assignments: Sequence[str] | None) -> str:
    """The one option of the data that a command without a preset takes.

    Args:
        assignments: `data.spacing_from=VALUE`, or nothing.

    Raises:
        InputError: Another option, or a value that it cannot have.
    """
    from secl_models.options.spacing import AUTO, KEY

    if not assignments:
        return AUTO
    from secl_models.options.schema import RunConfig, override

    for assignment in assignments:
        if assignment.partition("=")[0].strip() != KEY:
            rule, cure = f"{KEY} alone", "give all other options to `secl train`"
            raise InputError("--set", rule=rule, got=assignment, cure=cure)
    return override(RunConfig(), assignments).data.spacing_from
