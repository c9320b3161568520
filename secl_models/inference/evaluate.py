# SPDX-License-Identifier: Apache-2.0
"""Scores of a trained run on its own validation or test patients: CSV by case and patient, summary JSON, table.

The cases come from the split stored beside the run, so nothing can be scored that was trained on.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from secl_models.data.cases import Case, DataSet, as_trained
from secl_models.data.files import write_text
from secl_models.data.splits import load_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.metrics import (
    DEFINITIONS,
    MEAN,
    CaseScores,
    StructureScore,
    StructureSummary,
    per_patient,
    score_case,
    summarise,
)
from secl_models.inference.windows import segment_volume
from secl_models.method.checkpoint import BEST, LAST, LoadedModel, load, load_model
from secl_models.method.device import choose_device
from secl_models.options.errors import InputError

PATIENT_COLUMNS = ("patient", "structure", "dice", "hd95", "assd", "unit", "cases", "missed", "spurious", "absent")
COLUMNS = ("patient", "case", "structure", "dice", "hd95", "assd", "unit", "state")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint on one list of cases."""

    checkpoint: str
    split: str
    cases: tuple[CaseScores, ...]
    seconds: float
    step: int | None = None  # optimiser steps of the checkpoint; None where it was read from CSV

    @property
    def summary(self) -> list[StructureSummary]:
        """Mean and standard deviation over patients, per structure; the last row is over all structures."""
        return summarise(self.cases)


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoint files that a run folder or a file stands for.

    Args:
        path: A run folder, or a checkpoint file.

    Returns:
        The file itself, or `last.pt` and `best.pt` of the folder, those that exist.

    Raises:
        InputError: If nothing is there.
    """
    if path.is_file():
        return [path]
    files = [path / name for name in (LAST, BEST) if (path / name).is_file()]
    if not files:
        raise InputError(
            path,
            rule="a checkpoint file, or a run folder that holds last.pt",
            got="a folder without last.pt" if path.is_dir() else "nothing at this path",
            cure="name the folder given to `secl train --out`",
        )
    return files


def evaluate(
    path: Path,
    data: DataSet,
    *,
    split: str = "test",
    out: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[Evaluation]:
    """Predict and score every case of one list, for the last and the best checkpoint of a run.

    Args:
        path: A run folder, or one checkpoint file inside it.
        data: The data set that the run was trained on.
        split: `test`, or `val` (the list that chose `best`).
        out: Where the CSV and JSON files go; None: the run folder.
        device: Where the network runs: auto, cpu, cuda, or cuda: and a number.
        progress: Show a progress bar on the terminal.

    Returns:
        One evaluation per checkpoint, `last` first.

    Raises:
        InputError: If the run has no such list, the list is empty, a patient on it was trained on or chose the
            checkpoint, or the classes of checkpoint and data set differ.
    """
    target = choose_device(device)
    files = find_checkpoints(path)
    run = files[0].parent
    cases = evaluated_cases(run, data, split)
    results: dict[int, Evaluation] = {}
    named = []
    for file in files:
        model = load_model(file)
        _require_classes(model, data, file)
        _require_unseen(file, cases, data, split)
        model.network.to(target)
        if model.step not in results:  # where the last step is the best one, both files hold one network
            found = _evaluate_one(model, file.stem, data, cases, split, progress)
            results[model.step] = replace(found, step=model.step)
        named.append(replace(results[model.step], checkpoint=file.stem))
    save_evaluations(named, out or run, pair=path.is_dir())
    return named


def evaluated_cases(run: Path, data: DataSet, split: str) -> tuple[Case, ...]:
    """The labelled cases of one list of a run's own split.

    Args:
        run: Run folder with `split.json`.
        data: The data set that the run was trained on.
        split: `test` or `val`.

    Returns:
        The cases to score.

    Raises:
        InputError: If `split` is another word, the stored split is missing or breaks a rule of `load_split`
            (a patient in two parts, a case without label), or the list is empty.
    """
    if split not in ("test", "val"):
        raise InputError("--split", rule="test or val", got=split, cure="ask for test or val")
    file = run / "split.json"
    if not file.is_file():
        raise InputError(
            file,
            rule="the run folder holds the split it was trained with",
            got="no such file",
            cure="evaluate the folder that `secl train` wrote, or a checkpoint inside it",
        )
    stored = load_split(file, data)
    cases = stored.test if split == "test" else stored.val
    if not cases:
        raise InputError(
            f"{split} list of {file}",
            rule="at least one case",
            got="none",
            cure="add labelled cases to the data set and train again",
        )
    return cases


def _require_classes(model: LoadedModel, data: DataSet, file: Path) -> None:
    if model.classes != data.classes:
        raise InputError(
            file,
            rule="checkpoint and data set have the same classes",
            got=f"{model.classes} and {data.classes}",
            cure="evaluate on the data set that the run was trained on",
        )


def _require_unseen(file: Path, cases: Sequence[Case], data: DataSet, split: str) -> None:
    """No evaluated patient is among those the checkpoint itself says that it learned from or was chosen by."""
    parts: dict[str, list[str]] = load(file).get("cases", {})
    used = ("labeled", "unlabeled", "val") if split == "test" else ("labeled", "unlabeled", "test")
    patient = {case.name: case.patient for case in data.cases}
    seen = {patient.get(name, name): part for part in used for name in parts.get(part, ())}
    for case in cases:
        if case.patient in seen:
            part = seen[case.patient]
            raise InputError(
                file,
                rule=f"no patient of the {split} list trained the checkpoint, chose it, or is on another of its lists",
                got=f"{case.patient}, on the {part} list that the checkpoint was trained with",
                cure="restore the run's split.json, or train again on the split that you want to test",
            )


def _evaluate_one(
    model: LoadedModel, name: str, data: DataSet, cases: Sequence[Case], split: str, progress: bool
) -> Evaluation:
    start = time.perf_counter()
    data = as_trained(data, model.config.data.spacing_from)
    steps = track(
        cases,
        f"{name} on {len(cases)} {split} cases",
        console=Console(stderr=True, quiet=not progress),
        transient=True,
    )
    scores = tuple(score_volume(model, load_volume(case, data)) for case in steps)
    return Evaluation(name, split, scores, time.perf_counter() - start)


def score_volume(model: LoadedModel, volume: Volume) -> CaseScores:
    """Predict one labelled volume and score it.

    Args:
        model: A loaded checkpoint.
        volume: Image and label on the image's own grid.

    Returns:
        Scores of every structure.

    Raises:
        InputError: If the volume has no label.
    """
    if volume.label is None:
        raise InputError(volume.case.name, rule="a case to score has a label", got="none", cure="add one")
    prediction = segment_volume(model.network, model.preprocess, model.config, volume)
    scores = score_case(prediction, volume.label, model.classes, volume.spacing)
    return CaseScores(volume.case.patient, volume.case.name, tuple(scores))


def save_evaluations(results: Sequence[Evaluation], out: Path, *, pair: bool) -> None:
    """Write two CSVs per checkpoint, by case and by patient, and the summaries; older files are replaced whole.

    The summaries of a run's last and best checkpoint stand side by side in `evaluation_<split>.json`; that of a
    checkpoint evaluated alone goes to `evaluation_<split>_<checkpoint>.json` and leaves the pair alone.

    Args:
        results: Evaluations of one run.
        out: Folder; made where missing.
        pair: The results are all checkpoints of a run.
    """
    out.mkdir(parents=True, exist_ok=True)
    summaries: dict[str, dict[str, object]] = {}
    for result in results:
        stem = f"evaluation_{result.split}_{result.checkpoint}"
        write_text(out / f"{stem}.csv", _csv(result.cases))
        write_text(out / f"{stem}_patients.csv", _patients_csv(result.cases))
        name = f"evaluation_{result.split}" if pair else stem
        summaries.setdefault(name, {})[result.checkpoint] = _as_json(result)
    for name, summary in summaries.items():
        text = json.dumps({**summary, "definitions": DEFINITIONS}, indent=2, allow_nan=False)
        write_text(out / f"{name}.json", text)


def load_evaluation(run: Path, split: str = "test", checkpoint: str = "last") -> Evaluation | None:
    """Read back what `evaluate` wrote, or None where this checkpoint was not evaluated.

    Args:
        run: Folder with the CSV file.
        split: `test` or `val`.
        checkpoint: `last` or `best`.

    Returns:
        The evaluation; its seconds are NaN, the CSV does not hold them.
    """
    file = run / f"evaluation_{split}_{checkpoint}.csv"
    if not file.is_file():
        return None
    rows: dict[tuple[str, str], list[StructureScore]] = {}
    with file.open(newline="") as text:
        for row in csv.DictReader(text):
            dice, hd95, assd = (float(row[key]) if row[key] else None for key in ("dice", "hd95", "assd"))
            score = StructureScore(row["structure"], dice, hd95, assd, row["unit"], row["state"])
            rows.setdefault((row["patient"], row["case"]), []).append(score)
    cases = tuple(CaseScores(*key, tuple(scores)) for key, scores in rows.items())
    return Evaluation(checkpoint, split, cases, math.nan)


def evaluation_table(results: Sequence[Evaluation]) -> Table:
    """The summaries of several checkpoints side by side, for the terminal.

    Args:
        results: Evaluations of one run, at least one.

    Returns:
        A rich table: Dice in percent, distances in their unit, mean and SD over patients.
    """
    total = results[0].summary[-1]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    cases = f"{results[0].split} list, {total.patients} patients"
    table.caption = f"mean (SD) over patients, {cases}; cases: M missed, I invented, A absent"
    for name in ("", "structure", "Dice %", f"HD95 {total.unit}", f"ASSD {total.unit}", "M", "I", "A"):
        text = name in ("", "structure")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for result in results:
        for number, row in enumerate(result.summary):
            means = (format_mean(row.dice, 100), format_mean(row.hd95), format_mean(row.assd))
            counts = map(str, (row.missed, row.spurious, row.absent))
            cells = (result.checkpoint if number == 0 else "", row.structure, *means, *counts)
            table.add_row(*map(escape, cells), end_section=row.structure == MEAN)
    return table


def format_mean(value: tuple[float, float], scale: float = 1.0, digits: int = 1) -> str:
    """Write a mean and its standard deviation, a dash where there is none.

    Args:
        value: (mean, SD), either may be NaN.
        scale: Factor on both, 100 for percent.
        digits: Decimals.

    Returns:
        Such as `87.1 (2.3)`.

    Example:
        >>> format_mean((0.8714, 0.023), 100)
        '87.1 (2.3)'
    """
    mean, spread = (f"{number * scale:.{digits}f}" if math.isfinite(number) else "-" for number in value)
    return mean if spread == "-" else f"{mean} ({spread})"


def _csv(cases: Iterable[CaseScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        for score in case.scores:
            writer.writerow({"patient": case.patient, "case": case.case, **asdict(score)})
    return text.getvalue()


def _patients_csv(cases: Sequence[CaseScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, PATIENT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for patient, rows in per_patient(cases).items():
        count = sum(case.patient == patient for case in cases)
        for row in rows:
            means = {name: value[0] for name, value in (("dice", row.dice), ("hd95", row.hd95), ("assd", row.assd))}
            known = {name: value for name, value in means.items() if math.isfinite(value)}
            counts = {"cases": count, "missed": row.missed, "spurious": row.spurious, "absent": row.absent}
            writer.writerow({"patient": patient, "structure": row.structure, "unit": row.unit, **known, **counts})
    return text.getvalue()


def _as_json(result: Evaluation) -> dict[str, object]:
    def finite(value: tuple[float, float]) -> dict[str, float | None]:
        return {name: x if math.isfinite(x) else None for name, x in zip(("mean", "sd"), value, strict=True)}

    structures = {
        row.structure: {
            **asdict(row),
            "dice": finite(row.dice),
            "hd95": finite(row.hd95),
            "assd": finite(row.assd),
        }
        for row in result.summary
    }
    return {
        "step": result.step,
        "seconds": round(result.seconds, 3),
        "cases": len(result.cases),
        "structures": structures,
    }
