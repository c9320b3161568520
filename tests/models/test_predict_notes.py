# SPDX-License-Identifier: Apache-2.0
"""What prediction says of images that it does not read, or that lie otherwise than those of the training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from secl_models.inference.predict import predict
from tests.models.files import image_array, write_nifti
from tests.models.test_check import tilted
from tests.models.untrained import DEEP, FLAT, untrained


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_images_of_other_formats_beside_those_that_are_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = untrained(tmp_path / "run", *FLAT)
    write_nifti(tmp_path / "in" / "a.nii.gz", image_array(shape=(16, 24, 2)))
    for name in ("a.mha", "b.mha", "c.nrrd", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert len(predict(run, tmp_path / "in", tmp_path / "out", device="cpu").written) == 1
    (warning,) = warnings(caplog)
    assert warning.startswith("Not read, 2 files of other formats: b.mha, c.nrrd. To segment them, convert it, as by ")


def test_a_folder_beside_the_images_is_named_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = untrained(tmp_path / "run", *FLAT)
    for name in ("in/a.nii.gz", "in/more/b.nii.gz"):
        write_nifti(tmp_path / name, image_array(shape=(16, 24, 2)))
    assert len(predict(run, tmp_path / "in", tmp_path / "out", device="cpu").written) == 1
    assert warnings(caplog) == ["Not read, 1 folders: more. To segment them, name one of them."]


def test_an_image_that_cannot_be_turned_to_those_of_the_training_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = untrained(tmp_path / "run", *FLAT, "data.orientation=null")
    for name in "ab":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", image_array(shape=(16, 24, 2)))
    predict(run, tmp_path / "in", tmp_path / "out", device="cpu")
    (warning,) = warnings(caplog)
    assert "a.nii.gz: training took its images as they were stored" in warning
    caplog.clear()
    known = untrained(tmp_path / "known", *FLAT)
    predict(known, tmp_path / "in", tmp_path / "again", device="cpu")
    assert warnings(caplog) == []


@pytest.mark.parametrize(("degrees", "options", "warned"), [(40, FLAT, False), (50, FLAT, True), (50, DEEP, False)])
def test_a_stack_more_than_45_degrees_off_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, degrees: float, options: tuple[str, ...], warned: bool
) -> None:
    run = untrained(tmp_path / "run", *options)
    image = write_nifti(tmp_path / "a.nii.gz", image_array(shape=(16, 24, 20)), tilted(degrees))
    predict(run, image, tmp_path / "out.nii.gz", device="cpu")
    sentence = f"{image}: its slices lie across those of the training images, or more than 45 degrees off"
    assert warnings(caplog) == [sentence] * warned
