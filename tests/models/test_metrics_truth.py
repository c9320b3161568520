# SPDX-License-Identifier: Apache-2.0
"""Dice, HD95 and ASSD against scikit-image surfaces and SciPy distance transforms, which share no code with MONAI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from skimage.segmentation import find_boundaries

from secl_models.data.layouts import read_data_set
from secl_models.data.volumes import load_volume
from secl_models.inference.metrics import score_case

# MONAI computes in float32 (24 bits); the place of a percentile among < 2^14 voxels leaves 10 bits.
FLOAT32 = 2.0**-10
Mask = npt.NDArray[np.bool_]
boundaries: Any = find_boundaries


def _surface(mask: Mask) -> Mask:
    """Voxels with a face neighbour outside the mask; what lies beyond the image is outside."""
    inner: Mask = boundaries(np.pad(mask, 1), connectivity=1, mode="inner")
    return inner[(slice(1, -1),) * mask.ndim]


def plain_scores(prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> tuple[float, float, float]:
    """Dice, HD95 and ASSD as `metrics.DEFINITIONS` words them."""
    ours, theirs = _surface(prediction), _surface(truth)
    there = ndimage.distance_transform_edt(~theirs, sampling=spacing)[ours]
    back = ndimage.distance_transform_edt(~ours, sampling=spacing)[theirs]
    dice = 2 * np.count_nonzero(prediction & truth) / (np.count_nonzero(prediction) + np.count_nonzero(truth))
    return dice, max(np.percentile(there, 95), np.percentile(back, 95)), float(np.r_[there, back].mean())


def _agree(prediction: Any, truth: Any, classes: dict[int, str], spacing: tuple[float, ...] | None) -> int:
    compared = 0
    for index, score in enumerate(score_case(prediction, truth, classes, spacing), start=1):
        if score.state != "both":
            continue
        expected = plain_scores(prediction == index, truth == index, spacing or (1.0,) * truth.ndim)
        got = np.array([score.dice, score.hd95, score.assd])
        assert np.all(np.abs(got - expected) <= FLOAT32 * np.abs(expected)), (score, expected)
        compared += 1
    return compared


def _wrong(truth: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A prediction with the faults of real ones: moved, swollen, and with a far island."""
    rng = np.random.default_rng(seed)
    moved = np.roll(truth, rng.integers(-2, 3, truth.ndim), tuple(range(truth.ndim)))
    swollen = np.where(moved > 0, moved, ndimage.grey_dilation(moved, size=3))
    swollen[(rng.random(truth.shape) < 0.0005) & (swollen == 0)] = 1
    return np.asarray(swollen, np.int64)


@pytest.mark.parametrize(("name", "cases"), [("hippocampus", 3), ("sarcoma_ct", 2), ("acdc", 2)])
def test_real_masks_in_their_own_spacing(real_data: Path, name: str, cases: int) -> None:
    data = read_data_set(real_data / name)
    chosen = [case for case in data.cases if name != "acdc" or case.split == "val"][:cases]
    compared = 0
    for seed, case in enumerate(chosen):
        volume = load_volume(case, data)
        assert volume.label is not None
        compared += _agree(_wrong(volume.label, seed), volume.label, data.classes, volume.spacing)
    assert compared >= cases


@pytest.mark.parametrize("spacing", [(0.4, 1.0, 7.3), (3.0, 3.0, 0.5), (2.0, 0.7), None])
def test_synthetic_masks_in_anisotropic_spacing(spacing: tuple[float, ...] | None) -> None:
    shape = (34, 26, 15)[: len(spacing) if spacing else 3]
    rng = np.random.default_rng(0)
    field = [ndimage.gaussian_filter(rng.normal(size=shape), 3) for _ in range(2)]
    truth, prediction = (np.digitize(f / f.std(), (0.3, 1.0)).astype(np.int64) for f in field)
    assert _agree(prediction, truth, {1: "a", 2: "b"}, spacing) == 2  # both touch the edge of the image


def test_a_structure_over_the_whole_image_has_its_edge_as_surface() -> None:
    truth, prediction = np.ones((6, 9, 7), np.int64), np.zeros((6, 9, 7), np.int64)
    prediction[2:4, 3:6, 3] = 1
    assert _agree(prediction, truth, {1: "a"}, (1.0, 2.0, 3.0)) == 1


def test_other_definitions_differ_so_ours_is_written_down() -> None:
    """The pooled percentile and the mean of two means are other numbers, so no rounding hides a change."""
    truth, prediction = np.zeros((40, 40, 9), np.int64), np.zeros((40, 40, 9), np.int64)
    truth[4:34, 4:34, 2:7], prediction[10:16, 10:30, 3:5] = 1, 1
    (score,) = score_case(prediction, truth, {1: "a"}, (1.0, 1.0, 3.0))
    ours, theirs = _surface(prediction == 1), _surface(truth == 1)
    there = ndimage.distance_transform_edt(~theirs, sampling=(1, 1, 3))[ours]
    back = ndimage.distance_transform_edt(~ours, sampling=(1, 1, 3))[theirs]
    assert score.hd95 is not None
    assert score.assd is not None
    assert score.hd95 > 1.01 * np.percentile(np.r_[there, back], 95)
    assert score.assd > 1.01 * (there.mean() + back.mean()) / 2
