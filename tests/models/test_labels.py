# SPDX-License-Identifier: Apache-2.0
"""Label values on the way to class indices and back: rounded ones, many of them, large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from secl_models.data.cases import Case, DataSet
from secl_models.data.labels import MOST_CLASSES, looks_like_intensities
from secl_models.data.layouts import read_data_set
from secl_models.data.preprocess import Preprocess
from secl_models.data.resident import ResidentData
from secl_models.data.volumes import load_volume
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, override
from tests.models.files import image_array, label_array, write_nifti, write_set
from tests.models.untrained import untrained

MANY = {value: f"s{value}" for value in range(1, 301)}


def load(root: Path, label: Any, classes: dict[int, str]) -> Any:
    files = write_nifti(root / "i.nii.gz", image_array(shape=label.shape)), write_nifti(root / "l.nii.gz", label)
    return load_volume(Case("a", "a", files[:1], files[1], None), DataSet(root, "csv", classes, ("MRI",), ()))


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_labels_stored_through_slope_and_intercept_are_whole(tmp_path: Path, kind: Any) -> None:
    root = write_set(tmp_path)
    path = root / "labelsTr" / "c_0.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    nib.Nifti1Image(label_array().astype(np.float64), np.diag([-1.5, -1.5, 8, 1]), header).to_filename(path)
    assert set(np.unique(nib.Nifti1Image.from_filename(path).get_fdata())) != {0, 1, 2}
    data = read_data_set(root)
    assert np.array_equal(np.asarray(load_volume(data.cases[0], data).label), label_array())


@pytest.mark.parametrize(("value", "taken"), [(1.0000153, 1), (1.9999999995, 2), (0.9991, 1), (1e-4, 0), (-5e-4, 0)])
def test_values_within_a_thousandth_of_a_whole_number_are_it(tmp_path: Path, value: float, taken: int) -> None:
    label = label_array().astype(np.float64)
    label[0, 0, 0] = value
    assert load(tmp_path, label, {1: "ring", 2: "core"}).label[0, 0, 0] == taken


@pytest.mark.parametrize(
    ("value", "shown"), [(0.996, "0.996"), (2.0020000001, "2.0020000001"), (1.5, "1.5"), (3.0, "3"), (np.inf, "inf")]
)
def test_other_values_are_refused_at_full_length(tmp_path: Path, value: float, shown: str) -> None:
    label = label_array().astype(np.float64)
    label[0, 0, 0] = value
    with pytest.raises(InputError) as caught:
        load(tmp_path, label, {1: "ring", 2: "core"})
    assert caught.value.got == f"{shown} in 1 voxels"


def many(shape: tuple[int, ...] = (20, 16, 2)) -> Any:
    return (np.arange(np.prod(shape)).reshape(shape) % 301).astype(np.uint16)


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0)])
def test_class_300_stays_class_300_on_the_way_to_the_batch(tmp_path: Path, spacing: tuple[float, float] | None) -> None:
    label = np.zeros((16, 16, 2), np.uint16)
    label[2:14] = 300
    volume = load(tmp_path, label, MANY)
    prepared = Preprocess(2, None, spacing, "volume", None).label(volume)
    assert (prepared.dtype, prepared.unique().tolist()) == (torch.int16, [0, 300])
    options = ["data.patch=[16,16]", "data.orientation=null", "data.normalize=volume", "data.foreground=1.0"]
    config = override(RunConfig(), [*options, "network.name=tests:none", "network.channels=[4,8]", "network.taps=[1]"])
    small = load(tmp_path / "small", label_array((16, 16, 2)), MANY)  # uint8 by itself
    batch, _ = ResidentData([small, volume], [], config, "cpu").batch(0, 8, 0)
    assert set(batch.label.unique().tolist()) == {0, 1, 2, 300}


def test_up_to_255_classes_take_a_byte_a_voxel(tmp_path: Path) -> None:
    label = np.full((8, 8, 2), 255, np.uint16)
    label[0] = 1
    assert Preprocess(2, None, None, "volume", None).label(load(tmp_path, label, MANY)).dtype == torch.uint8


@pytest.mark.parametrize("largest", ["none", "all"])
def test_class_300_is_predicted_and_written_as_300(tmp_path: Path, largest: str) -> None:
    run = untrained(tmp_path / "run", "network.name=tests.models.untrained:last_class", *FLAT_OPTIONS, classes=MANY)
    scan = write_nifti(tmp_path / "scan.nii.gz", image_array(shape=(16, 24, 2)))
    (out,) = predict(run, scan, tmp_path / "out.nii.gz", device="cpu", largest_component=largest).written
    assert np.unique(np.asarray(nib.Nifti1Image.from_filename(out).dataobj)).tolist() == [300]


FLAT_OPTIONS = ("data.dims=2", "data.patch=[16,24]", "contrast.grid=[2,2]")


def test_large_values_that_are_not_contiguous(tmp_path: Path) -> None:
    label = np.zeros((8, 8, 2), np.int32)
    label[1], label[2] = 70_000, 2**31 - 1
    volume = load(tmp_path, label, {70_000: "a", 2**31 - 1: "b"})
    assert np.unique(volume.label).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "rule", "got"),
    [
        ({str(2**31): "a"}, f"label values are at most {2**31 - 1}", str(2**31)),
        ({f"s{i}": i for i in range(1, MOST_CLASSES + 2)}, f"at most {MOST_CLASSES} structures", "32767"),
    ],
)
def test_more_than_can_be_written_is_refused_at_the_description(
    tmp_path: Path, labels: dict[str, Any], rule: str, got: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_data_set(write_set(tmp_path, labels=labels))
    assert (caught.value.rule, caught.value.got) == (rule, got)


def test_structures_are_told_from_intensities() -> None:
    parcels = (np.arange(64 * 64).reshape(64, 64) // 256 + 1).astype(np.int16)  # 16 structures
    assert not looks_like_intensities(parcels)
    assert not looks_like_intensities(image_array() % 5)  # few values are structures, however they lie
    assert looks_like_intensities(image_array())
    assert looks_like_intensities(image_array(shape=(40, 40)) // 30)  # quantised
