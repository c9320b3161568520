# SPDX-License-Identifier: Apache-2.0
"""Slabs are the whole volume's probabilities, few of them exist at once, and an interruption leaves no file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data.cases import Case
from secl_models.data.volumes import Volume
from secl_models.inference import windows as inference
from secl_models.inference.predict import predict
from secl_models.inference.windows import predict_slabs, predict_volume, segment_volume
from secl_models.method.checkpoint import LoadedModel, load_model
from tests.conftest import REPOSITORY
from tests.models.untrained import DEEP, FLAT, blobs, untrained, write_nifti

ROUNDING = 1e-4  # float32 logits of up to some hundred, added in another order, through a softmax


def _volume(shape: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Volume:
    case = Case("a", "a", (Path("a.nii"),), None, None)
    return Volume(case, blobs(shape)[None], None, np.eye(4), spacing)


def _whole(model: LoadedModel, volume: Volume) -> torch.Tensor:
    """All windows at once by MONAI, all probabilities at once through the resampling."""
    image = model.preprocess.image(volume)
    deep = model.config.data.dims == 3
    with torch.no_grad():
        logits: Any = sliding_window_inference(
            image[None] if deep else image.movedim(-1, 0), model.config.data.patch, 4,
            lambda x: model.network(x).logits, 0.25 if deep else 0.5, "gaussian",
        )  # fmt: skip
    chance = logits.softmax(1)
    return model.preprocess.restore(chance[0] if deep else chance.movedim(0, -1), volume.image.shape[1:])


@pytest.mark.parametrize("shape", [(60, 20, 9), (17, 70, 12), (21, 30, 40), (11, 9, 5)])
@pytest.mark.parametrize("spacing", ["null", "[0.7,1.6,1.3]"])
def test_slabs_of_a_3d_network_are_monai_s_whole_volume(shape: tuple[int, ...], spacing: str, tmp_path: Path) -> None:
    model = load_model(untrained(tmp_path, *DEEP, spacing=spacing))
    volume = _volume(shape)
    expected = _whole(model, volume)
    found = predict_volume(model.network, model.preprocess, model.config, volume)
    assert found.shape == (4, *shape)
    assert (found - expected).abs().max() < ROUNDING
    slabs = list(predict_slabs(model.network, model.preprocess, model.config, volume))
    assert sum(slab.probabilities.numel() for slab in slabs) == found.numel()  # each voxel once
    if max(shape) > 24:
        assert len(slabs) > 1
    assert np.array_equal(
        segment_volume(model.network, model.preprocess, model.config, volume), found.argmax(0).numpy()
    )


def test_slabs_of_a_2d_network_keep_to_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(untrained(tmp_path, *FLAT, spacing="[1.3,0.8]"))
    volume = _volume((30, 25, 17))
    expected = _whole(model, volume)
    monkeypatch.setattr(inference, "SLAB_BYTES", 5 * 4 * 4 * 30 * 31)  # five slices, 25 mm resampled to 31 voxels
    slabs = list(predict_slabs(model.network, model.preprocess, model.config, volume))
    depths = [slab.probabilities.shape[-1] for slab in slabs]
    assert depths[0] == 1
    assert max(depths) == 6  # 24 x 31 voxels of the network's grid and 30 x 25 of the image's: the larger counts
    assert sum(depths) == 17
    found = predict_volume(model.network, model.preprocess, model.config, volume)
    assert (found - expected).abs().max() < ROUNDING


PROGRAM = """
import json, sys
from pathlib import Path
from secl_models.method.device import peak_memory_mib
from secl_models.inference.predict import predict
import torch
torch.set_num_threads(1)
folder = Path(sys.argv[1])
import skimage.measure, monai.inferers.utils  # what is imported late is no working memory
before = peak_memory_mib(torch.device("cpu"))
predict(folder, folder / "scan.nii", folder / "seg.nii", device="cpu")
print(json.dumps(peak_memory_mib(torch.device("cpu")) - before))
"""


def test_memory_does_not_hold_the_probabilities(tmp_path: Path) -> None:
    """Peak resident memory of a process, on a volume whose probabilities alone take gibibytes."""
    shape, classes = (80, 80, 500), 199
    options = ("network.name=tests.models.untrained:pointwise", "network.channels=[2,2]", "network.taps=[0]")
    patch = ("data.dims=3", "data.patch=[80,80,8]", "contrast.grid=[2,2,1]")
    names = {value: f"s{value}" for value in range(1, classes + 1)}
    untrained(tmp_path, *patch, *options, classes=names)
    write_nifti(tmp_path / "scan.nii", blobs(shape).astype(np.int16), np.diag([-1.0, 1, 1, 1]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    voxels = np.prod(shape)
    probabilities_mib = 4 * (classes + 1) * voxels / 2**20
    slab_mib = 4 * (classes + 1) * 80 * 80 * 8 / 2**20
    grown = json.loads(done.stdout.splitlines()[-1])
    assert probabilities_mib > 2400
    assert grown < 16 * voxels / 2**20 + 12 * slab_mib  # what `secl predict --help` says
    assert grown < probabilities_mib / 4


@pytest.mark.parametrize("when", ["network", "compression", "disk"])
def test_an_interruption_leaves_nothing(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained(tmp_path / "model", *DEEP)
    scan = write_nifti(tmp_path / "scan.nii.gz", blobs((20, 24, 30)), np.eye(4))
    arguments = ["predict", "--checkpoint", model, "--input", scan, "--out", tmp_path / "out" / "seg.nii.gz"]
    seen = []

    def stop(*_: object, **__: object) -> Any:
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        raise OSError(28, "No space left on device") if when == "disk" else KeyboardInterrupt

    if when == "network":
        original = inference._Windows.__call__

        def second(self: Any, images: torch.Tensor) -> torch.Tensor:
            return stop() if any((tmp_path / "out").glob(".*")) and next(calls) else original(self, images)

        calls = iter(range(100))
        monkeypatch.setattr(inference._Windows, "__call__", second)
    else:
        monkeypatch.setattr(shutil, "copyfileobj", stop)
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--probabilities"])
    assert result.exit_code == (2 if when == "disk" else 130)
    assert ("No space left" if when == "disk" else "Stopped.") in result.stderr
    assert len(seen[0]) >= 1  # something was being written
    assert list((tmp_path / "out").iterdir()) == []


def test_a_terminated_process_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM, as `kill`, `timeout` and a cluster's scheduler send it, in the midst of a long prediction."""
    model = untrained(tmp_path / "model", *DEEP)
    scan = write_nifti(tmp_path / "scan.nii", np.zeros((128, 128, 256), np.int16), np.eye(4))
    out = tmp_path / "out"
    line = ["predict", "--checkpoint", model, "--input", scan, "--out", out / "seg.nii.gz", "--probabilities"]
    process = subprocess.Popen(
        [sys.executable, "-m", "secl_models", *map(str, line)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (out.is_dir() and list(out.iterdir())):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped. What was finished stays; go on: secl predict" in " ".join(error.split())
    assert "--overwrite" not in error  # which would do again what was finished
    assert list(out.iterdir()) == []


def test_options_reach_the_program(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", *FLAT)
    scan = write_nifti(tmp_path / "scan.nii.gz", blobs((30, 30, 3)), np.eye(4))
    options = ("--flips", "0,1", "--probabilities", "--largest-component", "all")
    names = ("--checkpoint", "--input", "--out")
    paths = [part for pair in zip(names, (model, scan, tmp_path / "seg.nii"), strict=True) for part in pair]
    result = CliRunner().invoke(cli.app, ["predict", *map(str, paths), *options])
    assert result.exit_code == 0
    predict(model, scan, tmp_path / "same.nii", flips="0,1", probabilities=True, largest_component="all")
    for name in ("", "_probabilities"):
        assert (tmp_path / f"seg{name}.nii").read_bytes() == (tmp_path / f"same{name}.nii").read_bytes()
    again = CliRunner().invoke(cli.app, ["predict", *map(str, paths), *options])
    assert again.exit_code == 2
    (tmp_path / "seg.nii").unlink()
    again = CliRunner().invoke(cli.app, ["predict", *map(str, paths), *options])
    assert "seg_probabilities.nii: a segmentation is not overwritten" in " ".join(again.stderr.split())
