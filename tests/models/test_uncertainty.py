# SPDX-License-Identifier: Apache-2.0
"""The map of entropy and the Dice that is expected: on the image's grid, of the probabilities that were written."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.inference.calibrate import calibrate
from secl_models.inference.calibrations import calibration_file, calibration_of
from secl_models.inference.predict import predict
from secl_models.inference.reliability import entropy, expected_dice, scaled
from secl_models.inference.uncertainty import UNSURE, uncertainty_paths
from secl_models.options.errors import InputError
from tests.models.runs import TinyRun, tiny_run

CPU = torch.device("cpu")
NAMES = ("right ventricle", "myocardium", "left ventricle")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The tiny run, calibrated, in a folder of its own; hotter than it came out, for the map to differ."""
    found = tiny_run(tmp_path_factory)
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(found.folder, folder)
    calibrate(folder, found.data, device=CPU)
    values = json.loads(calibration_file(folder).read_text())
    calibration_file(folder).write_text(json.dumps(values | {"temperature": 2.0}))
    return replace(found, folder=folder)


def _array(file: Path) -> npt.NDArray[np.float64]:
    return np.asarray(nib.nifti1.load(file).dataobj, np.float64)


@pytest.mark.parametrize("keep", ["none", "all"])
def test_both_follow_from_the_probabilities_of_the_same_call(
    keep: str, run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    image = run.data.cases[0].image[0]
    target = tmp_path / "seg.nii.gz"
    predict(run.folder, image, target, probabilities=True, uncertainty=True, largest_component=keep)
    plain = torch.from_numpy(np.moveaxis(_array(tmp_path / "seg_probabilities.nii.gz"), -1, 0).copy())
    p = scaled(plain, 2.0)
    map_file, about_file = uncertainty_paths(target)
    assert _array(map_file) == pytest.approx(entropy(p).numpy(), rel=1e-4, abs=1e-4)
    assert _array(map_file).max() <= math.log(4) + 1e-6
    written = nib.nifti1.load(map_file)
    assert np.array_equal(written.affine, nib.nifti1.load(image).affine)
    assert written.get_data_dtype() == np.float32
    about = json.loads(about_file.read_text())
    assert about["temperature"] == 2.0
    found = calibration_of(run.folder).dice_error
    assert found is not None
    assert about["mean_error_on_test"] == found
    (told,) = [record for record in caplog.records if "expected Dice %" in record.getMessage()]
    assert told.getMessage().endswith(f"(on test patients {100 * found:.0f} points off on average)")
    assert (told.levelno == logging.WARNING) is (found > UNSURE)
    label = _array(target)
    for index, name in enumerate(NAMES, start=1):
        mask = torch.from_numpy(label == index)
        expected = expected_dice(float(p[index][mask].sum()), int(mask.sum()), float(p[index].sum()))
        assert about["expected_dice"][name] == (None if expected is None else pytest.approx(expected, rel=1e-4))


def test_the_map_lies_as_the_image_does(run: TinyRun, tmp_path: Path) -> None:
    image = run.data.cases[0].image[0]
    stored = nib.nifti1.load(image)
    turned = nib.nifti1.Nifti1Image(np.asarray(stored.dataobj)[::-1], stored.affine @ _mirrored(stored.shape[0]))
    nib.nifti1.save(turned, tmp_path / "turned.nii.gz")
    for source, name in ((image, "a"), (tmp_path / "turned.nii.gz", "b")):
        predict(run.folder, source, tmp_path / f"{name}.nii.gz", uncertainty=True)
    first, second = (_array(tmp_path / f"{name}_uncertainty.nii.gz") for name in "ab")
    assert np.array_equal(first, second[::-1])


def _mirrored(length: int) -> npt.NDArray[np.float64]:
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = length - 1
    return affine


def test_a_run_that_was_not_calibrated_is_named_with_the_command(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bare = tiny_run(tmp_path_factory)
    with pytest.raises(InputError, match="a checkpoint that was calibrated") as refused:
        predict(bare.folder, bare.data.cases[0].image[0], tmp_path / "seg.nii.gz", uncertainty=True)
    assert f"secl calibrate --checkpoint {bare.folder}" in refused.value.cure
    assert not list(tmp_path.iterdir())


def test_a_folder_goes_on_with_the_same_temperature_alone(run: TinyRun, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for case in run.data.cases[:2]:
        shutil.copy(case.image[0], images)
    out = tmp_path / "out"
    first = predict(run.folder, images, out, uncertainty=True)
    assert len(first.written) == 2
    assert len(list(out.glob("*_uncertainty.*"))) == 4
    assert len(predict(run.folder, images, out, uncertainty=True).kept) == 2
    with pytest.raises(InputError):
        predict(run.folder, images, out)
    assert calibration_of(run.folder).temperature == 2.0


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_of_somebody_else_stays(number: int, run: TinyRun, tmp_path: Path) -> None:
    target = tmp_path / "seg.nii.gz"
    uncertainty_paths(target)[number].write_text("mine")
    with pytest.raises(InputError, match="a segmentation is not overwritten"):
        predict(run.folder, run.data.cases[0].image[0], target, uncertainty=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_the_command_says_what_to_expect(run: TinyRun, tmp_path: Path) -> None:
    line = ["predict", "--checkpoint", str(run.folder), "--input", str(run.data.cases[0].image[0])]
    answer = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "seg.nii.gz"), "--uncertainty"])
    assert answer.exit_code == 0, answer.output
    assert "seg.nii.gz: expected Dice % right ventricle" in answer.output
