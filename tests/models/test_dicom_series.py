# SPDX-License-Identifier: Apache-2.0
"""The series that is meant is found by content, listed where it is not clear, and never called by a patient's name."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from secl_models.data.cases import Case
from secl_models.data.layouts import read_data_set
from secl_models.inference.images import Images, images_of
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from tests.models.dicom_files import SECRETS, write_enhanced, write_report, write_series
from tests.models.files import image_array, write_nifti
from tests.models.test_dicom_stack import bundled
from tests.models.untrained import FLAT, untrained

VOXELS = image_array(shape=(9, 7, 5))
SECOND: dict[str, Any] = {"SeriesInstanceUID": "1.2.5", "SeriesNumber": 7, "SeriesDescription": "T1  post"}


def one(folder: Path, series: str | None = None) -> Case:
    found = images_of(folder, 1, series)
    assert found.single
    (case,) = found.cases
    return case


def refusal(folder: Path, series: str | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        images_of(folder, 1, series)
    return caught.value


@pytest.mark.parametrize("suffix", [".dcm", "", ".17", ".nii.bak"])
@pytest.mark.parametrize("below", ["", "STUDY/SERIES"])
def test_slices_are_known_by_content_at_any_depth(tmp_path: Path, suffix: str, below: str) -> None:
    write_series(tmp_path / "p" / below, VOXELS, suffix=suffix)
    (tmp_path / "p" / "notes.txt").write_text("x")
    shutil.copy(tmp_path / "p" / below / f"IM0000{suffix}", tmp_path / "p" / ".hidden")
    case = one(tmp_path / "p")
    assert (case.name, case.series, len(case.image)) == ("p", f"{tmp_path / 'p'}, series 4", 5)


def test_a_file_without_the_preamble_is_known(tmp_path: Path) -> None:
    shutil.copy(bundled("rtstruct.dcm"), tmp_path / "x")
    assert refusal(tmp_path).got == "1 RTSTRUCT"


@pytest.mark.parametrize("name", ["4", "t2 axial", "T2 AXIAL ", "1.2.3.4"])
def test_one_of_several_series_is_asked_for_by_name(tmp_path: Path, name: str) -> None:
    write_series(tmp_path, VOXELS)
    write_series(tmp_path / "b", VOXELS[..., :3], **SECOND)
    fault = refusal(tmp_path)
    assert fault.got == (
        "2 series:\n  4: t2 axial (MR, 5 slices of 9 x 7, UID 1.2.3.4)\n  7: T1 post (MR, 3 slices of 9 x 7, UID 1.2.5)"
    )
    assert "add --series with a number, description or UID" in fault.cure
    assert len(one(tmp_path, name).image) == 5
    assert len(one(tmp_path, "t1 post").image) == 3


def test_a_name_that_fits_none_or_two_series(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS)
    write_series(tmp_path / "b", VOXELS, SeriesInstanceUID="1.2.5")
    fault = refusal(tmp_path, "4")
    assert (fault.what, fault.cure) == ("--series", "name it by its UID")
    assert "4, which fits 2 series:\n" in fault.got
    fault = refusal(tmp_path, "flair")
    assert (fault.rule, fault.got[:5]) == ("a series of the folder", "flair")
    assert "UID 1.2.5" in fault.got


def test_a_scout_of_one_slice_beside_a_stack_needs_no_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path, VOXELS)
    write_series(tmp_path / "scout", VOXELS, keep=[0], SeriesInstanceUID="1.2.1", SeriesNumber=1)
    assert len(one(tmp_path).image) == 5
    assert caplog.messages == [f"{tmp_path}: segmenting series 4: t2 axial (MR, 5 slices of 9 x 7, UID 1.2.3.4)"]


def test_objects_that_are_no_images_are_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path, VOXELS)
    write_report(tmp_path / "report")
    for name in ("rtstruct.dcm", "rtdose.dcm", "rtplan.dcm", "liver_1frame.dcm"):
        shutil.copy(bundled(name), tmp_path / name)
    shutil.copy(bundled("dicomdirtests/DICOMDIR"), tmp_path / "DICOMDIR")
    assert len(one(tmp_path).image) == 5
    said = "passed over, since they are no images: 1 DICOMDIR, 1 RTDOSE, 1 RTPLAN, 1 RTSTRUCT, 1 SEG, 1 SR."
    assert [message.partition(": ")[2] for message in caplog.messages] == [said]


def test_a_folder_of_both_kinds_says_what_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path, VOXELS[..., :2])
    write_nifti(tmp_path / "a.nii.gz", VOXELS)
    found = images_of(tmp_path, 1)
    assert ([case.name for case in found.cases], found.single) == (["a"], False)
    (message,) = caplog.messages
    assert message == (
        "Not read, 2 DICOM files: IM0000.dcm, IM0001.dcm. To segment them, name a folder that holds DICOM alone."
    )
    fault = refusal(tmp_path, "4")
    assert (fault.what, fault.got) == ("--series", f"other images in {tmp_path}")


def test_other_formats_beside_a_series_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path, VOXELS)
    (tmp_path / "b.mha").write_bytes(b"x")
    assert len(one(tmp_path).image) == 5
    assert [message[:40] for message in caplog.messages] == ["Not read, 1 files of other formats: b.mh"]


def test_a_multi_frame_file_is_an_image_by_itself(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "x.dcm", VOXELS, slopes=[1] * 5)
    write_enhanced(tmp_path / "y", VOXELS, slopes=[1] * 5)
    assert [one(tmp_path / name).name for name in ("x.dcm", "y")] == ["x", "y"]


def patients(root: Path) -> Images:
    for index, name in enumerate(("a", "b")):
        write_series(root / name / "deep", VOXELS, StudyInstanceUID=f"1.{index}", SeriesInstanceUID=f"1.{index}.1")
    return images_of(root, 1)


def test_folders_of_several_studies_are_an_image_each(tmp_path: Path) -> None:
    found = patients(tmp_path)
    assert ([case.name for case in found.cases], found.single, found.failures) == (["a", "b"], False, ())


def test_a_folder_whose_series_is_not_clear_does_not_stop_the_others(tmp_path: Path) -> None:
    patients(tmp_path)
    write_series(tmp_path / "a" / "more", VOXELS, **SECOND, StudyInstanceUID="1.0")
    found = images_of(tmp_path, 1)
    (failure,) = found.failures
    assert ([case.name for case in found.cases], failure.what) == (["b"], str(tmp_path / "a"))
    found = images_of(tmp_path, 1, "t2 axial")
    assert ([case.name for case in found.cases], found.failures) == (["a", "b"], ())
    assert refusal(tmp_path, "flair").what == "--series"


def test_a_folder_of_series_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    patients(tmp_path / "in")
    run = untrained(tmp_path / "run", *FLAT)
    path = tmp_path / "in" / "b" / "deep" / "IM0002.dcm"
    path.rename(tmp_path / "aside")
    found = predict(run, tmp_path / "in", tmp_path / "out", device="cpu")
    assert [file.name for file in found.written] == ["a.nii.gz"]
    assert [failure.got[:5] for failure in found.failures] == ["16 mm"]
    (tmp_path / "aside").rename(path)
    found = predict(run, tmp_path / "in", tmp_path / "out", device="cpu")
    assert ([file.name for file in found.written], len(found.kept), found.failures) == (["b.nii.gz"], 1, ())
    write_series(tmp_path / "in" / "a" / "deep", VOXELS + 1, StudyInstanceUID="1.0", SeriesInstanceUID="1.0.1")
    with pytest.raises(InputError, match="which has changed since"):
        predict(run, tmp_path / "in", tmp_path / "out", device="cpu")


def test_names_of_patients_in_folders_and_descriptions_are_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for index, name in enumerate(("QUIZZLEWUMP_Zephyrine", "b")):
        study: dict[str, Any] = {"StudyInstanceUID": f"1.{index}", "SeriesDescription": "t2 quizzlewump"}
        write_series(tmp_path / name, VOXELS, keep=[0, 1, 3, 4], SeriesInstanceUID=f"1.{index}.1", **study)
        write_series(tmp_path / name / "c", VOXELS, SeriesInstanceUID=f"1.{index}.2", SeriesNumber=9, **study)
    with pytest.raises(InputError) as listed:
        images_of(tmp_path, 1, "t2 Quizzlewump")
    found = images_of(tmp_path, 1, "9")
    told = [str(listed.value), *caplog.messages, *(f"{case.name} {case.series}" for case in found.cases)]
    assert "*** (MR, 5 slices" in str(listed.value)
    assert not [(text, word) for text in told for word in SECRETS if word in text.lower()]
    assert any(case.name.startswith("series_") for case in found.cases)
    assert [case.series for case in found.cases] == [f"{tmp_path}/***_***, series 9", f"{tmp_path}/b, series 9"]


def test_names_of_files_beside_and_of_broken_ones_are_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path, VOXELS)
    (tmp_path / "zephyrine.mha").write_bytes(b"x")
    good = (tmp_path / "IM0001.dcm").read_bytes()
    bad = good.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00")
    (tmp_path / "Quizzlewump^2").write_bytes(bad)
    assert refusal(tmp_path).what == str(tmp_path / "***^2")
    (message,) = caplog.messages
    assert "1 files of other formats: ***.mha" in message
    assert "zephyrine" not in f"{message} {caplog.records[0].__dict__}"


def test_a_pseudonym_in_the_name_of_a_folder_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path / "LUNG-0007", VOXELS, PatientName="LUNG-0007", PatientID="LUNG-0007")
    assert one(tmp_path / "LUNG-0007").name == "LUNG-0007"


def test_a_network_of_two_channels_takes_no_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in", VOXELS)
    run = untrained(tmp_path / "run", *FLAT, channels=2)
    with pytest.raises(InputError, match=r"in, series 4: the network takes 2 image channel\(s\); got 1 channel"):
        predict(run, tmp_path / "in", tmp_path / "o.nii.gz", device="cpu")


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_data_set_of_dicom_is_refused_with_the_way_to_convert_it(tmp_path: Path, below: str) -> None:
    write_series(tmp_path / "d" / below, VOXELS)
    with pytest.raises(InputError) as caught:
        read_data_set(tmp_path / "d")
    assert caught.value.got == "DICOM, as IM0000.dcm"
    assert "`dcm2niix -z y FOLDER`" in caught.value.cure


def test_a_slice_that_may_not_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, VOXELS)
    last = tmp_path / "IM0004.dcm"
    monkeypatch.setattr("secl_models.data.series.os.access", lambda path, mode: path != last)
    fault = refusal(tmp_path)
    assert (fault.what, fault.cure) == (str(last), f"chmod u+r '{last}'")


def test_a_header_that_cannot_be_read_names_its_file_and_stops_its_folder_alone(tmp_path: Path) -> None:
    patients(tmp_path)
    good = (tmp_path / "b" / "deep" / "IM0001.dcm").read_bytes()
    bad = tmp_path / "b" / "deep" / "IM0001.dcm"
    bad.write_bytes(good.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00"))
    fault = refusal(tmp_path / "b")
    assert (fault.what, fault.rule) == (str(bad), "a header as the standard has it")
    found = images_of(tmp_path, 1)
    assert ([case.name for case in found.cases], [str(one) for one in found.failures]) == (["a"], [str(fault)])
