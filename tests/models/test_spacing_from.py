# SPDX-License-Identifier: Apache-2.0
"""Every command takes `data.spacing_from`, and a run remembers it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data.layouts import read_data_set
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import load_volume
from secl_models.inference.predict import predict
from secl_models.method import checkpoint
from secl_models.options.schema import from_dict, load_preset
from tests.models.files import edit, image_array, write_nifti, write_set
from tests.models.runs import TINY
from tests.models.untrained import FLAT, untrained

CHOICE = "data.spacing_from=pixdim"


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output, standard error without line breaks."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def contradict(root: Path) -> Path:
    """Sides of 1 mm in the affine and of 1.5 x 1.5 x 8 mm in pixdim, in each file."""
    for path in root.rglob("*.nii.gz"):
        edit(path, srow_x=[-1, 0, 0, 0], srow_y=[0, -1, 0, 0], srow_z=[0, 0, 1, 0], sform_code=2, qform_code=0)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return contradict(write_set(tmp_path / "d", [f"c_{number}" for number in range(5)]))


def test_check_refuses_until_it_is_told(data: Path) -> None:
    status, out, err = call("check", "--data", data)
    assert (status, out.splitlines()[-1]) == (2, "10 errors, 0 warnings")
    assert "1 x 1 x 1 mm of the affine and 1.5 x 1.5 x 8 mm of pixdim" in err
    for choice in ("pixdim", "affine"):
        status, out, _ = call("check", "--data", data, "--set", f"data.spacing_from={choice}")
        assert (status, out.splitlines()[-1]) == (0, "0 errors, 0 warnings")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps=3", "--set: data.spacing_from alone; got train.steps=3"),
        ("data.spacing_from=sform", "one of auto"),
    ],
)
@pytest.mark.parametrize(
    "command", [["check", "--data"], ["evaluate", "--checkpoint", ".", "--data"], ["study", "cases", ".", "--data"]]
)
def test_commands_without_a_preset_take_this_option_alone(
    data: Path, command: list[str], assignment: str, message: str
) -> None:
    status, _, err = call(*command, data, "--set", assignment)
    assert status == 2
    assert message in err


def test_a_run_is_trained_evaluated_resumed_and_predicts_by_what_it_was_told(data: Path, tmp_path: Path) -> None:
    options = [part for option in (*TINY, "data.patch=[8,8]", "contrast.grid=[2,2]") for part in ("--set", option)]
    train = ("train", "--data", data, "--out", tmp_path / "run", "--preset", "demo", *options, "--labeled", 2)
    status, _, err = call(*train)
    assert status == 2
    assert "data.spacing_from=pixdim" in err
    assert call(*train, "--set", CHOICE, "--max-steps", 3)[0] == 0
    assert load_preset(tmp_path / "run" / "config.yaml").data.spacing_from == "pixdim"
    status, _, err = call(*train, "--set", "data.spacing_from=affine", "--resume")
    assert "other values of data.spacing, data.spacing_from." in err
    assert call(*train, "--set", CHOICE, "--resume")[0] == 0
    assert call("evaluate", "--checkpoint", tmp_path / "run", "--data", data)[0] == 0
    by_pixdim = distances(tmp_path / "run")
    told = "data.spacing_from=affine"
    assert call("evaluate", "--checkpoint", tmp_path / "run", "--data", data, "--set", told, "--no-report")[0] == 0
    assert by_pixdim != distances(tmp_path / "run")
    out = tmp_path / "out"
    assert call("predict", "--checkpoint", tmp_path / "run", "--input", data / "imagesTr", "--out", out)[0] == 0
    assert len(list(out.glob("*.nii.gz"))) == 5


def distances(run: Path) -> list[str]:
    with (run / "evaluation_test_last.csv").open(newline="") as rows:
        return [row["hd95"] for row in csv.DictReader(rows)]


def test_prediction_can_be_told_otherwise_for_new_images(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", *FLAT)
    write_nifti(tmp_path / "new" / "a.nii.gz", image_array(shape=(16, 24, 2)))
    contradict(tmp_path / "new")
    (failure,) = predict(run, tmp_path / "new", tmp_path / "out", device="cpu").failures
    assert failure.rule.startswith("affine and pixdim give one voxel spacing")
    assert len(predict(run, tmp_path / "new", tmp_path / "out", device="cpu", spacing_from="affine").written) == 1


def test_a_run_from_before_the_option_is_one_that_was_told_nothing(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", [f"c_{number}" for number in range(5)])
    options = [part for option in (*TINY, "data.patch=[8,8]", "contrast.grid=[2,2]") for part in ("--set", option)]
    train = ("train", "--data", data, "--out", tmp_path / "run", "--preset", "demo", *options, "--labeled", 2)
    assert call(*train, "--max-steps", 3)[0] == 0
    state: dict[str, Any] = checkpoint.load(tmp_path / "run")
    del state["config"]["data"]["spacing_from"]
    checkpoint.save(tmp_path / "run" / "last.pt", state)
    assert from_dict(state["config"]).data.spacing_from == "auto"
    assert call(*train, "--resume")[0] == 0


@pytest.mark.parametrize(("choice", "grid"), [("pixdim", (6, 5, 3)), ("affine", (4, 4, 3))])
def test_what_is_resampled_follows_the_choice(data: Path, choice: str, grid: tuple[int, ...]) -> None:
    found = read_data_set(data, choice)
    volume = load_volume(found.cases[0], found)
    assert tuple(Preprocess(2, None, (2.0, 2.0), "volume", None).image(volume).shape[1:]) == grid


def test_a_study_is_refused_before_its_first_run(data: Path, tmp_path: Path) -> None:
    status, _, err = call("study", "--data", data, "--preset", "demo", "--labeled", 1, "--out", tmp_path / "study")
    assert status == 2
    assert "affine and pixdim give one voxel spacing" in err
    assert "; `secl check` names 7 more." in err
    assert not (tmp_path / "study").exists()
