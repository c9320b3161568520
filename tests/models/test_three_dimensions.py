# SPDX-License-Identifier: Apache-2.0
"""The whole way in 3-D, and every method: train, evaluate, predict, report through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data.cases import DataSet
from secl_models.data.phantom import write_phantom
from secl_models.options.methods import METHODS, TERMS
from secl_models.options.schema import load_preset

SMALL = (
    "data.dims=3", "data.spacing=null", "data.patch=[16,16,8]", "contrast.grid=[2,2,1]", "network.channels=[4,8,16]",
    "network.projection=8", "train.batch=2", "train.unlabeled_batch=2", "train.threads=1", "train.warm_start=0.25",
    "augment.flip=[]",
)  # fmt: skip
# Enough for the phantom's structures to be found in seconds.
LEARNING = (
    "train.validate_every=40", "train.checkpoint_every=40", "train.lr=0.02", "train.decay=0.9", "train.batch=4",
    "data.foreground=0.5", "network.channels=[8,16,32]", "train.warm_start=0.7",
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=10, labeled=8, size=(32, 32, 12))


def _call(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def _train(data: DataSet, out: Path, method: str, steps: int, *more: str) -> list[dict[str, str]]:
    options = [part for option in (*SMALL, *more) for part in ("--set", option)]
    _call("train", "--data", data.root, "--out", out, "--preset", "demo", "--labeled", 4, "--method", method,
          "--steps", steps, "--device", "cpu", *options)  # fmt: skip
    with (out / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_three_dimensions(phantom: DataSet, method: str, tmp_path: Path) -> None:
    last = _train(phantom, tmp_path / "run", method, 8)[-1]
    expected = METHODS[method].terms
    assert {name for name in TERMS if last[name]} == set(expected)
    assert all(np.isfinite(float(last[name])) for name in ("loss", *expected))
    if "region" in expected:  # 2 x 2 x 1 cells of every patch show something but padding
        assert float(last["cells"]) > 0.5
    if "anatomical" in expected:
        assert float(last["positives"]) > 0


def test_from_training_to_report(phantom: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = _train(phantom, out, "secl", 80, *LEARNING)
    assert float(rows[-1]["supervised"]) < 0.95 * float(rows[0]["supervised"])
    assert any(row["region"] and row["anatomical"] for row in rows)
    _call("evaluate", "--checkpoint", out, "--data", phantom.root)
    found = json.loads((out / "evaluation_test.json").read_text())
    assert found["last"]["structures"]["mean"]["unit"] == "mm"
    assert float(rows[-1]["val_dice"]) > 0.15  # untrained: 0.03; the two test patients lie far from the four trained on
    page = (out / "report.html").read_text()
    assert "Scores per structure" in page
    assert "Pseudo-label purity" in page or "Pseudo-label coverage" in page
    scan = next(case.image[0] for case in phantom.cases if case.label is None)
    _call("predict", "--checkpoint", out, "--input", scan, "--out", tmp_path / "seg.nii.gz", "--probabilities")
    image, seg, chance = (
        nib.Nifti1Image.from_filename(path)
        for path in (scan, tmp_path / "seg.nii.gz", tmp_path / "seg_probabilities.nii.gz")
    )
    assert seg.shape == image.shape
    assert chance.shape == (*image.shape, 4)
    assert np.array_equal(seg.affine, image.affine)
    assert set(np.unique(np.asarray(seg.dataobj))) <= {0, *phantom.classes}


def test_the_preset_of_the_hippocampus_is_one_of_three_dimensions() -> None:
    config = load_preset("hippocampus-3d")
    assert (config.data.dims, len(config.data.patch), len(config.contrast.grid)) == (3, 3, 3)
    assert config.augment.flip == load_preset("hippocampus").augment.flip == ()
