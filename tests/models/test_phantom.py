# SPDX-License-Identifier: Apache-2.0
"""The phantom is the same for the same seed, looks like a stack of hearts, and has the difficulties it promises."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from secl_models.data.cases import DataSet
from secl_models.data.phantom import write_phantom
from secl_models.data.splits import make_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.options.errors import InputError

RIGHT, WALL, LEFT = 1, 2, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", cases=14, labeled=12, size=(64, 64, 12))


@pytest.fixture(scope="module")
def volumes(data: DataSet) -> list[Volume]:
    return [load_volume(case, data) for case in data.cases]


def signal(volume: Volume, structure: int) -> float:
    return float(np.median(volume.image[0][volume.label == structure]))


def test_layout_and_unlabelled_cases(data: DataSet) -> None:
    assert (data.layout, data.modality) == ("decathlon", ("MRI",))
    assert data.classes == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    assert [case.label is None for case in data.cases] == [False] * 12 + [True] * 2
    split = make_split(data, 3, 0)
    assert [len(part) for part in (split.labeled, split.unlabeled, split.val, split.test)] == [3, 8, 1, 2]


def test_equal_seeds_write_equal_voxels_and_others_do_not(tmp_path: Path) -> None:
    sets = [
        write_phantom(tmp_path / str(i), cases=3, labeled=3, size=(32, 32, 4), seed=s) for i, s in enumerate((5, 5, 6))
    ]
    images = [np.stack([load_volume(case, data).image for case in data.cases]) for data in sets]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_a_patient_does_not_depend_on_how_many_are_written(tmp_path: Path) -> None:
    few, many = (write_phantom(tmp_path / str(n), cases=n, labeled=3, size=(32, 32, 4)) for n in (3, 5))
    for first, second in zip(few.cases, many.cases, strict=False):
        assert np.array_equal(load_volume(first, few).image, load_volume(second, many).image)


def test_geometry_is_oblique_and_in_millimetres(volumes: list[Volume]) -> None:
    for volume in volumes:
        assert volume.spacing is not None
        assert [round(side, 3) for side in volume.spacing] == [2.7, 2.7, 8.0]
        directions = np.abs(volume.affine[:3, :3])
        assert (np.sort(directions, axis=0)[-2] > 0).all()
        header = nib.load(volume.case.image[0]).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)  # type: ignore[index]
    assert len({volume.affine.tobytes() for volume in volumes}) == len(volumes)


def test_anatomy(volumes: list[Volume]) -> None:
    for volume in volumes:
        if volume.label is None:
            continue
        found = [np.flatnonzero((volume.label == value).any(axis=(0, 1))) for value in (RIGHT, WALL, LEFT)]
        assert all(len(slices) >= 4 for slices in found)
        assert found[0].max() < found[1].max()  # the right ventricle ends above the apex
        assert found[1].min() >= 1  # atria above the base carry no label
        for index in found[2]:
            plane = volume.label[..., index]
            around = binary_dilation(plane == LEFT) & (plane != LEFT)
            assert (plane[around] == WALL).all()  # the wall encloses the cavity


def test_blood_is_brighter_than_muscle_and_contrast_differs_between_patients(volumes: list[Volume]) -> None:
    labeled = [volume for volume in volumes if volume.label is not None]
    ratios = np.array([signal(volume, LEFT) / signal(volume, WALL) for volume in labeled])
    assert ratios.min() > 1.2
    assert ratios.max() > 1.3 * ratios.min()
    assert max(signal(v, LEFT) for v in labeled) > 1.5 * min(signal(v, LEFT) for v in labeled)


def test_surroundings_have_the_signals_of_the_structures(volumes: list[Volume]) -> None:
    for volume in volumes:
        if volume.label is None:
            continue
        outside = volume.image[0][volume.label == 0]
        for value in (WALL, LEFT):
            inside = np.percentile(volume.image[0][volume.label == value], (25, 75))
            alike = np.count_nonzero((outside > inside[0]) & (outside < inside[1]))
            assert alike > np.count_nonzero(volume.label == value)  # a threshold cannot find the structure


def test_patients_differ_in_size_and_place(volumes: list[Volume]) -> None:
    masks = [volume.label == LEFT for volume in volumes if volume.label is not None]
    sizes = np.array([mask.sum() for mask in masks])
    centres = np.array([[axis.mean() for axis in np.nonzero(mask)][:2] for mask in masks])
    assert sizes.max() > 2 * sizes.min()
    assert (np.ptp(centres, axis=0) > 4).all()


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secl_models.data.phantom._oblique_affine", fail)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "set", cases=3, labeled=3, size=(32, 32, 4))
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InputError, match="new or empty"):
        write_phantom(tmp_path / "full")
    for cases, labeled in ((8, 2), (8, 9)):
        with pytest.raises(InputError, match=f"got {labeled} of {cases}"):
            write_phantom(tmp_path / "set", cases=cases, labeled=labeled)
    with pytest.raises(InputError, match="32 x 32 x 4"):
        write_phantom(tmp_path / "set", size=(16, 32, 4))
