# SPDX-License-Identifier: Apache-2.0
"""Voxels of which a label says nothing: nowhere background, and nowhere scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.check import check_data_set
from secl_models.data.labels import IGNORED, class_index
from secl_models.data.layouts import read_data_set
from secl_models.data.phantom import write_phantom
from secl_models.data.preprocess import Preprocess, resolve
from secl_models.data.resident import ResidentData
from secl_models.data.volumes import load_volume
from secl_models.inference.metrics import score_case
from secl_models.inference.panels import slice_panels
from secl_models.inference.validate import overlap_counts
from secl_models.method.largest_part import one_part_structures
from secl_models.options.errors import InputError
from tests.models.runs import TINY, tiny_config
from tests.models.test_layouts import write_decathlon

UNSAID = 9
HALF = np.s_[:16]  # of the first axis: where the labels of the phantom below say nothing


def _hide(file: Path, value: int) -> None:
    label = nib.nifti1.load(file)
    stored = np.asarray(label.dataobj).copy()
    stored[HALF] = value
    nib.nifti1.save(nib.nifti1.Nifti1Image(stored, label.affine, label.header), file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of which every label says nothing of one half, as nnU-Net v2 writes it."""
    place = tmp_path_factory.mktemp("ignored")
    write_phantom(place, cases=10, labeled=8, size=(32, 32, 4))
    about = json.loads((place / "dataset.json").read_text())
    names = {str(name): int(value) for value, name in about["labels"].items()}
    (place / "dataset.json").write_text(json.dumps(about | {"labels": names | {"ignore": UNSAID}}))
    for file in (place / "labelsTr").iterdir():
        _hide(file, UNSAID)
    return place


@pytest.mark.parametrize(
    "labels", [{"background": 0, "a": 1, "ignore": 7}, {"0": "background", "1": "a", "7": "ignore"}]
)
def test_both_spellings_of_dataset_json_name_the_value(labels: dict[str, Any], tmp_path: Path) -> None:
    data = read_data_set(write_decathlon(tmp_path, {"labels": labels}, ["imagesTr/a.nii.gz"], ["a.nii.gz"]))
    assert (data.classes, data.ignored) == ({1: "a"}, 7)


@pytest.mark.parametrize("value", [0, 1, -1])
def test_a_value_of_something_else_is_refused(value: int, tmp_path: Path) -> None:
    info = {"labels": {"background": 0, "a": 1, "ignore": value}}
    with pytest.raises(InputError, match="`ignore` has one value above 0 that is no structure's"):
        read_data_set(write_decathlon(tmp_path, info, ["imagesTr/a.nii.gz"], ["a.nii.gz"]))


def test_only_the_value_that_is_named_is_ignored(tmp_path: Path) -> None:
    stored = np.array([0.0, 1.0, 7.0, 7.0004])
    assert class_index(stored, {1: "a"}, tmp_path, ignored=7).tolist() == [0, 1, IGNORED, IGNORED]
    for strange in (np.array([2, 7]), np.array([np.nan, 7.0])):
        with pytest.raises(InputError, match="0, 1, or 7 where nothing is said"):
            class_index(strange, {1: "a"}, tmp_path, ignored=7)
    with pytest.raises(InputError, match=r"among 0, 1; got 7"):
        class_index(np.array([7]), {1: "a"}, tmp_path)


@pytest.mark.parametrize("size", [None, (48, 48)])
def test_no_batch_shows_them_as_background(size: tuple[int, int] | None, folder: Path) -> None:
    data = read_data_set(folder)
    volumes = [load_volume(case, data) for case in data.cases if case.label is not None]
    assert all((volume.label[HALF] == IGNORED).all() for volume in volumes if volume.label is not None)
    options = tiny_config()
    grid: dict[str, Any] = {"size": size, "spacing": None, "patch": size} if size else {}
    config = resolve(replace(options, data=replace(options.data, **grid)), data, volumes)
    label = Preprocess.from_config(config.data).label(volumes[0])
    middle = label.shape[0] // 2
    assert (label[:middle] == IGNORED).all()
    assert (label[middle:] != IGNORED).all()
    resident = ResidentData(volumes, [], config, torch.device("cpu"))
    batch, _ = resident.batch(0, 4, 0)
    assert {*(batch.label[:, :middle].unique().tolist())} == {IGNORED}
    assert {*(batch.label[:, middle:].unique().tolist())} >= {0, 1}


def test_scores_are_those_of_the_rest_alone() -> None:
    random = np.random.default_rng(0)
    truth, found = (random.integers(0, 3, (12, 10, 6)) for _ in range(2))
    hidden = truth.copy()
    hidden[:5] = IGNORED
    other = found.copy()
    other[:5] = 2 - other[:5]
    names = {1: "a", 2: "b"}
    assert score_case(found, hidden, names, (1, 1, 2)) == score_case(other, hidden, names, (1, 1, 2))
    dice = [score.dice for score in score_case(found, hidden, names, None)]
    both, total = overlap_counts(torch.from_numpy(found[5:]), torch.from_numpy(truth[5:]), 2)
    assert dice == pytest.approx((2 * both / total).tolist())
    hidden[hidden == 1] = IGNORED
    found[hidden != IGNORED] = 0
    assert score_case(found, hidden, names, None)[0].dice is None  # said of nothing, found where nothing is said


def test_a_label_with_a_hole_tells_nothing_of_parts() -> None:
    cut, whole = np.zeros((6, 6), np.int64), np.zeros((6, 6), np.int64)
    cut[1:5, 1], whole[1:5, 1] = 1, 1
    cut[3] = IGNORED
    assert one_part_structures([cut, whole], 1) == (1,)
    assert one_part_structures([cut], 1) == ()


def test_a_picture_needs_nothing_said() -> None:
    label: npt.NDArray[np.int64] = np.full((8, 8), IGNORED, np.int64)
    assert slice_panels(label.astype(np.float32), label, label * 0).shape[2] == 3


def test_the_commands_say_train_and_score_them(folder: Path, tmp_path: Path) -> None:
    assert not [fault for fault in check_data_set(read_data_set(folder)) if fault.severity == "error"]
    run = CliRunner().invoke
    answer = run(app, ["check", "--data", str(folder)])
    assert f"; {UNSAID} is ignored" in answer.output
    options = [part for option in TINY for part in ("--set", option)]
    line = [
        "train",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--preset",
        "demo",
        "--steps",
        "4",
        *options,
    ]
    assert run(app, line).exit_code == 0
    assert run(app, ["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", str(folder)]).exit_code == 0
    assert (tmp_path / "run" / "report.html").is_file()
    image = next(folder.glob("imagesTr/*"))
    said = [
        "predict",
        "--checkpoint",
        str(tmp_path / "run"),
        "--input",
        str(image),
        "--out",
        str(tmp_path / "s.nii.gz"),
    ]
    assert run(app, said).exit_code == 0
    assert UNSAID not in np.unique(np.asarray(nib.nifti1.load(tmp_path / "s.nii.gz").dataobj))
