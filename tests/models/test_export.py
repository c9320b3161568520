# SPDX-License-Identifier: Apache-2.0
"""An exported network segments as `predict` does, without torch and secl; what cannot be exported leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from secl_models.command import cli, doctor
from secl_models.inference import export as exporting
from secl_models.inference import graph, runner
from secl_models.inference.export import export
from secl_models.inference.predict import predict
from secl_models.method.checkpoint import load_model
from secl_models.method.networks import TappedModule
from secl_models.options.errors import InputError, WriteError
from secl_models.options.schema import NetworkConfig
from tests.budget import SAME_CLASS
from tests.models.files import edit
from tests.models.runs import tiny_run
from tests.models.untrained import DEEP, FLAT, blobs, untrained, write_nifti

OBLIQUE = np.array([[0.9, -0.2, 0.1, 7], [0.3, 1.4, -0.4, -3], [0, 0.2, 6.5, 11], [0, 0, 0, 1.0]])
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "monai", "secl_models", "secl_ops", "skimage"):
            raise ImportError(f"{name} is not for the runner")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Model:
    """A checkpoint, its export, and the options that both were given."""

    checkpoint: Path
    exported: Path
    options: dict[str, Any]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A trained network in two dimensions, exported on its own terms."""
    checkpoint, out = tiny_run(tmp_path_factory).folder, tmp_path_factory.mktemp("flat") / "exported"
    export(checkpoint, out, program=True)
    return Model(checkpoint, out, {})


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three dimensions, two channels, another spacing, flips and one part of each structure."""
    folder = tmp_path_factory.mktemp("deep")
    options: dict[str, Any] = {"flips": "0,2", "largest_component": "all"}
    untrained(folder / "run", *DEEP, channels=2, spacing="[1.1,1.2,3.0]")
    export(folder / "run", folder / "exported", **options)
    return Model(folder / "run", folder / "exported", options)


def _run_alone(model: Model, *files: Path) -> None:
    command = [sys.executable, "-I", "-c", ALONE, model.exported / "run.py", model.exported, *files]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _agreement(model: Model, *scans: Path, alone: bool = False) -> float:
    """Share of the voxels of one class, after all else was found equal."""
    place = scans[0].parent
    source = scans[0] if len(scans) == 1 else place / "images"
    (expected,) = predict(model.checkpoint, source, place / "expected", **model.options).written
    if alone:
        _run_alone(model, *scans, place / "found.nii.gz")
    else:
        runner.segment(model.exported, scans, place / "found.nii.gz")
    ours, theirs = (nib.Nifti1Image.from_filename(file) for file in (expected, place / "found.nii.gz"))
    assert ours.header.binaryblock == theirs.header.binaryblock
    segmentations = [np.asarray(image.dataobj) for image in (ours, theirs)]
    assert len(np.unique(segmentations[0])) > 1
    return float((segmentations[0] == segmentations[1]).mean())


def _reoriented(image: Any, axes: str) -> Any:
    tools: Any = nib.orientations
    moves = tools.ornt_transform(tools.io_orientation(image.affine), tools.axcodes2ornt(axes))
    return image.as_reoriented(moves)


def test_a_phantom_turned_and_stretched_is_segmented_as_predict_does(flat: Model, tmp_path: Path) -> None:
    data = flat.checkpoint.parent / "data"
    scan: Any = nib.load(next((data / "imagesUn").iterdir()))
    turned = _reoriented(scan, "PIR")
    stretched = turned.affine @ np.diag([0.7, 1.0, 1.6, 1.0])
    write_nifti(tmp_path / "scan.nii.gz", np.asarray(turned.dataobj), stretched, descrip=b"a name", xyzt_units=2)
    assert _agreement(flat, tmp_path / "scan.nii.gz", alone=True) >= SAME_CLASS


@pytest.mark.parametrize("shape", [(45, 37), (20, 18, 3)])
def test_a_slice_and_an_image_smaller_than_a_window(flat: Model, shape: tuple[int, ...], tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", blobs(shape), OBLIQUE)
    assert _agreement(flat, tmp_path / "scan.nii.gz") >= SAME_CLASS


def test_patches_of_two_channels_with_flips_and_largest_parts(deep: Model, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    scans = []
    for channel in (0, 1):
        image: Any = nib.Nifti1Image(blobs((37, 29, 7), seed=channel), OBLIQUE)
        scans.append(tmp_path / "images" / f"case_000{channel}.nii.gz")
        _reoriented(image, "SAL").to_filename(scans[-1])
    moved = [Path(shutil.copy(scan, tmp_path)) for scan in scans]
    assert _agreement(deep, *moved, alone=True) >= SAME_CLASS


@pytest.mark.parametrize("options", [{"normalize": "window", "window": [-40, 60]}, {"normalize": "slice"}])
def test_other_intensities_and_a_fixed_size(flat: Model, options: dict[str, Any], tmp_path: Path) -> None:
    """What surrounds the network changes; the graph is that of the fixture."""
    values = {**options, "size": [40, 24], "spacing": None, "orientation": None}
    state = torch.load(flat.checkpoint / "last.pt", weights_only=True)
    state["preprocess"] |= values
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / "last.pt")
    shutil.copytree(flat.exported, tmp_path / "exported")
    file = tmp_path / "exported" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    write_nifti(tmp_path / "scan.nii.gz", blobs((45, 37, 4)), OBLIQUE)
    model = Model(tmp_path / "run", tmp_path / "exported", {})
    assert _agreement(model, tmp_path / "scan.nii.gz") >= SAME_CLASS


def test_the_surroundings_say_what_the_network_needs(flat: Model, deep: Model) -> None:
    assert sorted(path.name for path in flat.exported.iterdir() if path.name[0] != ".") == [
        "model.json", "model.onnx", "model.pt2", "run.py",
    ]  # fmt: skip
    about = json.loads((deep.exported / "model.json").read_text())
    assert [entry["value"] for entry in about["labels"]] == [0, 1, 200, 600]
    assert (about["dims"], about["channels"], about["patch"]) == (3, 2, [16, 24, 8])
    assert about["views"] == [[], [0], [2], [0, 2]]
    assert about["largest_component"] == [1, 2, 3]
    assert about["spacing"] == [1.1, 1.2, 3.0]


def test_the_program_gives_the_logits_of_the_teacher(flat: Model) -> None:
    program = torch.export.load(flat.exported / "model.pt2").module()
    image = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        logits = load_model(flat.checkpoint).network(image).logits
        assert torch.allclose(program(image), logits)


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        ("exists", "found.nii.gz exists already"),
        ("channels", "the network takes 1 channel(s), not 2"),
        ("nan", "an intensity is NaN or infinite"),
        ("spacing", "of the affine"),
        ("direction", "sform and qform run in different directions"),
    ],
)
def test_the_runner_refuses_in_one_sentence(flat: Model, prepare: str, told: str, tmp_path: Path) -> None:
    array = blobs((20, 18, 3))
    if prepare == "nan":
        array[0, 0, 0] = np.nan
    if prepare == "channels":
        array = np.stack([array, array], -1)
    scan = write_nifti(tmp_path / "scan.nii.gz", array, OBLIQUE)
    if prepare == "spacing":
        image: Any = nib.load(scan)
        image.set_sform(OBLIQUE * 2, 1)
        image.to_filename(scan)
    if prepare == "direction":
        image = nib.load(scan)
        image.set_qform(OBLIQUE @ np.diag([-1, 1, 1, 1]), 1)
        image.to_filename(scan)
    before = {"scan.nii.gz"}
    if prepare == "exists":
        (tmp_path / "found.nii.gz").touch()
        before.add("found.nii.gz")
    with pytest.raises(SystemExit, match=rf"run\.py: .*{re.escape(told)}"):
        runner.segment(flat.exported, [scan], tmp_path / "found.nii.gz")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_runner_refuses_channels_that_lie_apart(deep: Model, tmp_path: Path) -> None:
    first = write_nifti(tmp_path / "a.nii.gz", blobs((20, 18, 8)), OBLIQUE)
    mirrored = write_nifti(tmp_path / "b.nii.gz", blobs((20, 18, 8)), OBLIQUE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(SystemExit, match=r"run\.py: the channels lie .* apart by their affines"):
        runner.segment(deep.exported, [first, mirrored], tmp_path / "found.nii.gz")
    assert not (tmp_path / "found.nii.gz").exists()


def test_a_qform_that_is_no_rotation_counts_as_little_as_for_predict(flat: Model, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii.gz", blobs((20, 18, 3)), OBLIQUE)
    edit(scan, qform_code=1, sform_code=1, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    assert _agreement(flat, scan) >= SAME_CLASS


@pytest.mark.parametrize("fault", ["missing", "empty", "short"])
def test_the_runner_names_a_file_that_cannot_be_read(flat: Model, fault: str, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    if fault != "missing":
        whole = write_nifti(scan, blobs((20, 18, 3)), OBLIQUE).read_bytes()
        scan.write_bytes(b"" if fault == "empty" else whole[:200])
    found = tmp_path / "new" / "found.nii.gz"
    command = [sys.executable, "-I", "-c", ALONE, flat.exported / "run.py", flat.exported, scan, found]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("run.py: ")
    assert "Traceback" not in done.stderr
    assert not found.parent.exists()


def test_the_runner_makes_the_folder_of_its_output(flat: Model, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii.gz", blobs((20, 18, 3)), OBLIQUE)
    runner.segment(flat.exported, [scan], tmp_path / "new" / "found.nii.gz")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["found.nii.gz"]


class _Choosing(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, classes + 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x)
        return logits if x.mean() > 0 else -logits


def choosing(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    return TappedModule(_Choosing(channels_in, classes), ["layer"], [classes + 1])


def shrinking(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    return TappedModule(nn.Sequential(nn.Conv2d(channels_in, classes + 1, 2, stride=2)), ["0"], [classes + 1])


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("choosing", r"a network that torch\.export traces; got .*\. Cure: take what depends on the values"),
        ("shrinking", r"logits of shape \(3, 4, 16, 24\); got \(3, 4, 8, 12\), and \(3, 4, 8, 12\) in ONNX"),
    ],
)
def test_a_network_that_cannot_be_exported_leaves_nothing(network: str, told: str, tmp_path: Path) -> None:
    untrained(tmp_path / "run", *FLAT, f"network.name={__name__}:{network}")
    with pytest.raises(InputError, match=told):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the slow part."""

    def written(traced: object, file: Path, what: object) -> None:
        file.write_bytes(b"graph")

    monkeypatch.setattr(exporting, "trace", lambda *_: None)
    monkeypatch.setattr(exporting, "write_onnx", written)
    monkeypatch.setattr(exporting, "difference", lambda *_: 0.0)


def test_logits_that_differ_are_refused(flat: Model, tmp_path: Path) -> None:
    model = load_model(flat.checkpoint)
    assert graph.difference(model, flat.exported / "model.onnx", "x") <= graph.AGREES
    with torch.no_grad():
        [*model.network.parameters()][-1][0].add_(1)
    with pytest.raises(InputError, match=r"x: logits in ONNX Runtime within 0\.001 of .*; got 0\.\d+ apart"):
        graph.difference(model, flat.exported / "model.onnx", "x")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"got no no_such_package\. Cure: pip install 'secl\[export\]'"):
        export(tmp_path, tmp_path / "out")


def test_doctor_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["extra export"].detail.startswith("onnx 1.")
    monkeypatch.setitem(doctor.EXTRAS, "export", ("onnx", "no_such_package"))
    (finding,) = [finding for finding in doctor.examine() if finding.name == "extra export"]
    assert finding.state == doctor.MISSING
    assert "no_such_package missing" in finding.detail
    assert "pip install 'secl[export]'" in finding.cure


def test_only_an_earlier_export_is_replaced(quick: None, tmp_path: Path) -> None:
    run, out = untrained(tmp_path / "run"), tmp_path / "out"
    export(run, out)
    with pytest.raises(InputError, match=r"a new or empty folder; got an earlier export\. Cure: add --overwrite"):
        export(run, out)
    assert export(run, out, overwrite=True).files == ("model.onnx", "model.json", "run.py")
    (out / "mine.txt").touch()
    with pytest.raises(InputError, match=r"got mine\.txt, which no `secl export` wrote"):
        export(run, out, overwrite=True)
    before = (run / "last.pt").read_bytes()
    with pytest.raises(InputError, match="got files that no `secl export` wrote"):
        export(run, run, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="got a file"):
        export(run, tmp_path / "file")
    assert (run / "last.pt").read_bytes() == before


def test_the_folder_that_one_stands_in_is_refused_and_a_link_followed(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, here = untrained(tmp_path / "run"), tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    with monkeypatch.context() as inside:
        inside.chdir(here)
        with pytest.raises(InputError, match=r"got the folder that this was called in\. Cure: name one inside it"):
            export(run, Path())
    assert export(run, tmp_path / "link").folder == here
    assert (here / "run.py").is_file()


def test_a_full_disk_leaves_what_was_there(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = untrained(tmp_path / "run"), tmp_path / "out"
    export(run, out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(WriteError, match="room on the disk"):
        export(run, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert (out / "run.py").is_file()


def test_the_command_says_what_to_do_next(quick: None, tmp_path: Path) -> None:
    untrained(tmp_path / "run")
    arguments = ["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0
    assert f"python {tmp_path}/out/run.py {tmp_path}/out scan.nii.gz seg.nii.gz" in done.stdout
    done = CliRunner().invoke(cli.app, [*arguments[:2], str(tmp_path / "no"), *arguments[3:], "--overwrite"])
    assert done.exit_code == 2
    assert "an existing checkpoint or run folder" in done.stderr
