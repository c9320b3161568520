# SPDX-License-Identifier: Apache-2.0
"""Scores of a trained run on its own validation or test patients: CSV by case and patient, summary JSON, table.

The cases come from the split stored beside the run, so nothing can be scored that was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track

from secl_models.data.cases import Case, DataSet, as_trained
from secl_models.data.folders import held, refuse_unlisted, refuse_writing_over, remove_partial
from secl_models.data.splits import load_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.evaluations import LARGEST, Evaluation, save_evaluations
from secl_models.inference.metrics import (
    CaseScores,
    score_case,
)
from secl_models.inference.windows import segment_volume
from secl_models.method.checkpoint import BEST, LAST, LoadedModel, load, load_model
from secl_models.method.device import choose_device
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError
from secl_models.options.events import Pace, bars, tell


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
        One evaluation per checkpoint, `last` first, and where structures were one part in every labelled training case
        one more, `last-largest`, of the same predictions with their largest parts alone.

    Raises:
        InputError: If the run has no such list, the list is empty, a patient on it was trained on or chose the
            checkpoint, the classes of checkpoint and data set differ, another process writes to the folder, as a
            training that still runs, or the disk is full.
    """
    target = choose_device(device)
    files = find_checkpoints(path)
    run = files[0].parent
    cases = evaluated_cases(run, data, split)
    named = [f"{file.stem}{kind}" for file in files for kind in ("", LARGEST)]
    names = [f"evaluation_{split}_{name}{end}" for name in named for end in (".csv", "_patients.csv", ".json")]
    refuse_writing_over(data.files(), *((out or run) / name for name in names))
    with held(out or run, "secl evaluate"):
        refuse_unlisted(out or run, [*names, f"evaluation_{split}.json"])
        remove_partial(out or run, names)
        found = _evaluate_all(files, cases, data, split, target, progress)
        save_evaluations(found, out or run, pair=path.is_dir())
    return found


def _evaluate_all(
    files: Sequence[Path], cases: Sequence[Case], data: DataSet, split: str, device: torch.device, progress: bool
) -> list[Evaluation]:
    results: dict[int, list[Evaluation]] = {}
    named: list[Evaluation] = []
    for file in files:
        model = load_model(file)
        require_classes(model, data, file)
        require_unseen(file, cases, data, split)
        model.network.to(device)
        if model.step not in results:  # where the last step is the best one, both files hold one network
            results[model.step] = _evaluate_one(model, file.stem, data, cases, split, progress)
        kinds = zip(("", LARGEST), results[model.step], strict=False)
        named += [replace(found, checkpoint=f"{file.stem}{kind}") for kind, found in kinds]
    return named


def require_scored(split: str) -> None:
    """Refuse the name of a list that is not scored.

    Args:
        split: `test` or `val`.

    Raises:
        InputError: It is another word.
    """
    if split not in ("test", "val"):
        raise InputError("--split", rule="test or val", got=split, cure="ask for test or val")


def evaluated_cases(run: Path, data: DataSet, split: str, *, required: bool = True) -> tuple[Case, ...]:
    """The labelled cases of one list of a run's own split.

    Args:
        run: Run folder with `split.json`.
        data: The data set that the run was trained on.
        split: `test` or `val`.
        required: Whether there must be one.

    Returns:
        The cases to score.

    Raises:
        InputError: If `split` is another word, the stored split is missing or breaks a rule of `load_split`
            (a patient in two parts, a case without label), or the list is empty and must not be.
    """
    require_scored(split)
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
    if required and not cases:
        raise InputError(
            f"{split} list of {file}",
            rule="at least one case",
            got="none",
            cure="add labelled cases to the data set and train again",
        )
    return cases


def require_classes(model: LoadedModel, data: DataSet, file: Path) -> None:
    """Refuse a data set of other structures than those of the checkpoint."""
    if model.classes != data.classes:
        raise InputError(
            file,
            rule="checkpoint and data set have the same classes",
            got=f"{model.classes} and {data.classes}",
            cure="name the data set that the run was trained on",
        )


def require_unseen(file: Path, cases: Sequence[Case], data: DataSet, split: str) -> None:
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
) -> list[Evaluation]:
    """Scores of the predictions as they are and, where a structure is kept as one part, of its largest part."""
    data = as_trained(data, model.config.data.spacing_from)
    title = f"{name} on {len(cases)} {split} cases"
    tell("start", f"scoring {title}", checkpoint=name, split=split, step=model.step, cases=len(cases))
    shown = Console(stderr=True, quiet=not (progress and bars()))
    pace, scores, largest = Pace(len(cases)), [], []
    for case in track(cases, title, console=shown, transient=True):
        volume = load_volume(case, data)
        prediction = _segment(model, volume)
        scores.append(_score(model, volume, prediction))
        if model.one_part:
            keep_largest(prediction, model.one_part)
            largest.append(_score(model, volume, prediction))
        _tell_score(scores[-1], name, len(scores), len(cases), pace)
    found = Evaluation(name, split, tuple(scores), pace.seconds(), model.step)
    if not model.one_part:
        return [found]
    return [found, replace(found, cases=tuple(largest), one_part=model.one_part_names)]


def _tell_score(scores: CaseScores, name: str, done: int, total: int, pace: Pace) -> None:
    dice = {score.structure: score.dice for score in scores.scores}
    words = ", ".join(f"{structure} {'-' if x is None else f'{100 * x:.1f}'}" for structure, x in dice.items())
    sentence = f"{name} {done}/{total} {scores.case}: Dice % {words}; {pace.left(done)} left"
    tell("scored", sentence, checkpoint=name, case=scores.case, patient=scores.patient, dice=dice, done=done)


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
    return _score(model, volume, _segment(model, volume))


def _segment(model: LoadedModel, volume: Volume) -> npt.NDArray[np.integer[Any]]:
    if volume.label is None:
        raise InputError(volume.case.name, rule="a case to score has a label", got="none", cure="add one")
    return segment_volume(model.network, model.preprocess, model.config, volume)


def _score(model: LoadedModel, volume: Volume, prediction: npt.NDArray[np.integer[Any]]) -> CaseScores:
    assert volume.label is not None
    scores = score_case(prediction, volume.label, model.classes, volume.spacing, volume.case.unlabeled)
    return CaseScores(volume.case.patient, volume.case.name, tuple(scores))
