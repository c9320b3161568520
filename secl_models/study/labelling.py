# SPDX-License-Identifier: Apache-2.0
"""Whether it pays to label the patients that a run suggests: beside as many at random, in paired draws.

In each draw a method is trained with a few labelled patients, then again with some more: once with others at random,
and once with those that the first run suggests, in each way that it can. All runs of a draw begin with the same weights
and are scored on the same patients; finished runs are rows of a CSV file and are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.data.cases import DataSet
from secl_models.data.folders import held, remove_written
from secl_models.data.splits import drawn_order, labelable, split_with
from secl_models.data.tables import write_table
from secl_models.inference.evaluate import evaluate
from secl_models.inference.metrics import MEAN
from secl_models.inference.suggest import WAYS, Candidate, Committee, candidates, choose
from secl_models.method.checkpoint import LAST
from secl_models.method.device import choose_device
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig
from secl_models.study.labelling_rows import FIRST, RANDOM, Draw, LabellingRow, read_labelling
from secl_models.study.rows import rounded, structure_cell
from secl_models.train.run import train
from secl_models.train.run_folder import SUMMARY, RunSummary


@dataclass(frozen=True)
class Labelling:
    """A draw to be run.

    Attributes:
        draw: Its key.
        config: All options of its runs; the method and the seed are those of the draw, `labeled` the first patients.
        more: Patients that are labelled then.
        ways: In which they are suggested, of `inference.suggest.WAYS`.
    """

    draw: Draw
    config: RunConfig
    more: int
    ways: tuple[str, ...] = WAYS


def require_patients(data: DataSet, first: int, more: int) -> None:
    """Refuse a study for which there are too few patients with a label to choose from.

    Args:
        data: The data set.
        first: Patients labelled from the start.
        more: Patients labelled then.

    Raises:
        InputError: There are.
    """
    available = len(labelable(data))
    if first < 1 or more < 1 or first + more >= available:
        raise InputError(
            "--labeled and --add",
            rule=f"at least one each, and together fewer than the {available} training patients with a label",
            got=f"{first} and {more}",
            cure="ask for fewer",
        )


def run_labelling(
    planned: Sequence[Labelling], data: DataSet, out: Path, file: Path, *, report: Callable[[str], None] = print
) -> list[LabellingRow]:
    """Run what the CSV file does not hold yet.

    Args:
        planned: The draws.
        data: The data set; what is drawn and suggested are its training patients with a label.
        out: Folder of the runs, which are removed once all of a draw are rows.
        file: CSV file, appended to after every run.
        report: Called with a line after every run.

    Returns:
        All rows of the file.

    Raises:
        InputError: A run was refused, or another study writes to the folder or file.
    """
    with held(out, "secl study suggest"), held(file.parent, "secl study suggest", file=file.name):
        for number, each in enumerate(planned, start=1):
            for row in _missing_rows(each, data, out, read_labelling(file)):
                write_table(file, LabellingRow, [*read_labelling(file), row])
                report(f"[draw {number} of {len(planned)}] {row.method}, seed {row.seed}, {_told(row)}")
            for choice in (FIRST, RANDOM, *each.ways):
                remove_written(_folder(each, out, choice), whole=True)
        return read_labelling(file)


def _told(row: LabellingRow) -> str:
    return f"{row.choice} ({row.patients.replace(';', ', ')}): Dice {row.dice:.1f} % in {row.seconds:.0f} s"


def _missing_rows(
    labelling: Labelling, data: DataSet, out: Path, rows: Sequence[LabellingRow]
) -> Iterator[LabellingRow]:
    """The rows of a draw that are not among those of the file, as their runs end."""
    finished = {row.choice: row for row in rows if row.draw == labelling.draw}
    first, more = labelling.config.labeled, labelling.more
    order = drawn_order(labelable(data), labelling.draw.seed)
    start = order[:first]
    for choice, patients in ((FIRST, start), (RANDOM, order[: first + more])):
        if choice not in finished:
            finished[choice] = _run(labelling, choice, patients, data, out)
            yield finished[choice]
    ways = [way for way in labelling.ways if way not in finished]
    if not ways:
        return
    run = _folder(labelling, out, FIRST)
    if not (run / SUMMARY).is_file():  # it was removed since
        _train(labelling, FIRST, start, data, out)
    found = _candidates(run, data, order[first:], labelling)
    for way in ways:
        chosen = choose(found, more, way, labelling.draw.seed)
        patients = [*start, *(candidate.patient for candidate in chosen if candidate.suggested)]
        alike = (row for row in finished.values() if set(row.patients.split(";")) == set(patients))
        same = next(alike, None)  # the order of patients changes no run
        finished[way] = replace(same, choice=way) if same else _run(labelling, way, patients, data, out)
        yield finished[way]


def _candidates(run: Path, data: DataSet, among: Collection[str], labelling: Labelling) -> list[Candidate]:
    """The patients of whom the first run of a draw suggests some."""
    committee = Committee.of(run / LAST, choose_device(labelling.config.train.device))
    return candidates(run, data, labelling.more, committee=committee, among=among)


def _run(labelling: Labelling, choice: str, patients: Sequence[str], data: DataSet, out: Path) -> LabellingRow:
    """Train with these patients labelled, and score."""
    summary = _train(labelling, choice, patients, data, out)
    result = evaluate(_folder(labelling, out, choice) / LAST, data, progress=False)[0]
    means = {score.structure: score for score in result.summary}
    total = means.pop(MEAN)
    return LabellingRow(
        *labelling.draw,
        choice=choice,
        patients=";".join(patients),
        dice=rounded(100 * total.dice[0]),
        hd95=rounded(total.hd95[0]),
        assd=rounded(total.assd[0]),
        structures=structure_cell((name, score.dice[0]) for name, score in means.items()),
        steps=summary.steps,
        seconds=round(summary.seconds, 2),
        machine=summary.machine,
        commit=summary.commit or "",
    )


def _train(labelling: Labelling, choice: str, patients: Sequence[str], data: DataSet, out: Path) -> RunSummary:
    """Train with these patients labelled; an unfinished run of the same options goes on."""
    config = replace(labelling.config, labeled=len(patients))
    folder = _folder(labelling, out, choice)
    return train(config, data, split_with(data, patients), folder, resume=True, progress=False)


def _folder(labelling: Labelling, out: Path, choice: str) -> Path:
    return out / f"{labelling.draw.data}-{labelling.draw.method}-seed{labelling.draw.seed}-{choice}"
