# SPDX-License-Identifier: Apache-2.0
"""A table whose cells name the wrong files is refused with the line, before anything is trained on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from secl_models.data.layouts import read_data_set
from secl_models.options.errors import InputError
from tests.models.files import image_array, label_array, write_nifti, write_set, write_table

GOOD = [f"imagesTr/c_{i}.nii.gz,labelsTr/c_{i}.nii.gz,p{i}," for i in range(3)]


def refusal(root: Path, rows: list[str]) -> InputError:
    table = write_table(root, rows)
    with pytest.raises(InputError) as caught:
        read_data_set(table)
    return caught.value


def test_a_good_table(tmp_path: Path) -> None:
    data = read_data_set(write_table(write_set(tmp_path), GOOD))
    assert (len(data.cases), data.classes) == (3, {1: "structure 1", 2: "structure 2"})


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_as_a_spreadsheet_saves_it(tmp_path: Path, between: str, end: str) -> None:
    """With its own separator, names as they were typed, and rows that were emptied."""
    write_table(write_set(tmp_path), [])
    rows = ["Image,Label,Patient,Split,Age", *(f"{row}Train,{n}" for n, row in enumerate(GOOD)), ",,,,", ""]
    (tmp_path / "data.csv").write_text(end.join(rows).replace(",", between), encoding="utf-8-sig", newline="")
    data = read_data_set(tmp_path / "data.csv")
    assert [(case.name, case.patient, case.split) for case in data.cases] == [
        (f"c_{n}", f"p{n}", "train") for n in range(3)
    ]


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    """The empty one would win."""
    table = write_table(write_set(tmp_path), [f"{row}," for row in GOOD])
    table.write_text(table.read_text().replace("split", "split,label", 1))
    with pytest.raises(InputError, match="each column stands once; got 2 columns label"):
        read_data_set(table)


def test_cells_that_no_column_names(tmp_path: Path) -> None:
    fault = refusal(write_set(tmp_path), [*GOOD[:2], f"{GOOD[2]}train,test"])
    assert (fault.what, fault.got) == (f"{tmp_path / 'data.csv'}, line 4", "'test' behind")
    assert len(read_data_set(write_table(tmp_path, [f"{row},,," for row in GOOD])).cases) == 3


@pytest.mark.parametrize("link", ["same", "dots", "symbolic", "hard"])
def test_one_image_under_two_patients(tmp_path: Path, link: str) -> None:
    root = write_set(tmp_path)
    image, path = root / "imagesTr" / "c_0.nii.gz", "imagesTr/again.nii.gz"
    if link == "symbolic":
        (root / path).symlink_to(image)
    elif link == "hard":
        os.link(image, root / path)
    else:
        path = {"same": "imagesTr/c_0.nii.gz", "dots": "imagesTr/../imagesTr/c_0.nii.gz"}[link]
    fault = refusal(root, [*GOOD, f"{path},,other,test"])
    assert fault.what == f"{root / 'data.csv'}, line 5"
    assert (fault.rule, fault.got) == ("an image belongs to one case", f"{root / path}, as in line 2")


def test_one_image_twice_in_a_row(tmp_path: Path) -> None:
    fault = refusal(write_set(tmp_path), ["imagesTr/c_0.nii.gz;imagesTr/c_0.nii.gz,,p,"])
    assert fault.rule == "an image belongs to one case"


def test_one_label_under_two_patients(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    same = "imagesTr/c_1.nii.gz,labelsTr/c_0.nii.gz"
    assert refusal(root, [GOOD[0], f"{same},p1,"]).rule == "a label belongs to one patient"
    assert len(read_data_set(write_table(root, [GOOD[0], f"{same},p0,"])).cases) == 2  # two sequences, one outline


def test_labels_that_are_images_by_name(tmp_path: Path) -> None:
    fault = refusal(write_set(tmp_path), [row.replace("labelsTr", "imagesTr") for row in GOOD])
    assert (fault.what[-6:], fault.rule) == ("line 2", "a label is not an image")


def test_labels_that_are_images_by_content(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    shutil.copy(root / "imagesTr" / "c_0.nii.gz", root / "labelsTr" / "c_0.nii.gz")
    fault = refusal(root, GOOD)
    assert fault.what == str(root / "labelsTr" / "c_0.nii.gz")
    assert fault.got.startswith("156 values in this file")


def test_labels_that_hold_nothing(tmp_path: Path) -> None:
    write_set(tmp_path)
    for file in (tmp_path / "labelsTr").iterdir():
        write_nifti(file, 0 * label_array())
    table = write_table(tmp_path, [f"imagesTr/c_{n}.nii.gz,labelsTr/c_{n}.nii.gz,p{n}," for n in range(3)])
    with pytest.raises(
        InputError, match=r"c_0\.nii\.gz: labels hold structures.*; got 0 alone in this one and 2 others"
    ):
        read_data_set(table)


def test_structures_are_counted_against_the_bound(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    many = np.kron(np.arange(1, 129, dtype=np.int16).reshape(16, 8, 1), np.ones((4, 4, 1), np.int16))
    for number in range(3):
        write_nifti(root / "labelsTr" / f"c_{number}.nii.gz", many + 128 * number)
        write_nifti(root / "imagesTr" / f"c_{number}.nii.gz", image_array(number, many.shape))
    assert len(read_data_set(write_table(root, GOOD[:1])).classes) == 128
    fault = refusal(root, GOOD[:2])
    assert fault.rule == "labels hold structures, at most 255 where no dataset.json names them"
    assert fault.got.startswith("128 values in this file, 256 so far")


@pytest.mark.parametrize("cell", ["a" * 5000, "a\0b", ".."])
def test_names_that_no_file_can_have(tmp_path: Path, cell: str) -> None:
    assert refusal(write_set(tmp_path), [f"{cell},,p,"]).rule in ("each file of the table exists", "the table is CSV")


def test_a_cell_that_never_ends(tmp_path: Path) -> None:
    fault = refusal(write_set(tmp_path), ['"' + "a" * 200_000])
    assert fault.rule == "the table is CSV"


def test_a_label_is_not_the_image_in_any_layout(tmp_path: Path) -> None:
    from secl_models.data.check import check_data_set

    root = write_set(tmp_path)
    write_nifti(root / "imagesTr" / "c_1.nii.gz", label_array(seed=1))  # a segmentation where the image should be
    (fault,) = check_data_set(read_data_set(root))
    assert (fault.file, fault.rule) == (str(root / "labelsTr" / "c_1.nii.gz"), "a label is not the image itself")
