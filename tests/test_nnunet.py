# SPDX-License-Identifier: Apache-2.0
"""nnU-Net plans, trains and predicts with the trainer of `benchmarks/examples/nnunet`, which it finds by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from secl_models.data.phantom import write_phantom
from tests.conftest import REPOSITORY, skip_or_fail

TRAINER = REPOSITORY / "benchmarks" / "examples" / "nnunet"
CASES, STEPS, SECONDS = 5, 4, 900
# nnU-Net's own length is 1,000 epochs; what each step's contrast gave to the first layer is written down.
SHORT = """
import json
import torch
from benchmarks.examples.nnunet.pixel_contrast_trainer import nnUNetTrainerPixelContrast

class nnUNetTrainerShort(nnUNetTrainerPixelContrast):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1

    def initialize(self):
        super().initialize()
        found, forward, weight = [], self.loss.contrast.forward, next(self.network.encoder.parameters())

        def watched(features, labels):
            loss = forward(features, labels)
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            found.append([loss.item(), gradient.abs().max().item()])
            with open(f"{self.output_folder}/contrast.json", "w") as file:
                json.dump(found, file)
            return loss

        self.loss.contrast.forward = watched
"""


@pytest.fixture
def nnunet(tmp_path: Path) -> dict[str, str]:
    """The environment of nnU-Net's commands, in an empty folder."""
    if importlib.util.find_spec("nnunetv2") is None:
        skip_or_fail("originals", "nnunetv2 is not installed; `make test-originals` brings it")
    for name in ("raw", "preprocessed", "results", "short"):
        (tmp_path / name).mkdir()
    (tmp_path / "short" / "short.py").write_text(SHORT)
    return {
        **os.environ,
        **{f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": os.pathsep.join(map(str, (TRAINER, tmp_path / "short"))),
        "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def nifti(path: Path) -> nib.nifti1.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.nifti1.Nifti1Image)
    return image


def command(environment: dict[str, str], *words: object) -> str:
    program = [sys.executable, "-m", "tests.originals", *map(str, words)]
    done = subprocess.run(
        program, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_it_plans_trains_and_predicts(nnunet: dict[str, str], tmp_path: Path) -> None:
    write_phantom(tmp_path / "Task05_Phantom", cases=CASES, labeled=CASES, size=(32, 32, 6))
    (tmp_path / "Task05_Phantom" / "imagesTs").mkdir()
    command(nnunet, "convert", "-i", tmp_path / "Task05_Phantom", "-np", 1)
    command(nnunet, "plan_and_preprocess", "-d", 5, "-c", "2d", "-np", 1, "-npfp", 1)
    training = ["5", "2d", "0", "-tr", "nnUNetTrainerShort", "-device", "cpu"]
    said = command({**nnunet, "nnUNet_n_proc_DA": "0"}, "train", *training)
    assert f"Searching in: {TRAINER}" in said
    (fold,) = (tmp_path / "results").glob("*/nnUNetTrainerShort__nnUNetPlans__2d/fold_0")
    contrast = json.loads((fold / "contrast.json").read_text())
    assert len(contrast) == STEPS
    assert all(np.isfinite(loss) and loss > 0 and gradient > 0 for loss, gradient in contrast)
    weights = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert {name.partition(".")[0] for name in weights} == {"encoder", "decoder"}  # nnU-Net's own, and no other

    images = tmp_path / "raw" / "Dataset005_Phantom" / "imagesTr"
    where = ["-d", "5", "-c", "2d", "-f", "0", "-i", images, "-o", tmp_path / "segmented"]
    command(nnunet, "predict", *where, *training[3:], "-npp", 1, "-nps", 1, "--disable_tta")
    found = sorted((tmp_path / "segmented").glob("*.nii.gz"))
    assert len(found) == CASES
    for path in found:
        image, segmented = map(nifti, (images / path.name.replace(".nii", "_0000.nii"), path))
        assert segmented.shape == image.shape
        assert np.allclose(segmented.affine, image.affine)


@pytest.mark.filterwarnings("default")
def test_nnunet_finds_the_trainer_and_it_refuses_regions(
    nnunet: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.originals import load_torchvision

    load_torchvision()
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER))
    found = recursive_find_trainer_class_by_name("nnUNetTrainerPixelContrast")
    assert found.__module__ == "pixel_contrast_trainer"
    monkeypatch.setattr(found.__base__, "initialize", lambda self: None)
    of_regions = found.__new__(found)
    of_regions.label_manager = SimpleNamespace(has_regions=True)
    with pytest.raises(ValueError, match="needs labels that exclude each other; got regions"):
        of_regions.initialize()
