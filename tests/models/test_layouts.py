# SPDX-License-Identifier: Apache-2.0
"""The three layouts are recognised, and what is wrong with a folder is said with the file's name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from secl_models.data.cases import DataSet
from secl_models.data.layouts import read_data_set
from secl_models.data.tables import write_table
from secl_models.inference.evaluations import Evaluation, save_evaluations
from secl_models.inference.metrics import CaseScores
from secl_models.options.errors import InputError
from secl_models.report.comparison_rows import ScoreRow
from secl_models.report.suggestions import SuggestionRow


def write_nifti(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4)), path)
    return path


def write_decathlon(root: Path, info: dict[str, Any], images: list[str], labels: list[str]) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in images:
        write_nifti(root / name, np.zeros((4, 4, 3), np.int16))
    for name in labels:
        write_nifti(root / "labelsTr" / name, np.ones((4, 4, 3), np.uint8))
    (root / "dataset.json").write_text(json.dumps(info))
    return root


def write_ssl4mis(root: Path, label: int = 3) -> Path:
    (root / "data" / "slices").mkdir(parents=True)
    lists = {
        "train_slices.list": ["patient009_frame01_slice_2", "patient002_frame01_slice_1", "patient009_frame02_slice_1"],
        "val.list": ["patient004_frame01"],
        "test.list": ["patient005_frame01"],
    }
    for name, entries in lists.items():
        (root / name).write_text("\n".join(entries) + "\n\n")
        for entry in entries:
            folder, shape = ("data/slices", (4, 5)) if name.startswith("train") else ("data", (3, 4, 5))
            with h5py.File(root / folder / f"{entry}.h5", "w") as file:
                file["image"] = np.zeros(shape, np.float32)
                file["label"] = np.full(shape, label, np.uint8)
                file["label"][(0,) * len(shape)] = 1
    return root


def write_csv(root: Path, rows: list[str], header: str = "image,label,patient,split") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def names(data: DataSet) -> list[str]:
    return [case.name for case in data.cases]


DECATHLON = {"modality": {"0": "MRI"}, "labels": {"0": "background", "2": "Posterior", "1": "Anterior"}}
NNUNET = {"channel_names": {"1": "LGE", "0": "T2"}, "labels": {"background": 0, "edema": 200, "scar": 600}}


def test_decathlon_pairs_images_with_labels_and_leaves_the_rest_unlabelled(tmp_path: Path) -> None:
    images = ["imagesTr/a.nii.gz", "imagesTr/b.nii", "imagesTr/._a.nii.gz", "imagesUn/u.nii.gz", "imagesTs/t.nii.gz"]
    data = read_data_set(write_decathlon(tmp_path, DECATHLON, images, ["a.nii.gz"]))
    assert (data.layout, list(data.classes.items())) == ("decathlon", [(1, "Anterior"), (2, "Posterior")])
    assert names(data) == ["a", "b", "u"]
    assert [case.label for case in data.cases] == [tmp_path / "labelsTr/a.nii.gz", None, None]
    assert all(case.patient == case.name and case.split is None for case in data.cases)


def test_nnunet_has_one_file_per_channel_and_names_before_values(tmp_path: Path) -> None:
    images = [f"imagesTr/{case}_000{channel}.nii.gz" for case in ("x_1", "x_2") for channel in (0, 1)]
    data = read_data_set(write_decathlon(tmp_path, NNUNET, images, ["x_1.nii.gz"]))
    assert data.classes == {200: "edema", 600: "scar"}
    assert data.modality == ("T2", "LGE")
    assert [[path.name for path in case.image] for case in data.cases] == [
        ["x_1_0000.nii.gz", "x_1_0001.nii.gz"],
        ["x_2_0000.nii.gz", "x_2_0001.nii.gz"],
    ]
    assert [case.label is not None for case in data.cases] == [True, False]


@pytest.mark.parametrize(
    ("left", "channels"), [((0, 2), "x_2_0000.nii.gz, x_2_0002.nii.gz"), ((1,), "x_2_0001.nii.gz")]
)
def test_a_channel_does_not_take_the_place_of_one_that_is_missing(
    tmp_path: Path, left: tuple[int, ...], channels: str
) -> None:
    images = ["imagesTr/x_1_0000.nii.gz", "imagesTr/x_1_0001.nii.gz", *(f"imagesTr/x_2_000{n}.nii.gz" for n in left)]
    with pytest.raises(InputError, match="numbered from 0000, without a gap") as caught:
        read_data_set(write_decathlon(tmp_path, NNUNET, images, []))
    assert caught.value.got == channels


def test_decathlon_names_of_four_digits_are_not_taken_for_channels(tmp_path: Path) -> None:
    data = read_data_set(write_decathlon(tmp_path, DECATHLON, ["imagesTr/c_0001.nii.gz"], ["c_0001.nii.gz"]))
    assert names(data) == ["c_0001"]


def test_ssl4mis_keeps_the_order_of_its_lists_and_reads_patients_from_names(tmp_path: Path) -> None:
    data = read_data_set(write_ssl4mis(tmp_path))
    assert [case.patient for case in data.cases] == [f"patient00{n}" for n in (9, 2, 9, 4, 5)]
    assert [case.split for case in data.cases] == ["train"] * 3 + ["val", "test"]
    assert data.cases[0].image == (tmp_path / "data/slices/patient009_frame01_slice_2.h5",)
    assert data.classes == {1: "right ventricle", 3: "left ventricle"}


def test_ssl4mis_names_values_it_does_not_know(tmp_path: Path) -> None:
    assert read_data_set(write_ssl4mis(tmp_path, label=7)).classes == {1: "right ventricle", 7: "structure 7"}


def test_csv_paths_are_relative_and_channels_are_separated_by_semicolons(tmp_path: Path) -> None:
    for name in ("a/t1", "a/t2", "b/t1", "b/t2"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 3), np.int16))
    write_nifti(tmp_path / "a/seg.nii.gz", np.full((4, 4, 3), 500, np.int16))
    rows = ["a/t1.nii.gz; a/t2.nii.gz,a/seg.nii.gz,anna,val", "b/t1.nii.gz;b/t2.nii.gz,,bert,"]
    data = read_data_set(write_csv(tmp_path, rows))
    assert names(data) == ["anna_t1", "bert_t1"]
    assert [case.split for case in data.cases] == ["val", None]
    assert data.cases[0].image == (tmp_path / "a/t1.nii.gz", tmp_path / "a/t2.nii.gz")
    assert (data.classes, data.modality) == ({500: "structure 500"}, ("unknown", "unknown"))
    assert read_data_set(tmp_path / "data.csv") == data


def test_csv_takes_names_from_a_dataset_json_beside_it(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 3), np.int16))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"tumour": 1}, "modality": {"0": "CT"}}))
    data = read_data_set(write_csv(tmp_path, ["a.nii.gz,,anna,"]))
    assert (data.classes, data.modality) == ({1: "tumour"}, ("CT",))


@pytest.mark.parametrize("layout", ["decathlon", "ssl4mis"])
@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("image,label,patient,split", "ascii"),
        ("Image; Label; Patient; Split; Age", "utf-8-sig"),
        ("image,label,patient,split,größe", "latin-1"),
    ],
)
def test_a_table_of_cases_beside_another_list_of_them(tmp_path: Path, layout: str, header: str, encoding: str) -> None:
    """It would say in vain who is whose patient."""
    if layout == "decathlon":
        other = "dataset.json"
        write_decathlon(tmp_path, DECATHLON, ["imagesTr/a.nii.gz"], ["a.nii.gz"])
    else:
        other = "train_slices.list"
        write_ssl4mis(tmp_path)
    table = tmp_path / "cases.csv"
    table.write_text(f"{header}\n", encoding)
    with pytest.raises(InputError) as refusal:
        read_data_set(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: a folder lists its cases once; got {other} and cases.csv. "
        f"Cure: name the table, `--data {table}`, or move it away."
    )
    table.unlink()
    assert read_data_set(tmp_path).layout == layout


def test_tables_of_something_else_lie_beside_any_layout(tmp_path: Path) -> None:
    write_decathlon(tmp_path, DECATHLON, ["imagesTr/a.nii.gz"], ["a.nii.gz"])
    alone = read_data_set(tmp_path)
    write_table(tmp_path / "suggest.csv", SuggestionRow, [])
    write_table(tmp_path / "scores.csv", ScoreRow, [])
    save_evaluations([Evaluation("last", "test", (CaseScores("anna", "a", ()),), 1.0, 1)], tmp_path, pair=True)
    (tmp_path / "ages.csv").write_text("patient,age\nanna,50\n")
    (tmp_path / "broken.csv").write_text('image,label,patient,split,"' + "x" * (csv.field_size_limit() + 1))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    assert read_data_set(tmp_path) == alone


def test_csv_written_by_a_spreadsheet_starts_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 3), np.int16))
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfimage,label,patient,split\r\na.nii.gz,,anna,\r\n")
    assert names(read_data_set(tmp_path)) == ["a"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: the data folder exists"):
        read_data_set(tmp_path / "gone")


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder or a \.csv file"):
        read_data_set(write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.int16)))


def test_no_layout_says_what_each_of_the_three_lacks(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "val.list").write_text("x\n")
    with pytest.raises(InputError) as caught:
        read_data_set(tmp_path)
    assert caught.value.got == (
        "Decathlon lacks dataset.json, labelsTr; SSL4MIS lacks train_slices.list, test.list; "
        "CSV needs one table, there are 0"
    )


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "one whole number"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "above 0 that is no structure"),
        ({"labels": {"background": 0}}, "different values above 0"),
        ({"labels": {"a": 1, "b": 1}}, "different values above 0"),
        ({"labels": {"a": -1}}, "different values above 0"),
        ({}, "one whole number"),
        ({"labels": {"1": "a"}, "modality": ["MRI"]}, "channels are numbered"),
        ({"labels": {"1": "a"}, "training": [{"image": "./imagesTr/z.nii.gz"}]}, "each image of `training` exists"),
        ({"labels": {"1": "a"}, "training": [{"image": "a.nii.gz", "label": "z.nii.gz"}]}, "each label of `training`"),
    ],
)
def test_faults_of_dataset_json_name_it(tmp_path: Path, info: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_data_set(write_decathlon(tmp_path, info, ["imagesTr/a.nii.gz"], ["a.nii.gz"]))
    assert caught.value.what == str(tmp_path / "dataset.json")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_dataset_json_that_is_no_object(tmp_path: Path, text: str) -> None:
    write_decathlon(tmp_path, {}, ["imagesTr/a.nii.gz"], [])
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="JSON"):
        read_data_set(tmp_path)


def test_label_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"z\.nii\.gz: each label has an image"):
        read_data_set(write_decathlon(tmp_path, DECATHLON, ["imagesTr/a.nii.gz"], ["z.nii.gz"]))


def test_no_images_and_equal_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one image"):
        read_data_set(write_decathlon(tmp_path / "none", DECATHLON, [], []))
    with pytest.raises(InputError, match="own name; got a in imagesTr and imagesUn"):
        read_data_set(write_decathlon(tmp_path / "twice", DECATHLON, ["imagesTr/a.nii.gz", "imagesUn/a.nii.gz"], []))


def test_nnunet_image_without_channel_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CASE_0000"):
        read_data_set(write_decathlon(tmp_path, NNUNET, ["imagesTr/a.nii.gz"], []))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one file"),
        ("patient004_frame01\npatient004_frame01\n", "patient004_frame01 twice"),
        ("patient004_frame01\npatient777_frame01\n", "1 of 2 missing, the first is .*patient777_frame01.h5"),
    ],
)
def test_faults_of_a_list_name_it(tmp_path: Path, text: str, message: str) -> None:
    write_ssl4mis(tmp_path)
    (tmp_path / "val.list").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_data_set(tmp_path)
    assert caught.value.what == str(tmp_path / "val.list")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("image,label,pateint,split", "a.nii.gz,,anna,", "without patient"),
        ("image|label|patient|split", "a.nii.gz||anna|", "separated by commas"),
        ("image,label,patient,split", "a.nii.gz,,,", "line 2: each row has an image and a patient"),
        ("image,label,patient,split", "a.nii.gz,,anna,valid", "line 2: split is train, val, test or empty"),
        ("image,label,patient,split", "b.nii.gz,,anna,", "line 2: each file of the table exists; got .*b.nii.gz"),
    ],
)
def test_faults_of_a_table_name_the_line(tmp_path: Path, header: str, row: str, message: str) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 3), np.int16))
    with pytest.raises(InputError, match=message):
        read_data_set(write_csv(tmp_path, [row], header))


def test_table_in_another_encoding_and_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("image,label,patient,split\n\xe4.nii.gz,,a,\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_data_set(tmp_path)
    with pytest.raises(InputError, match="at least one image"):
        read_data_set(write_csv(tmp_path / "empty", []))


@pytest.mark.parametrize(("name", "cases", "labels"), [("hippocampus", 260, 260), ("sarcoma_ct", 12, 12)])
def test_real_decathlon_sets(real_data: Path, name: str, cases: int, labels: int) -> None:
    data = read_data_set(real_data / name)
    assert (data.layout, len(data.cases)) == ("decathlon", cases)
    assert sum(case.label is not None for case in data.cases) == labels


def test_real_ssl4mis_set(real_data: Path) -> None:
    data = read_data_set(real_data / "acdc")
    assert data.classes == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    assert [sum(case.split == split for case in data.cases) for split in ("train", "val", "test")] == [1312, 20, 40]
    assert len({case.patient for case in data.cases}) == 100


def test_frames_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    frames = [f"patient{number:03d}_frame{frame:02d}" for number in (1, 2) for frame in (1, 12)]
    labels = [f"{name}.nii.gz" for name in frames]
    images = [f"imagesTr/{name}" for name in labels]
    root = write_decathlon(tmp_path / "d", {"labels": {"1": "a"}, "modality": {"0": "MRI"}}, images, labels)
    assert {case.patient for case in read_data_set(root).cases} == {"patient001", "patient002"}


@pytest.mark.parametrize("labels", [{"1": "tumour", "2": "tumour"}, {"1": "mean"}])
def test_structure_names_tell_the_structures_apart(tmp_path: Path, labels: dict[str, str]) -> None:
    root = write_decathlon(
        tmp_path / "d", {"labels": labels, "modality": {"0": "CT"}}, ["imagesTr/a.nii.gz"], ["a.nii.gz"]
    )
    with pytest.raises(InputError, match="structures have different names, none of them `mean`"):
        read_data_set(root)


def test_a_data_set_that_is_called_as_any_is_called_by_the_folder_around_too(tmp_path: Path) -> None:
    names = {}
    for hospital, table in (("A", "data.csv"), ("B", "data.csv"), ("C", "hearts.csv")):
        (tmp_path / hospital).mkdir()
        file = tmp_path / hospital / table
        file.touch()
        names[hospital] = DataSet(file, "csv", {1: "a"}, ("MR",), ()).name
    assert names == {"A": "A/data", "B": "B/data", "C": "hearts"}
    assert DataSet(tmp_path / "A", "decathlon", {1: "a"}, ("MR",), ()).name == "A"
