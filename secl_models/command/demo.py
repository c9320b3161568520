# SPDX-License-Identifier: Apache-2.0
"""The whole path on a phantom that is made on the spot: train twice, evaluate, predict one file, report."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secl_models.data.cases import DataSet
from secl_models.data.folders import held, note_written, refuse_unlisted, remove_written, strangers
from secl_models.data.formats import file_stem
from secl_models.data.phantom import write_phantom
from secl_models.data.splits import make_split
from secl_models.inference.evaluate import evaluate
from secl_models.inference.evaluations import Evaluation, format_mean
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from secl_models.options.methods import BASELINE, DEFAULT
from secl_models.options.schema import RunConfig, load_preset
from secl_models.options.terminal import print_table
from secl_models.report.page import write_report
from secl_models.train.run import train
from secl_models.train.run_folder import RunSummary

COMPARED = (BASELINE, DEFAULT)
WRITTEN = ("phantom", *COMPARED, "segmentation", "report.html")


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    seed: int = 0,
    config: RunConfig | None = None,
    console: Console | None = None,
) -> Path:
    """Make the phantom, train labels-only and secl+, evaluate both, segment an unlabelled file, report.

    Args:
        out: Folder of the demo.
        overwrite: Replace an earlier demo there.
        seed: Draws phantom, labelled patients and training.
        config: Options of both runs; None: the preset `demo`.
        console: Where the table is printed.

    Returns:
        The report.

    Raises:
        InputError: The folder holds an earlier demo and `overwrite` is not set, or files that no demo wrote.
    """
    console = console or Console()
    with held(out, "secl demo"):
        _clear(out, overwrite)
        return _run_all(out, config or load_preset("demo"), seed, console)


def _run_all(out: Path, config: RunConfig, seed: int, console: Console) -> Path:
    begin = time.perf_counter()
    data = write_phantom(out / "phantom", seed=seed)
    config = replace(config, seed=seed)
    place = out / "phantom"
    console.print(f"Phantom: {len(data.cases)} images in {place}, {config.labeled} labelled to train on.", markup=False)
    runs = {method: _run(method, config, data, out) for method in COMPARED}
    scan = next(case.image[0] for case in data.cases if case.label is None)
    segmentation = out / "segmentation" / f"{file_stem(scan)}.nii.gz"
    note_written(segmentation.parent, segmentation.name)
    predict(out / DEFAULT, scan, segmentation)
    report = write_report([out / method for method in reversed(COMPARED)], data, out / "report.html")
    print_table(_table(runs), console)
    console.print(
        f"{time.perf_counter() - begin:.0f} s in all. Segmentation of {scan.name}: {segmentation}", markup=False
    )
    console.print(f"Report: {report}", markup=False)
    return report


def _clear(out: Path, overwrite: bool) -> None:
    """Remove what an earlier demo wrote; what it did not write is refused before anything is removed."""
    there = [out / name for name in WRITTEN if (out / name).exists()]
    if out.is_file() or (there and not overwrite):
        got = "a file" if out.is_file() else f"a folder with {', '.join(path.name for path in there)}"
        raise InputError(out, rule="a new folder for the demo", got=got, cure="name another --out, or add --overwrite")
    folders = [path for path in there if path.is_dir()]
    refuse_unlisted(out, [path.name for path in there if path not in folders])
    for folder in folders:
        refuse_unlisted(folder, strangers(folder))
    for folder in folders:
        with held(folder, "secl demo"):
            remove_written(folder)
        with suppress(OSError):  # something came into it
            folder.rmdir()
    remove_written(out)


def _run(method: str, config: RunConfig, data: DataSet, out: Path) -> tuple[RunSummary, Evaluation]:
    config = replace(config, train=replace(config.train, method=method))
    split = make_split(data, config.labeled, config.seed)
    summary = train(config, data, split, out / method)
    return summary, evaluate(out / method, data)[0]


def _table(runs: dict[str, tuple[RunSummary, Evaluation]]) -> Table:
    table = Table(title="Dice % on the test patients, mean (SD)", title_justify="left")
    names = [row.structure for row in next(iter(runs.values()))[1].summary]
    for name in ("method", *names, "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, (summary, evaluation) in runs.items():
        dice = [format_mean(row.dice, 100) for row in evaluation.summary]
        table.add_row(method, *dice, f"{summary.seconds:.0f}")
    return table
