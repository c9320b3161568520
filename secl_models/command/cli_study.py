# SPDX-License-Identifier: Apache-2.0
"""The commands under `secl study`; everything heavy is imported inside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from secl_models.command.arguments import (
    DataOption,
    LogFormatOption,
    QuietOption,
    SetOption,
    SpacingOption,
    configure,
    data_and_split,
    spacing_from,
)
from secl_models.command.errors_to_exit import MARKUP, progress_bar, speak
from secl_models.options.errors import InputError
from secl_models.options.methods import METHODS
from secl_models.options.terminal import print_table

if TYPE_CHECKING:
    from secl_models.options.schema import RunConfig
    from secl_models.study.rows import Row

STUDIED = ",".join(name for name, method in METHODS.items() if method.studied)
study_app = typer.Typer(help="Compare methods over seeds.", rich_markup_mode=MARKUP)


@study_app.callback(
    invoke_without_command=True,
    epilog="Example: `secl study --data DIR --labeled 4 --methods supervised,secl --seeds 0,1,2 --out study`",
)
def study(
    ctx: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Data set, as for `secl train`.")] = None,
    preset: Annotated[str | None, typer.Option(help="As for `secl train`.")] = None,
    labeled: Annotated[int | None, typer.Option(help="Patients whose labels are used.")] = None,
    methods: Annotated[str, typer.Option(help="The last is timed against.")] = STUDIED,
    seeds: Annotated[str, typer.Option(help="Numbers between commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("study"),
    csv: Annotated[Path | None, typer.Option(help="Results, appended to; default: study.csv in --out.")] = None,
    warm_start: Annotated[
        int | None,
        typer.Option(min=0, help="Labels-only steps, taken once a seed, that all methods go on from; default: preset."),
    ] = None,
    split: Annotated[str, typer.Option(help="Patients scored: `test`, or `val` to choose settings by.")] = "test",
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, one thread each if several.")] = 1,
    set_: SetOption = None,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep run folders (warm starts are kept anyway).")
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Compare methods over seeds at equal steps and at equal wall time.

    May be stopped at any time: called again, it repeats no finished row and goes on with each run from its checkpoint.
    """
    speak(log_format, quiet)
    if ctx.invoked_subcommand is not None:
        return
    if data is None:
        raise InputError("--data", rule="a data set to study", got="nothing", cure="add --data DIR")
    from secl_models.data.check import require_sound
    from secl_models.inference.evaluate import require_scored
    from secl_models.study.jobs import Job
    from secl_models.study.rows import curves_file
    from secl_models.study.runs import run_study
    from secl_models.study.table import as_table

    require_scored(split)
    config = configure(preset, data, set_ or [])
    options = (*(set_ or ()), *_warm_start(warm_start, config))
    config = replace(config, labeled=labeled if labeled is not None else config.labeled)
    data_set, lists = data_and_split(data, config)
    whole = [*lists.labeled, *lists.unlabeled, *lists.val, *lists.test]
    with progress_bar(f"checking {len(whole)} cases") as progress:
        require_sound(data_set, whole, progress)
    names = tuple(case.name for case in data_set.cases)
    planned = [
        Job(data, preset or config.preset, config.labeled, method, seed, overrides=options, split=split, cases=names)
        for seed in _numbers(seeds)
        for method in _methods(methods)
    ]
    file = csv or out / "study.csv"
    rows = run_study(planned, out, file, workers=jobs, keep_runs=keep_runs, report=typer.echo)
    print_table(as_table(rows, width=Console().width))
    typer.echo(f"Rows: {file}\nCurves: {curves_file(file)}")


def _warm_start(steps: int | None, config: RunConfig) -> list[str]:
    """The option that takes so many labels-only steps, as a share of the run."""
    if steps is None:
        return []
    if steps > config.train.steps:
        rule = f"at most train.steps, {config.train.steps}"
        raise InputError("--warm-start", rule=rule, got=steps, cure="write fewer, or raise train.steps")
    return [f"train.warm_start={steps / config.train.steps}"]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError("--seeds", rule="whole numbers between commas", got=text, cure="write 0,1,2") from error


def _methods(text: str) -> list[str]:
    named = [part.strip() for part in text.split(",")]
    unknown = [name for name in named if name not in METHODS]
    if unknown:
        cure = f"choose among {', '.join(METHODS)}"
        raise InputError("--methods", rule="known methods between commas", got=", ".join(unknown), cure=cure)
    return named


def _read(file: Path) -> list[Row]:
    from secl_models.study.rows import read_rows

    rows = read_rows(file)
    if not rows:
        got = "no row" if file.is_file() else "no such file"
        raise InputError(file, rule="rows of a study", got=got, cure="name the CSV that `secl study` wrote")
    return rows


@study_app.command("table", epilog="Example: `secl study table study/study.csv --markdown`")
def table(
    file: Annotated[Path, typer.Argument(help="CSV file of a study.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    checkpoint: Annotated[str, typer.Option(help="last, best, last-largest or best-largest.")] = "last",
) -> None:
    """Print the comparison table of a finished or running study."""
    from secl_models.study.table import as_markdown, as_table

    found = _read(file)
    rows = [row for row in found if row.checkpoint == checkpoint]
    if not rows:
        got = f"rows of {', '.join(sorted({row.checkpoint for row in found}))} alone"
        raise InputError(file, rule=f"rows of checkpoint {checkpoint}", got=got, cure="name another --checkpoint")
    if markdown:
        typer.echo(as_markdown(rows, checkpoint), nl=False)
    else:
        print_table(as_table(rows, checkpoint, Console().width))


@study_app.command("figure", epilog="Example: `secl study figure study/study.csv --out study`")
def figure(
    file: Annotated[Path, typer.Argument(help="CSV file of a study; its curves lie beside it.")],
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("."),
) -> None:
    """Draw the gain over labels-only, accuracy per minute of training, and the quality of the pseudo-labels."""
    from secl_models.study.pictures import draw_study
    from secl_models.study.rows import curves_file, read_points

    for picture in draw_study(_read(file), read_points(curves_file(file)), out):
        typer.echo(f"Wrote {picture}")


@study_app.command(
    "cases",
    epilog="Example: `secl study cases study/x-4-supervised-steps-seed0 study/x-4-secl+-steps-seed0 --data DIR`",
)
def cases(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that share a split; the last chooses the cases.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("."),
    set_: SpacingOption = None,
) -> None:
    """Draw best, median and worst test case under every run, and the plane of their feature rows by class."""
    from secl_models.data.layouts import read_data_set
    from secl_models.study.cases import draw_cases

    for picture in draw_cases(runs, read_data_set(data, spacing_from(set_)), out):
        typer.echo(f"Wrote {picture}")


@study_app.command("cost", epilog="Example: `secl study cost --data DIR --methods supervised,copy-paste,secl+`")
def cost(
    data: DataOption,
    preset: Annotated[str | None, typer.Option(help="As for `secl train`.")] = None,
    labeled: Annotated[int | None, typer.Option(help="Patients whose labels are used.")] = None,
    methods: Annotated[str, typer.Option(help="The first is what the others are compared with.")] = STUDIED,
    steps: Annotated[int, typer.Option(min=2, help="Timed in each of four rounds.")] = 10,
    set_: SetOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the milliseconds there.")] = None,
) -> None:
    """Time the stages of a training step of every method: what the teacher costs, and what the loss."""
    from secl_models.data.folders import refuse_writing_over
    from secl_models.method.device import choose_device
    from secl_models.study.cost import cost_markdown, cost_table, measure_cost, write_cost

    config = configure(preset, data, set_ or [])
    config = replace(config, labeled=labeled if labeled is not None else config.labeled)
    data_set, split = data_and_split(data, config)
    if csv is not None:
        refuse_writing_over(data_set.files(), csv)
    costs = measure_cost(config, data_set, split, _methods(methods), steps)
    if csv is not None:
        write_cost(csv, costs, choose_device(config.train.device))
    if markdown:
        typer.echo(cost_markdown(costs), nl=False)
    else:
        print_table(cost_table(costs))


@study_app.command(
    "suggest",
    epilog="Example: `secl study suggest --data DIR --labeled 1 --add 2 --methods supervised,secl+ --seeds 0,1,2`",
)
def suggest(
    data: DataOption,
    preset: Annotated[str | None, typer.Option(help="As for `secl train`.")] = None,
    labeled: Annotated[int, typer.Option(help="Patients labelled from the start.")] = 1,
    add: Annotated[int, typer.Option(help="Patients labelled then: suggested ones, or others at random.")] = 2,
    by: Annotated[str, typer.Option(help="As for `secl suggest`, between commas.")] = "typical,doubt",
    methods: Annotated[str, typer.Option(help="Each is trained in every draw.")] = "supervised,secl+",
    seeds: Annotated[str, typer.Option(help="Draws: numbers between commas.")] = "0,1,2,3,4,5,6,7",
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("study"),
    csv: Annotated[Path | None, typer.Option(help="Results, appended to; default: suggest.csv in --out.")] = None,
    set_: SetOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Measure whether patients that `secl suggest` names are better ones to label than patients at random.

    The runs of a draw: with a few labelled patients, with those and others at random, with those and the ones that
    the first run suggests. May be stopped at any time: called again, it goes on where it was.
    """
    speak(log_format, quiet)
    from secl_models.inference.suggest import require_way
    from secl_models.study.labelling import Labelling, require_patients, run_labelling
    from secl_models.study.labelling_rows import Draw
    from secl_models.study.labelling_table import labelling_markdown, labelling_table

    config = replace(configure(preset, data, set_ or []), labeled=labeled)
    data_set, _ = data_and_split(data, config)
    require_patients(data_set, labeled, add)
    ways = tuple(part.strip() for part in by.split(","))
    for way in ways:
        require_way(way)
    options = " ".join((preset or config.preset, f"labeled={labeled}", f"add={add}", *(set_ or ())))
    planned = [
        Labelling(
            Draw(data.resolve().name, method, seed, options),
            replace(config, seed=seed, train=replace(config.train, method=method)),
            add,
            ways,
        )
        for seed in _numbers(seeds)
        for method in _methods(methods)
    ]
    file = csv or out / "suggest.csv"
    rows = run_labelling(planned, data_set, out, file, report=typer.echo)
    if markdown:
        typer.echo(labelling_markdown(rows), nl=False)
    else:
        print_table(labelling_table(rows))
    typer.echo(f"Rows: {file}")
