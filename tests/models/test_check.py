# SPDX-License-Identifier: Apache-2.0
"""The check reports every fault that is planted in a data set, with its file, and none in good data."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from secl_models.data.cases import Case, DataSet
from secl_models.data.check import check_data_set
from secl_models.data.layouts import read_data_set
from secl_models.data.phantom import write_phantom
from secl_models.data.preprocess import resolve
from secl_models.data.splits import make_split
from secl_models.data.volumes import load_volume
from secl_models.options.schema import load_preset, override
from secl_models.train import warnings
from secl_models.train.warnings import notes_on


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return write_phantom(tmp_path / "set", cases=4, labeled=3, size=(32, 32, 6))


def rewrite(path: Path, change: Callable[[Any], Any], shift: float = 0.0) -> None:
    """Store changed voxels, with the world moved by `shift` mm."""
    image: Any = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), affine), path)


def with_value(array: Any, value: float) -> Any:
    changed = array.astype(np.float32)
    changed[0, 0, 0] = value
    return changed


def label_of(case: Case) -> Path:
    assert case.label is not None
    return case.label


def test_good_data_has_no_faults(data: DataSet) -> None:
    assert check_data_set(data) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def no_change(array: Any) -> Any:
    return array


@pytest.mark.parametrize(
    ("which", "plant", "rule"),
    [
        ("image", truncate, "the file can be read to its end"),
        ("image", lambda path: path.unlink(), "the file exists"),
        (
            "image",
            lambda path: rewrite(path, lambda a: with_value(a, np.nan)),
            "intensities are finite float32 numbers",
        ),
        ("label", truncate, "the file can be read to its end"),
        ("label", lambda path: rewrite(path, lambda a: with_value(a, 9)), "label values are among 0, 1, 2, 3"),
        ("label", lambda path: rewrite(path, lambda a: with_value(a, 0.5)), "label values are among 0, 1, 2, 3"),
        ("label", lambda path: rewrite(path, lambda a: a[1:]), "the shape is that of phantom_002.nii.gz"),
        ("label", lambda path: rewrite(path, no_change, shift=3.0), "the affine is that of phantom_002.nii.gz"),
    ],
)
def test_each_planted_error_is_named_with_its_file(
    data: DataSet, which: str, plant: Callable[[Path], None], rule: str
) -> None:
    path = data.cases[1].image[0] if which == "image" else label_of(data.cases[1])
    plant(path)
    (fault,) = check_data_set(data)
    assert (fault.file, fault.rule, fault.severity) == (str(path), rule, "error")


def test_the_first_fault_does_not_hide_the_others(data: DataSet) -> None:
    truncate(data.cases[0].image[0])
    rewrite(data.cases[1].image[0], lambda a: with_value(a, np.inf))
    rewrite(label_of(data.cases[1]), lambda a: with_value(a, 9))
    rewrite(label_of(data.cases[2]), lambda a: a * 0)
    found = [
        (Path(fault.file).parent.name, Path(fault.file).name[:11], fault.severity) for fault in check_data_set(data)
    ]
    assert found[:4] == [
        ("imagesTr", "phantom_001", "error"),
        ("imagesTr", "phantom_002", "error"),
        ("labelsTr", "phantom_002", "error"),
        ("labelsTr", "phantom_003", "warning"),
    ]


def test_empty_label_flat_image_and_absent_class_are_warnings(data: DataSet) -> None:
    rewrite(label_of(data.cases[0]), lambda a: a * 0)
    rewrite(data.cases[3].image[0], lambda a: a * 0 + 5)
    faults = check_data_set(replace(data, classes={**data.classes, 4: "tumour"}))
    assert [(fault.got, fault.severity) for fault in faults] == [
        ("an empty label", "warning"),
        ("one intensity everywhere", "warning"),
        ("no voxel of 4 (tumour)", "warning"),
    ]


def test_a_patient_in_two_splits(data: DataSet) -> None:
    placed = zip(data.cases, ("train", "test", "val", "train"), strict=True)
    cases = tuple(replace(each, patient="p", split=split) for each, split in placed)
    (fault,) = check_data_set(replace(data, cases=cases))
    assert (fault.file, fault.rule) == ("patient p", "a patient is in one split only")
    assert "phantom_002 in test" in fault.got


def test_empty_slices_are_usual_unless_all_of_a_patient_are(tmp_path: Path) -> None:
    cases: list[Case] = []
    for name, patient, value in (("a1", "a", 0), ("a2", "a", 1), ("b1", "b", 0), ("b2", "b", 0)):
        ramp = np.arange(16, dtype=np.int16).reshape(4, 4) + len(cases)
        for kind, array in (("image", ramp), ("label", np.full((4, 4), value, np.uint8))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}_{kind}.nii")
        cases.append(Case(name, patient, (tmp_path / f"{name}_image.nii",), tmp_path / f"{name}_label.nii", None))
    faults = check_data_set(DataSet(tmp_path, "csv", {1: "x"}, ("MRI",), tuple(cases)))
    assert [Path(fault.file).name for fault in faults] == ["b1_label.nii", "b2_label.nii"]


def test_progress_and_choice_of_cases(data: DataSet) -> None:
    seen: list[tuple[int, int]] = []
    truncate(data.cases[3].image[0])
    assert check_data_set(data, data.cases[:2], lambda done, total: seen.append((done, total))) == []
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct", "acdc"])
def test_real_sets_are_without_fault(real_data: Path, name: str) -> None:
    data = read_data_set(real_data / name)
    split = make_split(data, 1, 0)
    assert check_data_set(data, (*split.labeled, *split.val)) == []


@pytest.mark.parametrize("kind", ["copied", "packed anew", "as float"])
def test_one_image_under_two_patients(data: DataSet, kind: str) -> None:
    first, last = data.cases[0].image[0], data.cases[3].image[0]
    if kind == "copied":
        last.write_bytes(first.read_bytes())
    elif kind == "packed anew":
        last.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 1))
    else:
        stored: Any = nib.load(first)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj).astype(np.float32), stored.affine), last)
    (fault,) = check_data_set(data)
    assert (fault.file, fault.rule, fault.severity) == (str(last), "an image belongs to one patient", "error")
    assert fault.got == f"the voxels of {first}, patients phantom_001 and phantom_004"


def test_equal_images_of_one_part_or_one_patient_are_warnings(data: DataSet) -> None:
    """Patients 74 and 76 of the SSL4MIS slices are one, and both are trained on."""
    for number in (2, 3):
        data.cases[number].image[0].write_bytes(data.cases[number - 2].image[0].read_bytes())
    label_of(data.cases[2]).write_bytes(label_of(data.cases[0]).read_bytes())
    trained = replace(data, cases=tuple(replace(case, split="train") for case in data.cases))
    assert [(fault.rule, fault.severity) for fault in check_data_set(trained)] == [
        ("an image belongs to one patient", "warning"),
        ("an image belongs to one patient", "warning"),
        ("a label belongs to one patient", "warning"),
    ]
    apart = zip(data.cases, ("train", "train", "test", "train"), strict=True)
    tested = replace(data, cases=tuple(replace(case, split=split) for case, split in apart))
    assert [fault.severity for fault in check_data_set(tested)] == ["error", "warning", "warning"]
    one = replace(data, cases=tuple(replace(case, patient="p") for case in data.cases))
    (fault,) = check_data_set(one)
    assert (fault.rule, fault.severity) == ("a patient has each image once", "warning")
    assert fault.got.endswith(", and 1 more images of theirs")


def test_images_of_one_intensity_are_not_taken_for_copies(data: DataSet) -> None:
    for case in data.cases[2:]:
        rewrite(case.image[0], lambda a: a * 0)
    assert [fault.got for fault in check_data_set(data)] == ["one intensity everywhere"] * 2


def tilted(degrees: float) -> Any:
    tilt = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]]
    return affine @ np.diag([1.5, 1.5, 8, 1])


@pytest.mark.parametrize(("degrees", "warned"), [(40, False), (50, True)])
def test_a_stack_whose_slices_are_cut_across_is_said(data: DataSet, degrees: float, warned: bool) -> None:
    for case in data.cases:
        for path in (case.image[0], *([case.label] if case.label else [])):
            stored: Any = nib.load(path)
            affine = tilted(degrees if case is data.cases[1] else 0)
            nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), path)
    faults = check_data_set(data)
    assert [(fault.file, fault.severity) for fault in faults] == [(str(data.cases[1].image[0]), "warning")] * warned
    split = make_split(data, 1, 0)
    volumes = [load_volume(case, data) for case in data.cases]
    config = resolve(override(load_preset("demo"), ["data.orientation=[]"]), data, volumes)
    notes = notes_on(config, config, volumes, [], split.val, data.classes)
    assert any(note.startswith("1 stacks, phantom_002 first, are cut across") for note in notes) is warned


@pytest.mark.parametrize(
    ("precision", "flags", "said"),
    [
        ("bf16-mixed", {"avx2"}, True),
        ("bf16-mixed", {"avx512_bf16"}, False),
        ("bf16-mixed", set(), False),  # a system that does not tell
        ("32-true", {"avx2"}, False),
    ],
)
def test_bf16_that_a_processor_lacks_is_said(
    precision: str, flags: set[str], said: bool, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "instructions", lambda: frozenset(flags))
    volumes = [load_volume(data.cases[0], data)]
    options = ["data.orientation=[]", "train.device=cpu", f"train.precision={precision}"]
    config = resolve(override(load_preset("demo"), options), data, volumes)
    notes = notes_on(config, config, volumes, [], (), data.classes)
    assert any(note.startswith("This processor has no bf16") for note in notes) is said


@pytest.mark.parametrize(("patients", "whom"), [(1, "one patient"), (2, "2 patients"), (3, None)])
def test_a_validation_on_few_patients_is_said(patients: int, whom: str | None, data: DataSet) -> None:
    volumes = [load_volume(data.cases[0], data)]
    config = resolve(override(load_preset("demo"), ["data.orientation=[]"]), data, volumes)
    notes = notes_on(config, config, volumes, [], data.cases[:patients], data.classes)
    said = [note for note in notes if note.startswith("Validation is on ")]
    assert [note.startswith(f"Validation is on {whom} alone: ") for note in said] == [True] * (whom is not None)


def test_a_label_copied_to_another_patient_is_said(data: DataSet) -> None:
    stored: Any = nib.load(label_of(data.cases[0]))
    rewrite(label_of(data.cases[2]), lambda a: np.asarray(stored.dataobj))
    (fault,) = check_data_set(data)
    assert (fault.file, fault.severity) == (str(data.cases[2].label), "warning")
    assert fault.got == f"the voxels of {data.cases[0].label}"
    one = replace(data, cases=tuple(replace(case, patient="p") for case in data.cases))
    assert check_data_set(one) == []  # two images with one outline
    for case in data.cases[:3]:
        rewrite(label_of(case), lambda a: a * 0)
    assert {fault.got for fault in check_data_set(data)} >= {"an empty label"}
    assert not [fault for fault in check_data_set(data) if "belongs" in fault.rule]
