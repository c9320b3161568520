# SPDX-License-Identifier: Apache-2.0
"""The command `secl export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from secl_models.command.arguments import (
    CheckpointOption,
    LogFormatOption,
    OverwriteOption,
    QuietOption,
    SpacingOption,
    spacing_from,
)
from secl_models.command.errors_to_exit import speak, terminable
from secl_models.options.parts import CHOICES, NONE


def export(
    checkpoint: CheckpointOption,
    out: Annotated[Path, typer.Option(help="Folder to write: model.onnx, model.json, run.py.")],
    flips: Annotated[str, typer.Option(help="As for predict: axes as 0,1, or `trained`.")] = "",
    largest_component: Annotated[str, typer.Option(metavar="|".join(CHOICES), help="As for predict.")] = NONE,
    program: Annotated[
        bool, typer.Option("--torch", help="Also write model.pt2, for `torch.export.load`: images to logits.")
    ] = False,
    overwrite: OverwriteOption = False,
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Write a trained network as ONNX, with a runner that needs neither torch nor secl.

    model.onnx maps windows [batch, channels, *patch] to logits; model.json says what to do before and after, and run.py
    does it on onnxruntime, numpy, scipy and nibabel: `python run.py FOLDER scan.nii.gz seg.nii.gz` gives what
    `secl predict` gives. The file is checked against torch before it takes its place. Needs `secl[export]`.
    """
    speak(log_format, quiet)
    from secl_models.inference.export import export as run

    with terminable():
        found = run(
            checkpoint, out, overwrite=overwrite, flips=flips, largest_component=largest_component,
            spacing_from=spacing_from(set_), program=program,
        )  # fmt: skip
    sizes = ", ".join(f"{name} {(out / name).stat().st_size / 1e6:.1f} MB" for name in found.files)
    place = shlex.quote(str(out))
    typer.echo(f"Wrote {out}: {sizes}\nNext, where onnxruntime, numpy, scipy and nibabel are:")
    typer.echo(f"  python {place}/run.py {place} scan.nii.gz seg.nii.gz")
