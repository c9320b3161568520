# SPDX-License-Identifier: Apache-2.0
"""Structures that training found to be one part: kept so where asked, said once, and scored both ways."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from secl_models.data.cases import Case
from secl_models.data.scans import scan_labels
from secl_models.data.volumes import Volume
from secl_models.inference.evaluate import evaluate
from secl_models.inference.evaluations import evaluation_table
from secl_models.inference.metrics import MEAN
from secl_models.inference.predict import predict
from secl_models.inference.predictions import RECORD
from secl_models.method.checkpoint import load_model
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError
from tests.models.runs import TinyRun, tiny_run
from tests.models.untrained import FLAT, blobs, untrained, write_nifti


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = untrained(tmp_path / "model", *FLAT)
    state = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**state, "one_part": [1, 3]}, folder / "last.pt")
    return folder


def of(name: str, label: npt.NDArray[np.int64]) -> Volume:
    case = Case(name, name, (Path(name),), None, None)
    return Volume(case, np.zeros((1, *label.shape), np.float32), label, np.eye(4), None)


def voxels(file: Path) -> npt.NDArray[Any]:
    image: Any = nib
    return np.asarray(image.load(file).dataobj)


def test_slices_are_judged_as_the_scan_that_they_make_up() -> None:
    """Two spots of a slice may be one part of the heart."""
    flat, bridge = np.array([[1, 0, 1]]), np.array([[1, 1, 1]])
    whole = of("b", np.ones((1, 3, 2), np.int64))
    names = ("a_slice_1", "a_slice_2", "a_slice_4")
    found = list(scan_labels([of(names[0], flat), whole, of(names[2], flat), of(names[1], bridge)]))
    assert [label.shape for label in found] == [(1, 3, 2), (1, 3, 4)]
    assert found[1].transpose(2, 0, 1)[:, 0].tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert list(scan_labels([])) == []


def test_training_finds_them_and_the_checkpoint_keeps_them(run: TinyRun) -> None:
    assert load_model(run.folder).one_part == (1, 2, 3)


def test_predict_keeps_those_of_the_training_and_says_so_once(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(2):
        write_nifti(images / f"{seed}.nii", blobs((40, 40, 6), seed), np.eye(4))
    predict(model, images, tmp_path / "none")
    with caplog.at_level(logging.INFO, "secl_models"):
        predict(model, images, tmp_path / "auto", largest_component="auto")
    said = [record.getMessage() for record in caplog.records if "one part" in record.getMessage()]
    assert said == ["Kept as one part, as in every labelled training case: a, c."]
    for seed in range(2):
        whole, kept = (voxels(tmp_path / name / f"{seed}.nii.gz") for name in ("none", "auto"))
        expected = np.searchsorted((0, 1, 200, 600), whole)  # class index
        keep_largest(expected, only=(1, 3))
        assert np.array_equal(kept, np.array((0, 1, 200, 600))[expected])
        assert not np.array_equal(kept, whole)


def test_what_cannot_be_kept_is_said(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan = write_nifti(tmp_path / "scan.nii", blobs((16, 16, 2)), np.eye(4))
    with pytest.raises(InputError, match="--largest-component: one of none, auto, all; got some"):
        predict(model, scan, tmp_path / "seg.nii", largest_component="some")
    old = untrained(tmp_path / "old", *FLAT)
    predict(old, scan, tmp_path / "old.nii", largest_component="auto")
    assert "older than --largest-component auto: nothing is removed" in caplog.text


def test_a_folder_of_before_there_was_a_choice_goes_on(model: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    write_nifti(images / "a.nii", blobs((16, 16, 2)), np.eye(4))
    predict(model, images, out, largest_component="all")
    record = json.loads((out / RECORD).read_text())
    record["settings"]["largest_component"] = True
    (out / RECORD).write_text(json.dumps(record))
    assert predict(model, images, out, largest_component="all").kept
    with pytest.raises(InputError, match="made with another largest-component"):
        predict(model, images, out)


def test_an_evaluation_has_both_figures(run: TinyRun, tmp_path: Path) -> None:
    results = evaluate(run.folder, run.data, out=tmp_path, progress=False)
    assert [result.checkpoint for result in results] == ["last", "last-largest", "best", "best-largest"]
    before, after = (result.summary[-1] for result in results[:2])
    assert before.structure == after.structure == MEAN
    assert before.dice != after.dice  # a network of six steps leaves pieces
    with (tmp_path / "evaluation_test_last-largest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(results[0].cases) * len(run.data.classes)
    stored = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert stored["last-largest"]["one_part"] == list(run.data.classes.values())
    assert "one_part" not in stored["last"]
    names = ", ".join(run.data.classes.values())
    said = f"-largest: {names} as one part, as in every labelled training case"
    assert said in str(evaluation_table(results).caption)
