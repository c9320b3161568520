# SPDX-License-Identifier: Apache-2.0
"""Dice, HD95 and ASSD per structure and patient, with the rules for structures that are missed or absent."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

from secl_models.data.labels import IGNORED

MEAN = "mean"  # name of the summary row over all structures
# Stands in the JSON of every evaluation: the same words name other quantities elsewhere.
DEFINITIONS = {
    "dice": "2 |P and T| / (|P| + |T|) over voxels",
    "surface": "voxels of a mask with a face neighbour outside it, at their centres, each counted once; what lies "
    "beyond the edge of the image is outside; no mesh, no weights by area (DeepMind's surface-distance has both)",
    "hd95": "the larger of the two directed 95th percentiles of surface distances, linearly interpolated, by MONAI "
    "(MedPy takes the percentile of both directions pooled, which is at most as large)",
    "assd": "mean of the surface distances of both directions pooled, by MONAI (not the mean of two means)",
    "unit": "mm from the spacing of each file; voxel where the file stores none; a single slice: in its plane",
    "missed or invented": "a structure in only one of the two masks: Dice 0, HD95 and ASSD the diagonal of the image",
    "absent": "a structure in neither mask: enters no mean, and is counted",
    "unlabeled": "a structure that the label of a case is said to leave out: enters no mean and no count",
    "mean": "over the cases of a patient, over structures, then over patients; sd: over patients, n - 1",
}
BOTH, MISSED, SPURIOUS, ABSENT, UNLABELED = "both", "missed", "spurious", "absent", "unlabeled"


@dataclass(frozen=True)
class StructureScore:
    """Scores of one structure in one case; `state` says where the structure is present.

    Attributes:
        structure: Name of the structure.
        dice: Overlap in [0, 1], or None where the structure is absent in both.
        hd95: 95 % Hausdorff distance in `unit`, or None where absent in both.
        assd: Average symmetric surface distance in `unit`, or None where absent in both.
        unit: `mm` where the spacing is known, else `voxel`.
        state: `both`, `missed` (only in the truth), `spurious` (only predicted), `absent` (in neither), or `unlabeled`
            where the truth leaves the structure out: without scores.
    """

    structure: str
    dice: float | None
    hd95: float | None
    assd: float | None
    unit: str
    state: str


@dataclass(frozen=True)
class CaseScores:
    """All structures of one case."""

    patient: str
    case: str
    scores: tuple[StructureScore, ...]


@dataclass(frozen=True)
class StructureSummary:
    """Mean and standard deviation over patients, with the counts that the means hide.

    Attributes:
        structure: Name of the structure, or `mean` for the mean over structures.
        dice: (mean, SD) over patients in [0, 1]; NaN where no patient was scored, SD NaN for one patient.
        hd95: (mean, SD) over patients in `unit`.
        assd: (mean, SD) over patients in `unit`.
        unit: `mm`, `voxel`, or both names where cases differ.
        patients: Number of patients behind the means.
        missed: Cases in which the structure is in the truth and not in the prediction.
        spurious: Cases in which it is in the prediction and not in the truth.
        absent: Cases in which it is in neither; they enter no mean.
    """

    structure: str
    dice: tuple[float, float]
    hd95: tuple[float, float]
    assd: tuple[float, float]
    unit: str
    patients: int
    missed: int
    spurious: int
    absent: int


def structure_names(classes: Mapping[int, str]) -> tuple[str, ...]:
    """Names in the order of the network's class index: index = 1 + rank of the label value.

    Args:
        classes: Label value in the files -> name, without background.

    Returns:
        The name of class index 1, 2, ...

    Example:
        >>> structure_names({500: "LV", 200: "myocardium"})
        ('myocardium', 'LV')
    """
    return tuple(classes[value] for value in sorted(classes))


def score_case(
    prediction: npt.NDArray[np.integer[Any]],  # [*spatial]
    truth: npt.NDArray[np.integer[Any]],  # [*spatial]
    classes: Mapping[int, str],
    spacing: tuple[float, ...] | None,
    unlabeled: Collection[int] = (),
) -> list[StructureScore]:
    r"""Score every structure of one case.

    The surface of a mask is the set of its voxels with a face neighbour outside it. With d(p, T) the distance
    from the centre of surface voxel p to the nearest surface voxel of T,
    HD95 = max(P95 over p of d(p, T), P95 over t of d(t, P)): the larger of the two directed percentiles, each
    linearly interpolated (not the percentile of the pooled distances, which is smaller).
    ASSD = mean over the pooled distances of both directions.
    A structure in only one of the two images has Dice 0 and HD95 = ASSD = the diagonal of the image.
    Voxels of which the truth says nothing belong to neither image: both surfaces end there alike.

    Args:
        prediction: Class index 0..K per voxel, [*spatial].
        truth: Class index 0..K per voxel, -1 where nothing is said, -2 for background or one of
            `unlabeled`, [*spatial].
        classes: Label value in the files -> name; its sorted order is the class index.
        spacing: Millimetres per voxel along each axis, or None where unknown: distances are then in voxels.
        unlabeled: Class indices of the structures that the truth leaves out: they get no scores.

    Returns:
        One score per structure, in the order of the class index.

    Raises:
        ValueError: If the two images differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    prediction = np.where(truth == IGNORED, 0, prediction)
    step = spacing if spacing is not None else (1.0,) * truth.ndim
    diagonal = math.sqrt(sum((size * mm) ** 2 for size, mm in zip(truth.shape, step, strict=True)))
    unit = "mm" if spacing is not None else "voxel"
    # An image of one slice has no surface across it: its distances are those of the plane.
    flat = [axis for axis, size in enumerate(truth.shape) if size == 1][: max(truth.ndim - 2, 0)]
    prediction, truth = (np.squeeze(image, axis=tuple(flat)) for image in (prediction, truth))
    step = tuple(mm for axis, mm in enumerate(step) if axis not in flat)
    return [
        StructureScore(name, None, None, None, unit, UNLABELED)
        if index in unlabeled
        else _score(name, prediction == index, truth == index, step, diagonal, unit)
        for index, name in enumerate(structure_names(classes), start=1)
    ]


def _score(
    name: str,
    prediction: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    step: tuple[float, ...],
    diagonal: float,
    unit: str,
) -> StructureScore:
    predicted, present = bool(prediction.any()), bool(truth.any())
    if not predicted and not present:
        return StructureScore(name, None, None, None, unit, ABSENT)
    if not predicted or not present:
        return StructureScore(name, 0.0, diagonal, diagonal, unit, MISSED if present else SPURIOUS)
    ours, theirs = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    dice = compute_dice(ours, theirs, include_background=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it sets itself
        _, distances, _ = get_edge_surface_distance(ours[0, 0], theirs[0, 0], spacing=step, symmetric=True)
    hd95, assd = max(map(_percentile_95, distances)), float(torch.cat(distances).mean())
    return StructureScore(name, dice.item(), hd95, assd, unit, BOTH)


def _percentile_95(distances: Tensor) -> float:  # [N]
    """Linearly interpolated; the numbers of `torch.quantile`, which refuses more than 2^24 distances."""
    rank = torch.tensor(0.95, dtype=distances.dtype) * (len(distances) - 1)
    ordered = distances.sort().values
    return float(ordered[rank.floor().long()].lerp(ordered[rank.ceil().long()], rank.frac()))


def per_patient(cases: Sequence[CaseScores]) -> dict[str, list[StructureSummary]]:
    """The summary of each patient's own cases, by patient in the order of the cases.

    Args:
        cases: Scores of every case.

    Returns:
        Patient -> a row per structure and the row `mean`; the standard deviations are NaN.
    """
    patients = dict.fromkeys(case.patient for case in cases)
    return {patient: summarise([case for case in cases if case.patient == patient]) for patient in patients}


def summarise(cases: Sequence[CaseScores]) -> list[StructureSummary]:
    """Mean and standard deviation over patients, per structure and over all structures.

    Cases of one patient are averaged first, so that a patient with more images weighs no more than another;
    the last row, `mean`, averages the structures of a patient before it averages patients.

    Args:
        cases: Scores of every case, all with the same structures.

    Returns:
        One summary per structure, then the row `mean`.

    Example:
        >>> one = CaseScores("p1", "p1_ED", (StructureScore("LV", 0.9, 3.0, 1.0, "mm", "both"),))
        >>> [row.structure for row in summarise([one])]
        ['LV', 'mean']
    """
    names = list(dict.fromkeys(score.structure for case in cases for score in case.scores))
    rows = [_summary(name, cases, {name}) for name in names]
    return [*rows, _summary(MEAN, cases, set(names))]


def _summary(title: str, cases: Sequence[CaseScores], names: set[str]) -> StructureSummary:
    scores = [(case.patient, score) for case in cases for score in case.scores if score.structure in names]
    scored = [(patient, score) for patient, score in scores if score.state not in (ABSENT, UNLABELED)]
    states = [score.state for _, score in scores]
    return StructureSummary(
        structure=title,
        dice=_over_patients((patient, score.structure, score.dice) for patient, score in scored),
        hd95=_over_patients((patient, score.structure, score.hd95) for patient, score in scored),
        assd=_over_patients((patient, score.structure, score.assd) for patient, score in scored),
        unit="/".join(sorted({score.unit for _, score in scores})),
        patients=len({patient for patient, _ in scored}),
        missed=states.count(MISSED),
        spurious=states.count(SPURIOUS),
        absent=states.count(ABSENT),
    )


def _over_patients(values: Iterable[tuple[str, str, float | None]]) -> tuple[float, float]:
    """(mean, SD) over patients of the mean over structures of the mean over cases."""
    table: dict[str, dict[str, list[float]]] = {}
    for patient, structure, value in values:
        if value is not None:
            table.setdefault(patient, {}).setdefault(structure, []).append(value)
    means = [statistics.fmean(map(statistics.fmean, structures.values())) for structures in table.values()]
    if not means:
        return math.nan, math.nan
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else math.nan
