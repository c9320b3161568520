# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secl_models.command.errors_to_exit import first_process, say

if TYPE_CHECKING:
    from secl_models.data.cases import DataSet
    from secl_models.data.splits import Split
    from secl_models.options.schema import RunConfig

DataOption = Annotated[Path, typer.Option("--data", help="Folder in Decathlon, nnU-Net or SSL4MIS layout, or a CSV.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the preset; may be repeated."),
]
CheckpointOption = Annotated[Path, typer.Option(help="Run folder, or a checkpoint file in it.")]


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
        if first_process():
            say(f"Preset: {preset} (choose another with --preset).")
    config = override(load_preset(preset), assignments)
    choose_device(config.train.device)
    return config


def data_and_split(data: Path, config: RunConfig) -> tuple[DataSet, Split]:
    """Read a data set and draw who is labelled.

    Args:
        data: Folder or CSV.
        config: Says how many cases are labelled, and the seed.
    """
    from secl_models.data.layouts import read_data_set
    from secl_models.data.splits import make_split

    data_set = read_data_set(data)
    return data_set, make_split(data_set, config.labeled, config.seed)
