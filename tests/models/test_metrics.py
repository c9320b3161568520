# SPDX-License-Identifier: Apache-2.0
"""Scores against an independent computation on real masks, and the rules for missed and absent structures."""

from __future__ import annotations

import math
import statistics
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy import ndimage

from secl_models.inference.metrics import CaseScores, StructureScore, score_case, structure_names, summarise

CLASSES = {1: "Anterior", 2: "Posterior"}
# MONAI computes in float32 (24 bits); the place of a percentile among < 2^10 voxels leaves 14 bits.
FLOAT32 = 2.0**-14


def _surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(mask.ndim):
        inside &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return (padded & ~inside)[(slice(1, -1),) * mask.ndim]


def _independent(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[float, float, float]:
    """Dice, HD95, ASSD by distance transforms of the whole image, no tree, no crop."""
    surfaces = _surface(prediction), _surface(truth)
    to_truth = ndimage.distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]
    to_prediction = ndimage.distance_transform_edt(~surfaces[0], sampling=spacing)[surfaces[1]]
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    hd95 = max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))
    return float(dice), float(hd95), float(np.concatenate([to_truth, to_prediction]).mean())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0), None])
def test_matches_an_independent_computation_on_real_masks(real_data: Path, spacing: tuple[float, ...] | None) -> None:
    files = sorted((real_data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[:3]
    for file in files:
        truth = np.asarray(nib.Nifti1Image.from_filename(file).dataobj).astype(np.int64)
        prediction = np.roll(truth, (1, -2, 1), (0, 1, 2))
        prediction[ndimage.binary_dilation(prediction == 1, iterations=1) & (prediction == 0)] = 1
        for index, score in enumerate(score_case(prediction, truth, CLASSES, spacing), start=1):
            expected = _independent(prediction == index, truth == index, spacing or (1.0, 1.0, 1.0))
            got = (score.dice, score.hd95, score.assd)
            assert score.unit == ("mm" if spacing else "voxel")
            for value, right in zip(got, expected, strict=True):
                assert value is not None
                assert abs(value - right) <= FLOAT32 * right


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one() -> None:
    truth, prediction = np.zeros((1, 200), np.int64), np.zeros((1, 200), np.int64)
    truth[0, :10] = 1
    prediction[0, :10] = 1
    prediction[0, 150] = 1  # 1 of 11 surface voxels is 141 away: the directed percentile sees it
    (score,) = score_case(prediction, truth, {1: "a"}, (1.0, 1.0))
    assert score.hd95 == pytest.approx(0.5 * 141, rel=FLOAT32)  # 95 % of 11 values: half way to the last


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0)])
def test_distances_are_those_of_monai_to_the_bit(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for density in (0.001, 0.01, 0.1, 0.5, 0.99):
        prediction, truth = (rng.random((2, 14, 15, 16)) < density).astype(np.int64)
        (score,) = score_case(prediction, truth, {1: "a"}, spacing)
        ours, theirs = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            hd95 = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
            assd = compute_average_surface_distance(
                ours, theirs, include_background=True, symmetric=True, spacing=spacing
            )
        assert (score.hd95, score.assd) == (hd95.item(), assd.item())


def test_no_number_of_distances_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("quantile() input tensor is too large")  # above 2^24

    monkeypatch.setattr(torch, "quantile", refuse)
    truth, prediction = np.zeros((2, 9, 9), np.int64)
    truth[2:5, 3:7] = prediction[2:5, 3:8] = 1
    (score,) = score_case(prediction, truth, {1: "a"}, None)
    assert score.hd95 == 1.0


def test_missed_spurious_and_absent_structures() -> None:
    truth = np.zeros((3, 4, 12), np.int64)
    prediction = truth.copy()
    truth[0, 0, 0], prediction[1, 1, 1] = 1, 2
    missed, spurious, absent = score_case(prediction, truth, {1: "a", 2: "b", 3: "c"}, (1.0, 2.0, 0.5))
    diagonal = math.sqrt(3**2 + 8**2 + 6**2)
    assert (missed.state, missed.dice, missed.hd95, missed.assd) == ("missed", 0.0, diagonal, diagonal)
    assert (spurious.state, spurious.dice, spurious.hd95) == ("spurious", 0.0, diagonal)
    assert (absent.state, absent.dice, absent.hd95, absent.assd) == ("absent", None, None, None)


def test_identical_masks_are_perfect_in_two_dimensions() -> None:
    truth = np.zeros((9, 9), np.int64)
    truth[2:5, 3:7] = 1
    (score,) = score_case(truth, truth, {7: "a"}, None)
    assert (score.dice, score.hd95, score.assd, score.unit) == (1.0, 0.0, 0.0, "voxel")


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction \(2, 2\) and truth \(2, 3\) differ in shape"):
        score_case(np.zeros((2, 2), np.int64), np.zeros((2, 3), np.int64), {1: "a"}, None)


def test_class_index_is_the_rank_of_the_label_value() -> None:
    assert structure_names({600: "RV", 200: "myocardium", 500: "LV"}) == ("myocardium", "LV", "RV")


def _case(patient: str, *dice: float | None) -> CaseScores:
    scores = tuple(
        StructureScore(name, value, value, value, "mm", "absent" if value is None else "both")
        for name, value in zip("ab", dice, strict=True)
    )
    return CaseScores(patient, patient, scores)


def test_a_patient_with_more_cases_weighs_no_more() -> None:
    a, b, mean = summarise([_case("p1", 1.0, 0.5), _case("p1", 0.0, 0.5), _case("p2", 1.0, None)])
    assert a.dice == (0.75, statistics.stdev([0.5, 1.0]))
    assert (b.dice[0], b.patients, b.absent) == (0.5, 1, 1)
    assert math.isnan(b.dice[1])
    assert (mean.structure, mean.dice[0], mean.patients) == ("mean", (0.5 + 1.0) / 2, 2)


def test_no_scored_patient_gives_nan_and_the_count() -> None:
    a, _, mean = summarise([_case("p1", None, None)])
    assert (a.absent, a.patients) == (1, 0)
    assert math.isnan(a.dice[0])
    assert math.isnan(mean.dice[0])


def test_a_single_slice_is_measured_in_its_plane() -> None:
    truth, prediction = np.zeros((40, 40), np.int64), np.zeros((40, 40), np.int64)
    truth[5:25, 5:25], prediction[8:28, 5:25] = 1, 1
    (plane,) = score_case(prediction, truth, {1: "a"}, (1.0, 2.0))
    (slab,) = score_case(prediction[..., None], truth[..., None], {1: "a"}, (1.0, 2.0, 8.0))
    assert (slab.dice, slab.hd95, slab.assd) == (plane.dice, plane.hd95, plane.assd)
