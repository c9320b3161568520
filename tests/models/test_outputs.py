# SPDX-License-Identifier: Apache-2.0
"""A segmentation is the same in every format: one structure at one place of the world, by one name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from nibabel.affines import apply_affine
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.cases import Case
from secl_models.data.stack import load_series
from secl_models.data.volumes import GRID_TOLERANCE, Volume
from secl_models.inference.outputs import save
from secl_models.inference.palette import rgb
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from tests.models.dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    PATIENT,
    SAGITTAL,
    SECRETS,
    series_of_nifti,
    write_enhanced,
    write_series,
)
from tests.models.runs import tiny_run
from tests.models.untrained import CLASSES, DEEP, FLAT, blobs, untrained, write_nifti

VOXELS = blobs((24, 20, 6)).astype(np.int16)
LABEL = np.zeros((9, 7, 5), np.uint8)
LABEL[2:6, 1:5, 1:4], LABEL[3:5, 2:4, 2:4] = 1, 3
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Grid = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]


def nifti(path: Path) -> Grid:
    image = nib.Nifti1Image.from_filename(path)
    return np.asarray(image.dataobj), np.asarray(image.affine)


def slicer(path: Path) -> Grid:
    array, about = nrrd.read(str(path))
    assert about["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = about["space directions"].T, about["space origin"]
    return array, LPS @ affine


def dicom(path: Path) -> Grid:
    """Segments as the label values of `CLASSES`."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return np.array([0, *sorted(CLASSES)])[volume.array], LPS @ volume.affine


def assert_same_places(one: Grid, other: Grid) -> None:
    """Every voxel of a structure lies in a voxel of that structure, and there are as many of them."""
    places = np.argwhere(one[0] > 0)
    index = apply_affine(np.linalg.inv(other[1]) @ one[1], places)
    assert np.abs(index - np.round(index)).max() < GRID_TOLERANCE  # headers have six to eight digits
    found = other[0][tuple(np.round(index).astype(int).T)]
    assert np.array_equal(found, one[0][tuple(places.T)])
    assert np.count_nonzero(other[0]) == len(places) > 0


def a_series(folder: Path, **options: Any) -> Volume:
    write_series(folder, LABEL.astype(np.int16), **options)
    return load_series(Case("s", "s", tuple(sorted(folder.iterdir())), None, None, series="the series"))


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
@pytest.mark.parametrize("backwards", [False, True])
def test_three_formats_of_a_series_agree(tmp_path: Path, axes: Any, backwards: bool) -> None:
    volume = a_series(tmp_path / "s", axes=axes, backwards=backwards)
    for name in ("o.nii.gz", "o.seg.nrrd", "o.dcm"):
        save(tmp_path / name, LABEL, volume, CLASSES)
    truth = nifti(tmp_path / "o.nii.gz")
    assert np.array_equal(truth[0], np.array([0, 1, 200, 600])[LABEL])
    assert_same_places(truth, slicer(tmp_path / "o.seg.nrrd"))
    assert_same_places(truth, dicom(tmp_path / "o.dcm"))


@pytest.mark.parametrize("options", [FLAT, DEEP])
def test_a_series_and_the_nifti_file_of_its_voxels_give_one_segmentation(tmp_path: Path, options: Any) -> None:
    affine = write_series(tmp_path / "s", VOXELS, RescaleSlope="2", RescaleIntercept="-7")
    write_nifti(tmp_path / "n.nii.gz", VOXELS * 2.0 - 7, affine)
    run = untrained(tmp_path / "run", *options)
    for name in ("s", "n.nii.gz"):
        predict(run, tmp_path / name, tmp_path / f"o_{name[0]}.nii.gz", device="cpu", probabilities=True)
    for name in ("o_{}.nii.gz", "o_{}_probabilities.nii.gz"):
        one, other = (nifti(tmp_path / name.format(kind)) for kind in "sn")
        assert np.array_equal(one[0], other[0])
        assert np.allclose(one[1], other[1])
    assert set(np.unique(nifti(tmp_path / "o_s.nii.gz")[0])) == {0, *CLASSES}


def test_a_phantom_heart_is_segmented_as_its_nifti_file(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path_factory)
    source = run.data.cases[0].image[0]
    values = series_of_nifti(tmp_path / "s", source)
    write_nifti(tmp_path / "n.nii.gz", values, nifti(source)[1])
    for name in ("n.nii.gz", "s"):
        for suffix in (".nii.gz", ".seg.nrrd"):
            predict(run.folder, tmp_path / name, tmp_path / f"o_{name[0]}{suffix}", device="cpu")
    truth = nifti(tmp_path / "o_n.nii.gz")
    assert_same_places(truth, nifti(tmp_path / "o_s.nii.gz"))
    assert_same_places(truth, slicer(tmp_path / "o_n.seg.nrrd"))
    assert_same_places(truth, slicer(tmp_path / "o_s.seg.nrrd"))


def test_one_object_of_many_frames_is_segmented_and_referred_to_frame_by_frame(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "s" / "x", VOXELS, slopes=[1] * 6)
    run = untrained(tmp_path / "run", *FLAT)
    for name in ("o.nii.gz", "o.dcm"):
        predict(run, tmp_path / "s", tmp_path / name, device="cpu")
    assert_same_places(nifti(tmp_path / "o.nii.gz"), dicom(tmp_path / "o.dcm"))


@pytest.mark.parametrize("unit", ["mm", "meter", "micron"])
def test_slicer_gets_the_segments_of_a_nifti_image_in_millimetres(tmp_path: Path, unit: str) -> None:
    affine = np.array([[-1.2, 0.45, -3.84, 40], [-0.9, -0.6, 5.12, 30], [0, 1, 4.8, 12.5], [0, 0, 0, 1]])
    scale = {"mm": 1.0, "meter": 0.001, "micron": 1000.0}[unit]
    image: Any = nib.Nifti1Image(VOXELS, np.diag([scale] * 3 + [1.0]) @ affine)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "i.nii.gz")
    run = untrained(tmp_path / "run", *FLAT)
    for name in ("o.nii", "o.seg.nrrd"):
        predict(run, tmp_path / "i.nii.gz", tmp_path / name, device="cpu")
    array, affine_mm = nifti(tmp_path / "o.nii")
    assert_same_places((array, np.diag([1 / scale] * 3 + [1.0]) @ affine_mm), slicer(tmp_path / "o.seg.nrrd"))


def test_segments_have_values_names_and_colours_and_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    volume = a_series(tmp_path / "s")
    names = {1: "left\nventricle", 200: "b", 600: "rück"}
    for name in ("o.seg.nrrd", "p.SEG.NRRD"):
        save(tmp_path / name, LABEL, volume, names)
    assert (tmp_path / "o.seg.nrrd").read_bytes() == (tmp_path / "p.SEG.NRRD").read_bytes()
    assert b"GMT" not in (tmp_path / "o.seg.nrrd").read_bytes()  # no time
    about = nrrd.read_header(str(tmp_path / "o.seg.nrrd"))
    assert about["kinds"] == ["domain"] * 3
    for place, (value, name) in enumerate({1: "left ventricle", 200: "b", 600: "rück"}.items()):
        segment = {key.partition("_")[2]: text for key, text in about.items() if key.startswith(f"Segment{place}_")}
        assert f"Segment{place}_Name:={name}\n".encode() in (tmp_path / "o.seg.nrrd").read_bytes()
        assert segment["ID"] == f"Segment_{place + 1}"
        assert (segment["LabelValue"], segment["Layer"], segment["Extent"]) == (str(value), "0", "0 8 0 6 0 4")
        assert tuple(round(255 * float(part)) for part in segment["Color"].split()) == rgb(place + 1)
    assert "Segment3_ID" not in about


def test_the_dicom_object_says_what_made_it_of_which_images_and_whose_it_is(tmp_path: Path) -> None:
    volume = a_series(tmp_path / "s")
    save(tmp_path / "o.dcm", LABEL, volume, {1: "wall", 2: "a\\b" + "c" * 80, 3: "pool"})
    made = highdicom.seg.segread(tmp_path / "o.dcm")
    for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber"):
        assert str(made.get(name)) == PATIENT[name]
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID, made.Modality) == ("1.2.3", "1.2.3.9", "SEG")
    (series,) = made.ReferencedSeriesSequence
    sources = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert (series.SeriesInstanceUID, sources) == ("1.2.3.4", {f"1.2.3.4.{n}" for n in range(1, 6)})
    assert [one.SegmentLabel for one in made.SegmentSequence] == ["wall", ("a/b" + "c" * 80)[:64], "pool"]
    for segment in made.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (segment.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", "secl")
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert {frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            for frame in made.PerFrameFunctionalGroupsSequence} == {1, 3}  # fmt: skip
    assert made.SeriesInstanceUID != "1.2.3.4"


@pytest.mark.parametrize(
    ("script", "name"), [(None, "Doe^Jane"), ("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 192", "山田")]
)
def test_structures_of_any_script_stand_beside_a_patient_of_another(
    tmp_path: Path, script: str | None, name: str
) -> None:
    volume = a_series(tmp_path / "s", **({"SpecificCharacterSet": script} if script else {}), PatientName=name)
    save(tmp_path / "o.dcm", LABEL, volume, {1: "rück", 2: "左心室", 3: "c"})
    made = highdicom.seg.segread(tmp_path / "o.dcm")
    assert (str(made.PatientName), [one.SegmentLabel for one in made.SegmentSequence]) == (
        name,
        ["rück", "左心室", "c"],
    )


def test_a_segmentation_without_any_structure_has_all_segments_empty(tmp_path: Path) -> None:
    volume = a_series(tmp_path / "s")
    save(tmp_path / "o.dcm", np.zeros_like(LABEL), volume, CLASSES)
    save(tmp_path / "o.seg.nrrd", np.zeros_like(LABEL), volume, CLASSES)
    made = highdicom.seg.segread(tmp_path / "o.dcm")
    assert (made.number_of_segments, int(made.get_volume().array.max())) == (3, 0)
    assert not slicer(tmp_path / "o.seg.nrrd")[0].any()


def test_headers_that_lack_what_the_standard_asks_for_are_said(tmp_path: Path) -> None:
    volume = a_series(tmp_path / "s")
    for path in volume.case.image:
        about = pydicom.dcmread(path)
        del about.StudyInstanceUID
        about.save_as(path)
    with pytest.raises(InputError, match=r"the series: headers hold what a DICOM segmentation takes over"):
        save(tmp_path / "o.dcm", LABEL, volume, CLASSES)
    assert not (tmp_path / "o.dcm").exists()


def test_a_dicom_segmentation_of_a_nifti_image_is_refused(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *FLAT)
    write_nifti(tmp_path / "i.nii.gz", VOXELS, np.eye(4))
    with pytest.raises(InputError) as caught:
        predict(run, tmp_path / "i.nii.gz", tmp_path / "o.dcm", device="cpu")
    assert caught.value.rule == "a DICOM segmentation belongs to the DICOM series that it is made of"
    assert "end the name in .nii.gz or .seg.nrrd" in caught.value.cure
    assert not (tmp_path / "o.dcm").exists()


def test_the_objects_of_two_multi_frame_files_are_refused_as_dicom_alone(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "s" / "x", VOXELS[..., :3], slopes=[1] * 3)
    write_enhanced(tmp_path / "s" / "y", VOXELS[..., 3:], slopes=[1] * 3, heights=[24, 32, 40])
    run = untrained(tmp_path / "run", *FLAT)
    with pytest.raises(InputError, match="refers to one multi-frame object; got 2 multi-frame objects"):
        predict(run, tmp_path / "s", tmp_path / "o.dcm", device="cpu")
    predict(run, tmp_path / "s", tmp_path / "o.seg.nrrd", device="cpu")
    assert slicer(tmp_path / "o.seg.nrrd")[0].shape == VOXELS.shape


@pytest.mark.parametrize("log_format", ["json", "plain"])
def test_nothing_but_the_dicom_segmentation_holds_a_word_of_the_patient(
    tmp_path: Path, log_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for index in range(2):
        uids: dict[str, Any] = {"StudyInstanceUID": f"1.{index}", "SeriesInstanceUID": f"1.{index}.1"}
        write_series(tmp_path / "in" / f"p{index}", VOXELS, **uids, PatientComments="Quizzlewump 4471")
    write_series(tmp_path / "bad", VOXELS, keep=[0, 1, 3], PixelSpacing=["1", "2"], SeriesDescription="Zephyrine")
    run = untrained(tmp_path / "run", *FLAT)
    told = ""
    for source, out in (
        ("in", "many"), ("in/p0", "one.nii.gz"), ("in/p0", "one.nii"), ("in/p0", "one.seg.nrrd"), ("in/p0", "one.dcm"),
        ("in/p0", "folder"), ("bad", "bad.nii.gz"), ("in", "many"),
    ):  # fmt: skip
        arguments = ["--checkpoint", run, "--input", tmp_path / source, "--out", tmp_path / "out" / out]
        given = [*map(str, arguments), "--device", "cpu", "--log-format", log_format]
        result = CliRunner().invoke(app, ["predict", *given, *(["--probabilities"] if out == "many" else [])])
        assert result.exit_code == (2 if source == "bad" else 0), result.output
        told += result.output
    assert "evenly spaced" in told
    texts = {"output": told.encode(), "log": json.dumps(caplog.messages).encode()}
    texts |= {
        str(path.relative_to(tmp_path)): content(path) for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert {"out/many/p0.nii.gz", "out/many/predict.json", "out/folder/p0.nii.gz", "out/one.seg.nrrd"} <= set(texts)
    leaks = {name for name, text in texts.items() for word in SECRETS if word.encode() in text.lower()}
    assert leaks == {"out/one.dcm"}


def content(path: Path) -> bytes:
    """Bytes, of a packed image those of its header."""
    if path.name.endswith(".nii.gz"):
        image: Any = nib.Nifti1Image.from_filename(path)
        return bytes(image.header.binaryblock)
    head, _, packed = path.read_bytes().partition(b"\n\n")
    return head if path.name.endswith(".seg.nrrd") else head + packed
