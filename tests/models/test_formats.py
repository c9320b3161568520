# SPDX-License-Identifier: Apache-2.0
"""No image of a folder is silently no case: it is read, or it is named with what to do."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from secl_models.data.check import check_data_set
from secl_models.data.layouts import read_data_set
from secl_models.inference.images import find_images
from secl_models.options.errors import InputError
from tests.models.files import AFFINE, image_array, write_nifti, write_set
from tests.models.test_layouts import write_ssl4mis


def refusal(root: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_data_set(root)
    return caught.value


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("twin", ["c_0.nii", "c_0.NII.GZ", "c_0.img"])
def test_twins_are_refused_wherever_they_lie(tmp_path: Path, folder: str, twin: str) -> None:
    root = write_set(tmp_path)
    (root / folder / twin).write_bytes(b"")
    fault = refusal(root)
    assert fault.rule == "one file for each image or label"
    assert sorted(fault.got.split(" beside ")) == sorted(["c_0.nii.gz", twin])


def test_other_suffixes_are_cases_too(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "c_0.nii.gz").rename(root / folder / "c_0.NII.GZ")
    nib.Nifti1Pair(image_array(9), AFFINE).to_filename(root / "imagesTr" / "c_9.img")
    data = read_data_set(root)
    assert [case.image[0].name for case in data.cases] == ["c_0.NII.GZ", "c_1.nii.gz", "c_2.nii.gz", "c_9.img"]
    assert [case.label is not None for case in data.cases] == [True, True, True, False]
    assert check_data_set(data) == []


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("c_7.mha", "SimpleITK.WriteImage(SimpleITK.ReadImage('c_7.mha'), 'c_7.nii.gz')"),
        ("c_7.nrrd", "SimpleITK"),
        ("c_7.NHDR", "SimpleITK"),
        ("c_7.mgz", "SimpleITK"),
        ("c_7.png", "SimpleITK"),
        ("c_7.h5", "SimpleITK"),
        ("c_7.nii.bz2", "pack it as .nii.gz"),
        ("c_7.dcm", "dcm2niix"),
    ],
)
@pytest.mark.parametrize("folder", ["imagesTr", "imagesUn", "labelsTr"])
def test_a_format_that_is_not_read_is_named(tmp_path: Path, folder: str, name: str, cure: str) -> None:
    root = write_set(tmp_path)
    (root / folder).mkdir(exist_ok=True)
    (root / folder / name).write_bytes(b"x")
    fault = refusal(root)
    assert (fault.what, fault.got) == (str(root / folder / name), name)
    assert cure in fault.cure


def test_dicom_slices_are_known_without_a_suffix_and_in_folders(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    slices = root / "imagesTr" / "patient_7"
    slices.mkdir()
    assert len(read_data_set(root).cases) == 3  # an empty folder is nobody's case
    (slices / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    assert refusal(root).what == str(slices)
    (slices / "IM0001").rename(root / "imagesTr" / "1.2.840.113")
    assert refusal(root).what == str(root / "imagesTr" / "1.2.840.113")


def test_a_converted_image_may_stay_beside_its_origin_and_notes_are_no_images(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for name in ("c_0.mha", "c_0.json", "README.txt", ".DS_Store"):
        (root / "imagesTr" / name).write_text("x")
    assert len(read_data_set(root).cases) == 3


@pytest.mark.parametrize("name", ["c_7.gz", "c_7.nii (1).gz", "c_7.nii.gz.1", "c_7.nii.gz.part", "c_7.nii_old", "c_7"])
@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_an_image_is_known_whatever_was_put_behind_its_name(tmp_path: Path, folder: str, name: str) -> None:
    root = write_set(tmp_path)
    suffix = ".nii.gz" if "gz" in name else ".nii"
    write_nifti(tmp_path / f"x{suffix}", image_array(7)).rename(root / folder / name)
    fault = refusal(root)
    assert (fault.what, fault.got) == (str(root / folder / name), name)
    assert "end its name in .nii.gz" in fault.cure


def test_backups_and_archives_are_no_cases(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for name in ("c_0.nii.gz~", "c_0.nii.gz.bak", "c_1.nii.gz.orig"):
        shutil.copy(root / "imagesTr" / "c_2.nii.gz", root / "imagesTr" / name)
    (root / "imagesTr" / "all.tar.gz").write_bytes(gzip.compress(bytes(2048)))
    assert len(read_data_set(root).cases) == 3


def test_images_to_predict_are_found_by_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.mha: images are .* SimpleITK"):
        find_images(tmp_path, 1)
    nib.Nifti1Pair(image_array(), AFFINE).to_filename(tmp_path / "b.img")
    write_nifti(tmp_path / "c.nii.gz", image_array()).rename(tmp_path / "c.NII.GZ")
    assert [(case.name, case.image[0].name) for case in find_images(tmp_path, 1)] == [("b", "b.img"), ("c", "c.NII.GZ")]


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_a_name_that_is_no_utf_8_is_refused_by_its_bytes(tmp_path: Path, folder: str) -> None:
    root = write_set(tmp_path)
    os.rename(root / folder / "c_2.nii.gz", os.fsencode(root / folder) + b"/c_\xe9.nii.gz")
    fault = refusal(root)
    assert (fault.what, fault.rule) == (f"{root}/{folder}/c_\\xe9.nii.gz", "names of files are UTF-8")
    str(fault).encode()  # can be printed


def test_a_folder_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    write_set(root)
    assert refusal(root).what == f"{tmp_path}/d\\xe9"
    with pytest.raises(InputError, match="names of files are UTF-8"):
        find_images(Path(os.fsdecode(os.fsencode(root) + b"/imagesTr")), 1)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    root = write_set(tmp_path / "d")
    about = root / "dataset.json"
    about.write_bytes(codecs.BOM_UTF8 + about.read_bytes())
    assert len(read_data_set(root).cases) == 3
    lists = write_ssl4mis(tmp_path / "s")
    for path in lists.glob("*.list"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_data_set(lists).cases) == 5


@pytest.mark.parametrize("name", ["dataset.json", "val.list"])
def test_text_of_another_encoding_names_its_file(tmp_path: Path, name: str) -> None:
    root = write_set(tmp_path) if name == "dataset.json" else write_ssl4mis(tmp_path)
    (root / name).write_bytes((root / name).read_text().encode("utf-16"))
    assert refusal(root).what == str(root / name)


@pytest.mark.parametrize(
    "info",
    [
        '{"labels": {"²": "a"}}',
        '{"labels": {"a": true}}',
        '{"labels": {"a": "1111111111111111111111111111111111111111"}}',
        '{"labels": {"a\\ud800": 1}}',
        "[" * 100_000,
    ],
)
def test_descriptions_that_would_end_in_a_traceback(tmp_path: Path, info: str) -> None:
    root = write_set(tmp_path)
    (root / "dataset.json").write_text(info)
    assert refusal(root).what == str(root / "dataset.json")


def test_an_accent_stored_in_two_ways_is_one_name(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "imagesTr" / "c_1.nii.gz").rename(root / "imagesTr" / "caf\u00e9.nii.gz")
    (root / "labelsTr" / "c_1.nii.gz").rename(root / "labelsTr" / "cafe\u0301.nii.gz")
    data = read_data_set(root)
    assert all(case.label is not None for case in data.cases)
    assert check_data_set(data) == []


def test_a_description_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_set(tmp_path)

    def denied(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    fault = refusal(root)
    assert (fault.got, fault.cure) == ("Permission denied", f"chmod u+r '{root / 'dataset.json'}'")


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_set(tmp_path)

    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", denied)
    fault = refusal(root)
    assert (fault.rule, fault.cure) == ("the folder may be read", f"chmod u+rx '{root / 'imagesTr'}'")


def test_a_folder_in_place_of_an_image(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "imagesTr" / "c_1.nii.gz").unlink()
    (root / "imagesTr" / "c_1.nii.gz").mkdir()
    (fault,) = check_data_set(read_data_set(root))
    assert (fault.rule, fault.got) == ("the file exists", "a folder")


def test_the_images_of_a_set_are_read_as_they_were(tmp_path: Path) -> None:
    """The files of the tests above are good ones where nothing is done to them."""
    data = read_data_set(write_set(tmp_path))
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]["2"] == data.classes[2] == "core"
    assert check_data_set(data) == []
    assert np.array_equal(AFFINE, nib.Nifti1Image.from_filename(data.cases[0].image[0]).affine)
