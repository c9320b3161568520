# SPDX-License-Identifier: Apache-2.0
"""How sure a segmentation is: a map of entropy, and the Dice that the probabilities expect of every structure."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.files import write_text
from secl_models.data.formats import NIFTI_SUFFIXES, file_stem, suffix_of
from secl_models.data.volumes import Volume, save_map
from secl_models.inference.metrics import structure_names
from secl_models.inference.reliability import entropy, expected_dice, scaled
from secl_models.inference.windows import Slab, put
from secl_models.method.checkpoint import LoadedModel
from secl_models.options.events import NOTE, tell

UNSURE = 0.1  # Dice that expected ones may be off on average before it is a warning


@dataclass
class Doubt:
    """What is kept of the probabilities of one image while its slabs go by.

    Attributes:
        model: The network's structures and orientation.
        volume: The image.
        temperature: T of `reliability.scaled`.
        dice_error: How far the Dice that it expects was off on test patients, on average; None: unknown.
    """

    model: LoadedModel
    volume: Volume
    temperature: float
    dice_error: float | None = None

    def __post_init__(self) -> None:
        shape = self.volume.image.shape[1:]
        self.entropy = np.zeros(shape, np.float32)  # nats
        self._called = np.zeros(shape, np.float32)  # probability of the class that a voxel is called
        self._total = np.zeros(len(self.model.classes) + 1)  # of each class, over the image

    def observe(self, slab: Slab) -> None:
        """Take in the probabilities of some planes."""
        probabilities = scaled(slab.probabilities, self.temperature)
        pairs = ((self.entropy, entropy(probabilities)), (self._called, probabilities.max(0).values))
        for target, values in pairs:
            put(target, values.numpy(), slab.where, self.model.preprocess, self.volume)
        self._total += probabilities.double().flatten(1).sum(1).numpy()

    def expected(self, label: npt.NDArray[np.integer[Any]]) -> dict[str, float | None]:
        """Expected Dice of every structure; None where none is called and none expected.

        Args:
            label: Class index [*spatial]: the most probable, or background where a part was removed.
        """
        found = {}
        for index, name in enumerate(structure_names(self.model.classes), start=1):
            mask = label == index
            inside = float(self._called[mask].sum(dtype=np.float64))
            found[name] = expected_dice(inside, int(mask.sum()), float(self._total[index]))
        return found


def uncertainty_paths(target: Path) -> tuple[Path, Path]:
    """Where the entropy and the expected Dice of a segmentation go: NIfTI, float32, and JSON.

    Args:
        target: The segmentation.

    Example:
        >>> [path.name for path in uncertainty_paths(Path("seg.nii.gz"))]
        ['seg_uncertainty.nii.gz', 'seg_uncertainty.json']
    """
    suffix = suffix_of(target) if suffix_of(target) in NIFTI_SUFFIXES else ".nii.gz"
    stem = f"{file_stem(target)}_uncertainty"
    return target.with_name(stem + suffix), target.with_name(f"{stem}.json")


def save_doubt(doubt: Doubt, label: npt.NDArray[np.integer[Any]], target: Path) -> None:
    """Write both files beside a segmentation, and say what is expected.

    Args:
        doubt: That took in every slab of the image.
        label: What was written as the segmentation, class index [*spatial].
        target: The segmentation.
    """
    entropy_file, dice_file = uncertainty_paths(target)
    expected = doubt.expected(label)
    save_map(entropy_file, doubt.entropy, doubt.volume)
    off = doubt.dice_error
    about = {
        "temperature": doubt.temperature, "entropy": "nats", "expected_dice": expected,
        "mean_error_on_test": off,
    }  # fmt: skip
    write_text(dice_file, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    words = ", ".join(f"{name} {'-' if dice is None else f'{100 * dice:.1f}'}" for name, dice in expected.items())
    told = "" if off is None else f" (on test patients {100 * off:.0f} points off on average)"
    level = logging.WARNING if off is not None and off > UNSURE else NOTE
    tell("expected", f"{target.name}: expected Dice % {words}{told}", level=level, file=str(target), expected=expected)
