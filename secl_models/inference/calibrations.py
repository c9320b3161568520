# SPDX-License-Identifier: Apache-2.0
"""What a calibration leaves: the temperature of a checkpoint, and what it does on validation and test patients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secl_models.data.files import read_text
from secl_models.inference.reliability import Reliability, Seen, reliability
from secl_models.method.checkpoint import LAST, digest
from secl_models.options.errors import InputError
from secl_models.options.plain import from_plain


@dataclass(frozen=True)
class Expected:
    """Dice of one structure of a case, as the probabilities have it and as it is."""

    case: str
    structure: str
    expected: float
    dice: float


@dataclass(frozen=True)
class Part:
    """What the patients of one list show: `before` at temperature 1, `after` at the fitted one."""

    cases: int
    before: Reliability
    after: Reliability

    @classmethod
    def of(cls, seen: Sequence[Seen], temperature: float) -> Part:
        """From what is seen of each case."""
        return cls(len(seen), reliability(seen), reliability(seen, temperature))


@dataclass(frozen=True)
class Calibration:
    """The temperature of a checkpoint, and what it does on the validation and on the test patients.

    Attributes:
        checkpoint: SHA-256 of the file.
        temperature: T of `scaled`.
        val: On the patients that it was fitted on.
        test: On others.
        correlation: Pearson's, of the expected and the true Dice of every test case and structure; None for fewer than
            three, or where one of the two is the same everywhere.
        dice_error: Mean of |expected - true Dice|; None without one.
    """

    checkpoint: str
    temperature: float
    val: Part
    test: Part
    correlation: float | None
    dice_error: float | None


def agreement(dice: Sequence[Expected]) -> tuple[float | None, float | None]:
    """Correlation and mean absolute difference of expected and true Dice, as in `Calibration`.

    Args:
        dice: Of every case and structure.

    Example:
        >>> agreement([Expected("a", "LV", 0.9, 0.8), Expected("b", "LV", 0.7, 0.6), Expected("c", "LV", 0.5, 0.4)])[0]
        1.0
    """
    pairs = np.array([(each.expected, each.dice) for each in dice]).reshape(-1, 2)
    error = float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()) if len(pairs) else None
    if len(pairs) < 3 or not pairs.std(0).all():
        return None, error
    return round(float(np.corrcoef(pairs.T)[0, 1]), 12), error


def calibration_file(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint, or of the last one of a run folder, stands."""
    file = checkpoint / LAST if checkpoint.is_dir() else checkpoint
    return file.with_name(f"calibration_{file.stem}.json")


def calibration_table(checkpoint: Path) -> Path:
    """Where the expected and the true Dice of the test patients stand."""
    return calibration_file(checkpoint).with_suffix(".csv")


def load_calibration(checkpoint: Path) -> Calibration | None:
    """What `calibrate` wrote, or None where it was not called.

    Raises:
        InputError: The file is not what was written, or of another checkpoint.
    """
    file = calibration_file(checkpoint)
    if not file.is_file():
        return None
    cure = "calibrate again: secl calibrate"
    text = read_text(file, "what `secl calibrate` wrote", cure)
    try:
        found = from_plain(Calibration, json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(file, rule="what `secl calibrate` wrote", got=error, cure=cure) from error
    if found.checkpoint != digest(checkpoint):
        raise InputError(file, rule="the calibration of this checkpoint", got="that of another", cure=cure)
    return found


def calibration_of(checkpoint: Path) -> Calibration:
    """The calibration of a checkpoint that has to have one.

    Raises:
        InputError: It was not calibrated.
    """
    found = load_calibration(checkpoint)
    if found is None:
        cure = f"secl calibrate --checkpoint {checkpoint} --data DIR, with the data of the training"
        raise InputError("--uncertainty", rule="a checkpoint that was calibrated", got=checkpoint, cure=cure)
    return found
