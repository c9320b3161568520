# SPDX-License-Identifier: Apache-2.0
"""Fit the temperature of a checkpoint on its validation patients, and try it on its test patients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secl_models.data.cases import Case, DataSet, as_trained
from secl_models.data.files import write_text
from secl_models.data.folders import held, note_written, refuse_unlisted, refuse_writing_over, remove_partial
from secl_models.data.labels import IGNORED, OPEN
from secl_models.data.tables import write_table
from secl_models.data.volumes import load_volume
from secl_models.inference.calibrations import (
    Calibration,
    Expected,
    Part,
    agreement,
    calibration_file,
    calibration_table,
)
from secl_models.inference.evaluate import evaluated_cases, require_classes, require_unseen
from secl_models.inference.metrics import score_case
from secl_models.inference.reliability import Seen, expected_dice, fit_temperature, scaled
from secl_models.inference.windows import predict_volume
from secl_models.method.checkpoint import LAST, LoadedModel, digest, load_model
from secl_models.options.errors import InputError, fitting, writing
from secl_models.options.plain import to_plain

MARGIN = 8  # voxels around the structures in which probabilities are held against the truth
MOST = 1 << 18  # voxels of a case


def calibrate(
    checkpoint: Path, data: DataSet, *, device: torch.device, progress: Callable[[int, int], None] | None = None
) -> tuple[Calibration, Path]:
    """Fit a temperature on the validation patients, try it on the test patients, and keep both beside the checkpoint.

    A case whose label leaves structures out counts with their probabilities added to those of its background, and for
    the expected Dice of the others alone.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        data: The data set that the run was trained on.
        device: Where the network runs.
        progress: Called after each case with the number done and the number of all.

    Returns:
        What was found, and the file that `secl predict --uncertainty` and `secl report` read.

    Raises:
        InputError: No run, no validation case, a patient that the checkpoint learned from, another data set.
    """
    file = checkpoint / LAST if checkpoint.is_dir() else checkpoint
    model = load_model(file)
    require_classes(model, data, file)
    data = as_trained(data, model.config.data.spacing_from)
    val, test = (evaluated_cases(file.parent, data, split, required=split == "val") for split in ("val", "test"))
    require_unseen(file, val, data, "val")
    require_unseen(file, test, data, "test")
    target, table = calibration_file(file), calibration_table(file)
    names = [target.name, table.name]
    refuse_writing_over(data.files(), target, table)
    model.network.to(device)
    work = _Work(model, data, len(val) + len(test), progress)
    with held(target.parent, "secl calibrate"):
        refuse_unlisted(target.parent, names)
        remove_partial(target.parent, names)
        found, dice = work.calibration(digest(file), val, test)
        with writing(target, "calibrate again: what was written before stays"):
            note_written(target.parent, *names)
            write_table(table, Expected, dice)
            write_text(target, json.dumps(to_plain(found), indent=1) + "\n")
    return found, target


@dataclass
class _Work:
    """Looks at one case after the other."""

    model: LoadedModel
    data: DataSet
    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def calibration(
        self, checkpoint: str, val: Sequence[Case], test: Sequence[Case]
    ) -> tuple[Calibration, list[Expected]]:
        """Fit on the one list, and try on the other."""
        seen = [near_structures(*self._look(case), case.unlabeled) for case in val]
        temperature = fit_temperature(seen)
        fitted = Part.of(seen, temperature)
        seen = []
        dice: list[Expected] = []
        for case in test:
            probabilities, label = self._look(case)
            seen.append(near_structures(probabilities, label, case.unlabeled))
            dice += self._expected(case, scaled(probabilities, temperature), label)
        tried = Part.of(seen, temperature)
        return Calibration(checkpoint, temperature, fitted, tried, *agreement(dice)), dice

    def _look(self, case: Case) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Probabilities [K + 1, *spatial] and label [*spatial] of a case."""
        model = self.model
        with fitting(case.image[0]):
            volume = load_volume(case, self.data)
            probabilities = predict_volume(model.network, model.preprocess, model.config, volume)
        if volume.label is None:
            raise InputError(case.name, rule="a case to calibrate on has a label", got="none", cure="add its label")
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return probabilities, volume.label

    def _expected(self, case: Case, probabilities: Tensor, label: npt.NDArray[np.int64]) -> list[Expected]:
        """Every structure of a case that has a true Dice and an expected one."""
        known = torch.as_tensor(label != IGNORED)
        called = probabilities.argmax(0)
        scores = score_case(called.numpy(), label, self.model.classes, None, case.unlabeled)
        found = []
        for index, score in enumerate(scores, start=1):
            mask, p = (called == index) & known, probabilities[index].double() * known
            expected = expected_dice(float(p[mask].sum()), int(mask.sum()), float(p.sum()))
            if expected is not None and score.dice is not None:
                found.append(Expected(case.name, score.structure, expected, score.dice))
        return found


def near_structures(probabilities: Tensor, label: npt.NDArray[np.int64], unlabeled: Sequence[int] = ()) -> Seen:
    """The voxels of one image that are held against the truth: those in a box around its structures, at most `MOST`.

    Args:
        probabilities: [K + 1, *spatial].
        label: Class index [*spatial], negative as in a `Volume`.
        unlabeled: Structures that the label leaves out.

    Example:
        >>> p = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        >>> near_structures(p, np.array([0, 1, -1, 0])).truth.tolist()
        [0, 1, 0]
    """
    truth = torch.as_tensor(np.where(label <= OPEN, 0, label))
    called = probabilities.argmax(0)
    found = (truth > 0) | ~torch.isin(called, torch.tensor([0, *unlabeled]))
    near = _box(found.numpy())
    chosen = torch.zeros_like(truth, dtype=torch.bool)
    chosen[near] = truth[near] >= 0
    place = torch.nonzero(chosen.flatten()).squeeze(1)
    if len(place) > MOST:  # drawn: every n-th voxel may be of one slice again and again
        drawn = torch.randperm(len(place), generator=torch.Generator().manual_seed(0))[:MOST]
        place = place[drawn.sort().values]
    return Seen(probabilities.flatten(1)[:, place], truth.flatten()[place], unlabeled)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around a mask, with a margin; the whole image where the mask is empty."""
    found = np.argwhere(mask)
    if not len(found):
        return tuple(slice(None) for _ in mask.shape)
    pairs = zip(found.min(0), found.max(0), strict=True)
    return tuple(slice(max(0, int(low) - MARGIN), int(high) + 1 + MARGIN) for low, high in pairs)
