# SPDX-License-Identifier: Apache-2.0
"""The command `secl`: demo, train, evaluate, predict, export, calibrate, suggest, check, doctor, report, study.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secl_models.command.arguments import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    LogFormatOption,
    OverwriteOption,
    QuietOption,
    SetOption,
    SpacingOption,
    configure,
    data_and_split,
    spacing_from,
)
from secl_models.command.cli_calibrate import calibrate
from secl_models.command.cli_export import export
from secl_models.command.cli_study import study_app
from secl_models.command.cli_suggest import suggest
from secl_models.command.errors_to_exit import (
    BAD_INPUT,
    MARKUP,
    Group,
    complain,
    first_process,
    how_to_go_on,
    progress_bar,
    speak,
    terminable,
)
from secl_models.options.events import tell
from secl_models.options.methods import DEFAULT, METHODS
from secl_models.options.parts import CHOICES, NONE
from secl_models.options.terminal import print_table

if TYPE_CHECKING:
    from secl_models.data.cases import Case, DataSet
    from secl_models.data.check import Fault
    from secl_models.data.splits import Split
    from secl_models.data.volumes import Volume
    from secl_models.train.run import Load

SHOWN_FAULTS = 20

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    help="Segment medical images from few labels and many unlabelled images.",
    epilog="Try it at once: `secl demo --out demo_run`",
)
app.add_typer(study_app, name="study")


def main() -> None:
    """Run the command line with the arguments of the process."""
    app(prog_name="secl")


@app.command(epilog="Example: `secl demo --out demo_run`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("demo_run"),
    seed: Annotated[int, typer.Option(min=0, help="Draws phantom, labels and training.")] = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Make a small phantom, train labels-only and secl+ on it, evaluate, predict, and write a report."""
    speak(log_format, quiet)
    from secl_models.command.demo import run_demo

    run_demo(out, overwrite=overwrite, seed=seed)


@app.command(epilog="Example: `secl train --data DIR --labeled 4 --out runs/x`")
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    labeled: Annotated[int | None, typer.Option(help="Patients whose labels are used; default: the preset's.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(METHODS)}; default: {DEFAULT}."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Name or yaml file; default: the data folder's, else `default`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random; default: the preset's, 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: the preset's.")] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Stop at this step, with the schedules of --steps; a later --resume goes on."),
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps that a kill can lose at most.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; default: the preset's, auto.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from, by name and shape: a .pt, .pth or .safetensors file.")
    ] = None,
    split_of: Annotated[
        Path | None,
        typer.Option(help="An earlier run: its validation, test and labelled patients stay, others join these."),
    ] = None,
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: OverwriteOption = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show at the end where the time of a step went.")] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Train on a data set of which few patients are labelled; `torchrun -m secl_models train` uses several GPUs."""
    speak(log_format, quiet)
    given = {
        "labeled": labeled, "seed": seed, "train.method": method, "train.steps": steps, "train.device": device,
        "train.checkpoint_every": checkpoint_every, "network.init": None if init is None else json.dumps(str(init)),
    }  # fmt: skip
    chosen = [f"{key}={value}" for key, value in given.items() if value is not None]
    config = configure(preset, data, [*(set_ or []), *chosen])
    data_set, split = data_and_split(data, config, split_of)

    from secl_models.data.volumes import load_volumes
    from secl_models.train.run import train as run

    summary = run(
        config, data_set, split, out, resume=resume, overwrite=overwrite, max_steps=max_steps, profile=profile,
        load=_checking(split) if first_process() else load_volumes,
    )  # fmt: skip
    if not first_process():
        return
    best = "" if summary.best_dice is None else f", best validation Dice {100 * summary.best_dice:.1f} %"
    typer.echo(f"Trained {summary.steps} steps in {summary.seconds:.0f} s{best}. Everything is in {out}.")
    place = shlex.quote(str(out))
    if summary.steps < config.train.steps:
        typer.echo(f"Stopped at step {summary.steps} of {config.train.steps}. {how_to_go_on('train')}")
        return
    typer.echo("Next:")
    typer.echo(f"  secl evaluate --checkpoint {place} --data {shlex.quote(str(data))}")
    typer.echo(f"  secl predict --checkpoint {place} --input scan.nii.gz --out seg.nii.gz")


def _checking(split: Split) -> Load:
    """Reads what training needs, and checks every other case of the split with it, so that no fault comes later."""
    from secl_models.data.check import ERROR, check_data_set

    def load(data_set: DataSet, needed: Sequence[Case]) -> list[Volume]:
        cases = [*split.labeled, *split.unlabeled, *split.val, *split.test]
        wanted = set(needed)
        volumes: list[Volume] = []

        def keep(volume: Volume) -> None:
            if volume.case in wanted:
                volumes.append(volume)

        with progress_bar(f"checking {len(cases)} cases") as progress:
            faults = check_data_set(data_set, cases, progress, keep)
        errors = [fault for fault in faults if fault.severity == ERROR]
        if errors:
            _show_faults(errors)
            raise typer.Exit(BAD_INPUT)
        return volumes

    return load


def _show_faults(faults: Sequence[Fault]) -> None:
    for fault in faults[:SHOWN_FAULTS]:
        sentence = f"{fault.severity}: {fault.file}: {fault.rule}; got {fault.got}. Cure: {fault.cure}."
        tell("fault", sentence, level=logging.WARNING, **asdict(fault))
    if len(faults) > SHOWN_FAULTS:
        tell("fault", f"and {len(faults) - SHOWN_FAULTS} more", level=logging.WARNING)


@app.command(epilog="Example: `secl evaluate --checkpoint runs/x --data DIR --baseline runs/labels_only`")
def evaluate(
    checkpoint: CheckpointOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="test, or val (the list that chose `best`).")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and report; default: the run folder.")] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="An evaluated run folder to show beside it; may be repeated.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    device: DeviceOption = "auto",
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Score a run on its own test patients: Dice, HD95 and ASSD per structure, last and best checkpoint.

    Surface: voxels with a face neighbour outside the structure. HD95: the larger of the two directed 95th percentiles.
    ASSD: mean of both directions pooled. In mm, or in voxels where the files store no spacing. A structure in only
    one of prediction and truth counts as Dice 0 and as a distance of the image diagonal; in neither, it is left out;
    both are counted. Mean and SD are over patients. A checkpoint evaluated alone leaves the JSON of the pair as it is.
    `last-largest` are the same predictions after what `secl predict --largest-component auto` does.
    """
    speak(log_format, quiet)
    from secl_models.data.layouts import read_data_set
    from secl_models.inference.evaluate import evaluate as score
    from secl_models.inference.evaluations import evaluation_table

    data_set = read_data_set(data, spacing_from(set_))
    results = score(checkpoint, data_set, split=split, out=out, device=device)
    print_table(evaluation_table(results))
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    table = (out or folder) / f"evaluation_{split}_{results[0].checkpoint}.csv"
    typer.echo(f"Per case: {table}\nPer patient: {table.with_name(f'{table.stem}_patients.csv')}")
    if report:
        from secl_models.report.page import write_report

        page = (out or folder) / ("report.html" if split == "test" else f"report_{split}.html")
        write_report([folder, *(baseline or [])], data_set, page, split=split, scores=out)
        typer.echo(f"Report: {page}")


@app.command(epilog="Example: `secl predict --checkpoint runs/x --input scan.nii.gz --out seg.nii.gz`")
def predict(
    checkpoint: CheckpointOption,
    source: Annotated[
        Path,
        typer.Option(
            "--input",
            help="An image (.nii.gz, .nii, .h5), a folder of images, the folder of a DICOM series, a folder of these.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Segmentation to write: .nii.gz, .nii, .seg.nrrd (3D Slicer) or, of a DICOM series, .dcm; a folder "
            "where --input holds several images."
        ),
    ],
    series: Annotated[
        str | None, typer.Option(help="Number, description or UID of the DICOM series, where there are several.")
    ] = None,
    flips: Annotated[
        str, typer.Option(help="Average over flips along these axes, as 0,1; `trained`: those flipped in training.")
    ] = "",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write NAME_probabilities: 4-D float32, background first.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write NAME_uncertainty, the entropy of each voxel in nats, and the Dice to expect; after "
            "`secl calibrate`.",
        ),
    ] = False,
    largest_component: Annotated[
        str,
        typer.Option(
            metavar="|".join(CHOICES),
            help="Keep the largest part, 26-connected (2-D: 8), of `all` structures, or of those that are one part in "
            "every labelled training case: `auto`.",
        ),
    ] = NONE,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Segment images on their own grid; no label is needed.

    An image stored in another orientation than the training images is turned by its affine, its segmentation back.
    DICOM is known by its content; of the patient nothing is repeated anywhere but in a DICOM segmentation.
    Memory: up to 24 bytes per voxel and channel of an image and, a dozen times, the probabilities of one slab (64 MiB
    of 2-D slices, or one 3-D patch deep); `--probabilities` go through a file. A file appears whole or not at all.
    Of a folder, images that cannot be segmented are named at the end, with exit status 2, and the same command later
    goes on with what is missing.
    """
    speak(log_format, quiet)
    from secl_models.inference.predict import predict as run

    with terminable(), progress_bar("segmenting", each=True) as progress:
        found = run(
            checkpoint, source, out, overwrite=overwrite, device=device, flips=flips, probabilities=probabilities,
            largest_component=largest_component, spacing_from=spacing_from(set_), series=series,
            uncertainty=uncertainty, progress=progress,
        )  # fmt: skip
    count = len(found.written)
    kept = f"; {len(found.kept)} were there and are kept" if found.kept else ""
    typer.echo(f"Wrote {found.written[0] if count == 1 else f'{count} segmentations to {out}'}{kept}")
    if found.failures:
        complain(f"{len(found.failures)} of {count + len(found.kept) + len(found.failures)} images were not segmented")
        for failure in found.failures:
            complain(str(failure), what=failure.what, rule=failure.rule, got=failure.got, cure=failure.cure)
        raise typer.Exit(BAD_INPUT)


app.command(epilog="Example: `secl export --checkpoint runs/x --out exported`")(export)
app.command(epilog="Example: `secl calibrate --checkpoint runs/x --data DIR`")(calibrate)
app.command(epilog="Example: `secl suggest --checkpoint runs/x --data DIR --count 2`")(suggest)


@app.command(epilog="Example: `secl check --data DIR`")
def check(
    data: DataOption,
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Name every fault of a data set with its file; the exit status is 2 where there is an error."""
    speak(log_format, quiet)
    from secl_models.data.check import ERROR, check_data_set
    from secl_models.data.extents import Extents
    from secl_models.data.layouts import read_data_set
    from secl_models.data.partial_labels import left_out
    from secl_models.data.patients import grouping

    data_set = read_data_set(data, spacing_from(set_))
    with progress_bar(f"checking {len(data_set.cases)} cases") as progress:
        faults = check_data_set(data_set, progress=progress, keep=(extents := Extents()).note)
    _show_faults(faults)
    errors = sum(fault.severity == ERROR for fault in faults)
    labels = sum(case.label is not None for case in data_set.cases)
    names = ", ".join(f"{value} {name}" for value, name in data_set.classes.items())
    unsaid = "" if data_set.ignored is None else f"; {data_set.ignored} is ignored"
    typer.echo(f"{data_set.layout} layout, {len(data_set.cases)} cases, {labels} with label; classes: {names}{unsaid}")
    for line in filter(None, (extents.sentence(), left_out(data_set), grouping(data_set))):
        typer.echo(line)
    typer.echo(f"{errors} errors, {len(faults) - errors} warnings")
    if errors:
        raise typer.Exit(BAD_INPUT)


@app.command(epilog="Example: `secl report runs/a runs/b --out comparison.html`")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, of any data, methods and seeds.")],
    out: Annotated[Path, typer.Option(help="HTML file; one that this command wrote is replaced.")],
    split: Annotated[str, typer.Option(help="Scores of `test` or `val` patients.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="last, best, last-largest or best-largest.")] = "last",
    csv: Annotated[
        Path | None, typer.Option(help="Scores as a table too; the differences go to NAME_pairs.csv beside it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Their data set: adds pictures of the worst, median and best case.")
    ] = None,
    set_: SpacingOption = None,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Compare any runs in one page: scores, differences paired by case with 95 % intervals, curves.

    Runs with equal options are one method, whatever their seeds. Two methods are paired on the cases that
    `secl evaluate` scored for both; the patient is the unit of every interval. A run without scores, or of other data,
    is listed and said to be so.
    """
    speak(log_format, quiet)
    from secl_models.data.layouts import read_data_set
    from secl_models.inference.evaluate import require_scored
    from secl_models.report.comparison import write_comparison

    require_scored(split)
    data_set = None if data is None else read_data_set(data, spacing_from(set_))
    for file in write_comparison(runs, out, split=split, checkpoint=checkpoint, csv=csv, data=data_set):
        typer.echo(f"Wrote {file}")


@app.command(epilog="Example: `secl doctor`")
def doctor() -> None:
    """Show versions, processor, GPUs and backends, what is missing, and how to get it."""
    from secl_models.command.doctor import examine, findings_table

    print_table(findings_table(examine()))
