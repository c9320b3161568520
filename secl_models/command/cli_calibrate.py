# SPDX-License-Identifier: Apache-2.0
"""The command `secl calibrate`; everything heavy is imported inside it."""

from __future__ import annotations

import typer

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


def calibrate(
    checkpoint: CheckpointOption,
    data: DataOption,
    device: DeviceOption = "auto",
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Find how far the probabilities of a run can be believed.

    Fits a temperature on the run's validation patients and tries it on its test patients: the error of the
    probabilities before and after, and how well they foresee Dice. `secl predict --uncertainty` needs it, and the
    report of a later `secl evaluate` shows it.
    """
    speak(log_format, quiet)
    from secl_models.data.layouts import read_data_set
    from secl_models.inference.calibrate import calibrate as fit
    from secl_models.method.device import choose_device

    data_set = read_data_set(data, spacing_from(set_))
    with progress_bar("calibrating") as progress:
        found, file = fit(checkpoint, data_set, device=choose_device(device), progress=progress)
    typer.echo(f"Temperature {found.temperature:.2f}")
    for name, part in (("validation", found.val), ("test", found.test)):
        if not part.cases:
            typer.echo(f"No {name} case: no calibration error")
            continue
        errors = f"{100 * part.before.error:.1f} to {100 * part.after.error:.1f} %"
        typer.echo(f"Calibration error near the structures, {part.cases} {name} cases: {errors}")
    if found.dice_error is not None:
        foreseen = "-" if found.correlation is None else f"{found.correlation:.2f}"
        typer.echo(
            f"Expected and true Dice: correlation {foreseen}, {100 * found.dice_error:.1f} points apart on average"
        )
    typer.echo(f"Wrote {file}")
