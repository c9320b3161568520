# SPDX-License-Identifier: Apache-2.0
"""The command line: help, messages and exit statuses of bad input, and the way from data to a report."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import secl_models.train.run
from secl_models.command import cli
from secl_models.command.doctor import Finding, examine, findings_table
from secl_models.data.phantom import write_phantom
from secl_models.study.rows import Row, write_rows
from tests.models.runs import TINY, TinyRun, tiny_run

COMMANDS = (
    "demo", "train", "evaluate", "predict", "export", "calibrate", "suggest", "report", "check", "doctor", "study",
)  # fmt: skip
# Seconds of processor time, not of the clock: a busy machine does not fail the test, an import of torch does.
HELP_SECONDS = 1.0

Array = npt.NDArray[Any]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def _call(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output, standard error without line breaks."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def _train(data: object, out: object, *more: object) -> tuple[int, str, str]:
    options = [part for option in TINY for part in ("--set", option)]
    return _call("train", "--data", data, "--out", out, "--preset", "demo", *options, "--labeled", 2, *more)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command: str) -> None:
    status, text, _ = _call(command, "--help")
    assert status == 0
    assert f"Example: secl {command}" in " ".join(text.split())


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys, secl_models.command.cli; print([m for m in ('torch', 'monai', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    before = os.times().children_user
    subprocess.run([sys.executable, "-m", "secl_models", "--help"], check=True, capture_output=True)
    assert os.times().children_user - before < HELP_SECONDS


def test_a_check_imports_no_torch(tmp_path: Path) -> None:
    write_phantom(tmp_path / "data", cases=3, labeled=3, size=(48, 48, 6))
    code = f"""
import sys
from secl_models.command.cli import app
app(["check", "--data", {str(tmp_path / "data")!r}, "--quiet"], standalone_mode=False)
print([name for name in ("torch", "monai") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_from_data_to_report(run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, text, _ = _train(run.data.root, out, "--method", "supervised", "--seed", 1)
    assert status == 0
    assert f"secl evaluate --checkpoint {out} --data {run.data.root}" in text
    assert f"secl predict --checkpoint {out} --input scan.nii.gz --out seg.nii.gz" in text
    status, text, _ = _call("evaluate", "--checkpoint", out, "--data", run.data.root, "--baseline", run.folder)
    assert status == 0
    assert (out / "report.html").is_file()
    assert (out / "evaluation_test_best.csv").is_file()
    scan = run.data.cases[0].image[0]
    status, text, _ = _call("predict", "--checkpoint", out, "--input", scan, "--out", tmp_path / "seg.nii.gz")
    assert status == 0
    assert "seg.nii.gz" in text.replace("\n", "")


def test_the_preset_of_the_folder_s_name_is_chosen_and_said(tmp_path: Path) -> None:
    (tmp_path / "hippocampus").mkdir()
    (tmp_path / "mine").mkdir()
    for name, preset in (("hippocampus", "hippocampus"), ("mine", "default")):
        status, _, error = _call("train", "--data", tmp_path / name, "--out", tmp_path / "run")
        assert status == 2
        assert f"Preset: {preset} (choose another with --preset)." in error


def _broken(run: TinyRun, tmp_path: Path) -> Path:
    shutil.copytree(run.data.root, tmp_path / "data")
    return tmp_path / "data"


def _refused(answer: tuple[int, str, str], *parts: str, out: Path | None = None) -> None:
    status, _, error = answer
    assert status == 2
    assert "Traceback" not in error
    for part in parts:
        assert part in error
    assert "Cure: " in error
    assert out is None or not out.exists()


def test_truncated_image(run: TinyRun, tmp_path: Path) -> None:
    data = _broken(run, tmp_path)
    file = sorted((data / "imagesTr").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-300])
    answer = _train(data, tmp_path / "run")
    _refused(answer, f"error: {file}: the file can be read to its end", out=tmp_path / "run")


def test_missing_image(run: TinyRun, tmp_path: Path) -> None:
    data = _broken(run, tmp_path)
    file = sorted((data / "imagesTr").iterdir())[0]
    file.unlink()
    _refused(_train(data, tmp_path / "run"), file.name.removesuffix(".nii.gz"), out=tmp_path / "run")


def _rewrite(file: Path, array: Array, affine: Array | None = None) -> None:
    image = nib.Nifti1Image.from_filename(file)
    make = nib.Nifti1Image
    make(array, image.affine if affine is None else affine).to_filename(file)  # type: ignore[no-untyped-call]


def _label(data: Path) -> tuple[Path, Array, Array]:
    file = sorted((data / "labelsTr").iterdir())[0]
    image = nib.Nifti1Image.from_filename(file)
    return file, np.asarray(image.dataobj), np.asarray(image.affine)


def test_label_of_another_shape(run: TinyRun, tmp_path: Path) -> None:
    data = _broken(run, tmp_path)
    file, label, _ = _label(data)
    _rewrite(file, label[:-1])
    answer = _train(data, tmp_path / "run")
    _refused(answer, str(file), "the shape is that of", "resample it to phantom_001.nii.gz", out=tmp_path / "run")


def test_label_with_another_affine(run: TinyRun, tmp_path: Path) -> None:
    data = _broken(run, tmp_path)
    file, label, affine = _label(data)
    moved = affine.copy()
    moved[0, 3] += 9
    _rewrite(file, label, moved)
    _refused(_train(data, tmp_path / "run"), str(file), "the affine is that of", out=tmp_path / "run")


def test_label_value_outside_the_list(run: TinyRun, tmp_path: Path) -> None:
    data = _broken(run, tmp_path)
    file, label, _ = _label(data)
    label = label.copy()
    label[0, 0, 0] = 77
    _rewrite(file, label)
    answer = _train(data, tmp_path / "run")
    _refused(answer, str(file), "label values are among 0, 1, 2, 3; got 77 in 1 voxels", out=tmp_path / "run")


def test_check_names_every_fault_and_answers_with_the_status(run: TinyRun, tmp_path: Path) -> None:
    status, text, _ = _call("check", "--data", run.data.root)
    assert status == 0
    assert "0 errors" in text
    assert "images of 32 x 32 x 4 voxels of 5.4 x 5.4 x 24 mm" in text
    data = _broken(run, tmp_path)
    file, label, _ = _label(data)
    _rewrite(file, label[:-1])
    other = sorted((data / "imagesUn").iterdir())[0]
    other.write_bytes(b"no image")
    status, text, error = _call("check", "--data", data)
    assert status == 2
    assert "2 errors" in text
    assert str(file) in error
    assert str(other) in error


def test_no_labelled_case_and_more_than_exist(run: TinyRun, tmp_path: Path) -> None:
    _refused(_train(run.data.root, tmp_path / "run", "--labeled", 0), "got 0", out=tmp_path / "run")
    _refused(_train(run.data.root, tmp_path / "run", "--labeled", 99), "99", out=tmp_path / "run")


def test_a_folder_that_holds_a_run(run: TinyRun) -> None:
    before = (run.folder / "last.pt").read_bytes()
    answer = _train(run.data.root, run.folder)
    _refused(answer, str(run.folder), "an empty or new folder for a new run", "--resume", "--overwrite")
    assert (run.folder / "last.pt").read_bytes() == before


def test_unknown_preset_method_and_option(run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = _call("train", "--data", run.data.root, "--out", out, "--preset", "liver")
    _refused(
        answer, "preset liver", "one of acdc, acdc-1, acdc-3, acdc-7, acdc-study, default, demo, hippocampus", out=out
    )
    _refused(_train(run.data.root, out, "--method", "magic"), "train.method", "magic", out=out)
    _refused(_train(run.data.root, out, "--set", "train.stepz=5"), "train.stepz", "train.steps", out=out)


def test_a_data_folder_that_is_none(tmp_path: Path) -> None:
    _refused(_train(tmp_path / "no", tmp_path / "run"), str(tmp_path / "no"), out=tmp_path / "run")
    (tmp_path / "empty").mkdir()
    _refused(
        _train(tmp_path / "empty", tmp_path / "run"),
        "dataset.json",
        "train_slices.list",
        out=tmp_path / "run",
    )


def test_a_checkpoint_of_another_network(run: TinyRun, tmp_path: Path) -> None:
    state = torch.load(run.folder / "last.pt", weights_only=True)
    state["config"]["network"]["channels"] = [4, 8, 32]
    torch.save(state, tmp_path / "last.pt")
    scan = run.data.cases[0].image[0]
    out = tmp_path / "seg.nii.gz"
    answer = _call("predict", "--checkpoint", tmp_path / "last.pt", "--input", scan, "--out", out)
    _refused(answer, "last.pt: weights of this very network", "instead of", out=out)


def test_a_truncated_and_a_missing_checkpoint(run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((run.folder / "last.pt").read_bytes()[:1000])
    scan = run.data.cases[0].image[0]
    for checkpoint, rule in ((tmp_path, "a whole checkpoint"), (tmp_path / "no", "an existing checkpoint")):
        answer = _call("predict", "--checkpoint", checkpoint, "--input", scan, "--out", tmp_path / "seg.nii.gz")
        _refused(answer, rule, out=tmp_path / "seg.nii.gz")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, so asking for one is no error")
def test_a_cuda_device_where_none_is(run: TinyRun, tmp_path: Path) -> None:
    answer = _train(run.data.root, tmp_path / "run", "--device", "cuda")
    _refused(answer, "--device: a GPU that torch can use; got cuda with 0", out=tmp_path / "run")


def test_an_existing_segmentation(run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    out.write_bytes(b"precious")
    scan = run.data.cases[0].image[0]
    _refused(_call("predict", "--checkpoint", run.folder, "--input", scan, "--out", out), "add --overwrite")
    assert out.read_bytes() == b"precious"


def test_an_existing_demo_is_kept(tmp_path: Path) -> None:
    (tmp_path / "secl+").mkdir()
    (tmp_path / "mine.txt").touch()
    _refused(_call("demo", "--out", tmp_path), "a new folder for the demo; got a folder with secl+", "--overwrite")


def test_a_training_keeps_who_an_earlier_one_tested(run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "more"
    status, _, error = _train(run.data.root, out, "--split-of", run.folder, "--labeled", 4, "--seed", 7, "--steps", 2)
    assert status == 0, error
    before, after = (json.loads((folder / "split.json").read_text()) for folder in (run.folder, out))
    assert (after["test"], after["val"]) == (before["test"], before["val"])
    assert {*before["labeled"]} < {*after["labeled"]}
    _refused(_train(run.data.root, tmp_path / "x", "--split-of", tmp_path), "split.json", out=tmp_path / "x")


def test_suggested_patients_that_have_labels_are_not_said_to_need_them(run: TinyRun, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(run.data.root, data, ignore=shutil.ignore_patterns("imagesUn"))
    status, _, error = _train(data, out, "--steps", 2)
    assert status == 0, error
    status, text, error = _call("suggest", "--checkpoint", out, "--data", data, "--out", tmp_path / "suggest")
    assert status == 0, error
    assert "These have labels already" in text
    assert "secl train" not in text


def test_an_interrupted_training_says_how_to_go_on(
    run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(secl_models.train.run, "train", interrupted)
    monkeypatch.setattr(sys, "argv", ["secl", "train", "--data", "my data", "--out", "runs/x", "--overwrite"])
    status, _, error = _train(run.data.root, tmp_path / "run")
    assert status == 130
    assert "Go on from the last checkpoint: secl train --data 'my data' --out runs/x --resume" in error


def test_doctor_names_every_backend_with_a_cure_for_the_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import secl_ops

    monkeypatch.setattr(secl_ops, "backends", lambda: {"reference": None, "native": ["no extension"]})
    found = {finding.name: finding for finding in examine()}
    assert found["backend reference"].state == "ok"
    assert found["backend native"].detail == "no extension"
    assert "g++" in found["backend native"].cure
    with Console(width=200, record=True, file=io.StringIO()) as console:
        console.print(findings_table([Finding("x", "missing", "none", "pip install '.[train]'")]))
    assert ".[train]" in console.export_text()
    monkeypatch.undo()
    status, text, _ = _call("doctor")
    assert status == 0
    assert "torch" in text


def test_study_refuses_what_it_cannot_run(run: TinyRun, tmp_path: Path) -> None:
    base = ("study", "--data", run.data.root, "--preset", "demo", "--out", tmp_path / "s")
    _refused(_call(*base, "--seeds", "a"), "--seeds: whole numbers between commas; got a")
    _refused(_call(*base, "--methods", "secl,magic"), "--methods: known methods between commas; got magic")
    _refused(_call("study"), "--data: a data set to study; got nothing")
    _refused(_call("study", "--data", run.data.root, "--split", "tset"), "--split: test or val; got tset")
    _refused(_call(*base, "--labeled", 99), "99", out=tmp_path / "s")
    _refused(_call("study", "table", tmp_path / "no.csv"), "no.csv: rows of a study; got no such file")


@pytest.mark.parametrize("command", ["table", "figure", "cases", "cost", "suggest"])
def test_every_help_under_study_shows_an_example(command: str) -> None:
    status, text, _ = _call("study", command, "--help")
    assert status == 0
    assert f"Example: secl study {command}" in " ".join(text.split())


def test_study_figure_cases_and_cost(run: TinyRun, tmp_path: Path) -> None:
    _refused(_call("study", "figure", tmp_path / "no.csv"), "no.csv: rows of a study; got no such file")
    folder = tmp_path / "none"
    _refused(_call("study", "cases", folder, "--data", run.data.root), "a finished run that was evaluated on test")
    options = [part for option in TINY for part in ("--set", option)]
    base = ("study", "cost", "--data", run.data.root, "--preset", "demo", "--steps", 2, *options)
    _refused(_call(*base, "--methods", "magic"), "--methods: known methods between commas; got magic")
    status, text, _ = _call(*base, "--methods", "supervised,secl", "--csv", tmp_path / "cost.csv", "--markdown")
    assert status == 0
    assert text.splitlines()[2].startswith("| supervised | ")
    assert (tmp_path / "cost.csv").read_text().splitlines()[2].startswith("secl,")


def test_study_runs_in_processes_tells_of_them_and_prints_the_table(
    run: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [part for option in TINY for part in ("--set", option)]
    base = ("study", "--data", run.data.root, "--preset", "demo", "--labeled", 2, "--out", tmp_path, *options)
    _refused(_call(*base, "--warm-start", 7), "--warm-start: at most train.steps, 6; got 7")
    base = (*base, "--warm-start", 0)  # a process less
    status, text, error = _call(*base, "--methods", "supervised", "--seeds", 5, "--log-format", "json")
    assert status == 0
    assert '"study: 1 runs to do, 0 finished before"' in error
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert {entry["run"] for entry in told} == {"supervised (steps) seed 5"}
    assert [entry["step"] for entry in told if entry["event"] == "validation"] == [3, 6]
    assert "[1/1] supervised, seed 5, 6 steps (steps): Dice" in text
    status, text, _ = _call(*base, "--methods", "supervised", "--seeds", 5)
    assert "[1/1]" not in text
    status, text, _ = _call("study", "table", tmp_path / "study.csv", "--markdown")
    assert text.startswith("| data | labelled | method |")
    assert "| supervised | 1 |" in text


def test_study_table_of_a_file(tmp_path: Path) -> None:
    row = Row("d", 4, "secl", "steps", 0, 9, 6.0, 5.0, "last", 71.5, 2.0, 1.0, 9.0, "cpu", "", "a=71.5", "demo")
    write_rows(tmp_path / "study.csv", [row])
    status, text, _ = _call("study", "table", tmp_path / "study.csv", "--markdown")
    assert status == 0
    assert text.splitlines()[-1] == "| d | 4 | secl | 1 | a 71.5 | 71.5 | - | - | 2.0 | 1.0 | 9 | 0.1 | 9 |"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "secl_models", "check"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--data" in done.stderr


def test_summary_is_json_that_the_report_reads(run: TinyRun) -> None:
    assert json.loads((run.folder / "summary.json").read_text())["steps"] == 6


def test_an_option_that_is_set_is_not_overridden_by_a_default(tmp_path: Path) -> None:
    arguments = ("--set", "train.method=wrong", "--data", tmp_path, "--out", tmp_path / "r", "--preset", "demo")
    status, _, error = _call("train", *arguments)
    assert status == 2
    assert "train.method" in error
    assert "wrong" in error


def test_a_path_through_a_file_is_one_message(run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, error = _call("demo", "--out", tmp_path / "file" / "sub")
    assert status == 2
    assert "file" in error
    assert "Traceback" not in error
