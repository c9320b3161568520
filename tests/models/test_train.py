# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a toy data set: what they leave behind, resuming bit for bit, and every refusal."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from secl_models.data.cases import Case, DataSet
from secl_models.data.folders import note_written
from secl_models.data.layouts import read_data_set
from secl_models.data.splits import Split, load_split, make_split
from secl_models.data.volumes import Volume
from secl_models.inference import validate as validation
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.options.errors import InputError
from secl_models.options.methods import METHODS
from secl_models.options.schema import RunConfig, from_dict, load_preset, to_dict
from secl_models.train import run as train
from secl_models.train.run_folder import RunSummary

CONFIG = from_dict(
    {
        "labeled": 2,
        "data": {"dims": 2, "patch": [16, 16]},
        "network": {"channels": [4, 8, 8], "taps": [1], "projection": 8},
        "contrast": {"per_class": 4, "queue": 4, "grid": [2, 2], "confidence": 0.4},
        "train": {
            "method": "secl", "steps": 8, "batch": 2, "unlabeled_batch": 2, "warm_start": 0.25, "ramp": 0.25,
            "validate_every": 4, "checkpoint_every": 3, "device": "cpu", "threads": 1,
        },
    }
)  # fmt: skip


def write_toy(root: Path, cases: int = 10) -> DataSet:
    """A bright block in noise, in the layout of the Decathlon."""
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    random = np.random.default_rng(0)
    names = []
    for number in range(cases):
        label = np.zeros((16, 16, 4), np.uint8)
        at = random.integers(2, 7, 2)
        label[at[0] : at[0] + 7, at[1] : at[1] + 7] = 1
        image = (label + random.normal(0, 0.3, label.shape)).astype(np.float32)
        names.append(f"toy_{number:02d}")
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            stored: Any = nibabel.Nifti1Image(array, np.diag([1.0, 1, 4, 1]))
            nibabel.save(stored, root / folder / f"{names[-1]}.nii.gz")
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "block"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return read_data_set(root)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


def set_train(config: RunConfig, **options: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **options))


ONE_PATIENT = "Validation is on one patient alone: the checkpoint that is best there need not be on others."


def run(config: RunConfig, toy: tuple[DataSet, Split], out: Path, **options: Any) -> RunSummary:
    return train.train(config, *toy, out, progress=False, **options)


def rows(out: Path) -> list[dict[str, str]]:
    """History without what a clock or the size of the process decides."""
    with (out / "history.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    clocks = ("seconds", "processor_seconds", "images_per_second", "memory_mib")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read]


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Exact equality of nested states, tensors bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}/{number}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two folders hold one run: its checkpoints but for the time, its history, and nothing half-written."""
    for name in (checkpoint.LAST, checkpoint.BEST):
        our, their = (checkpoint.load(folder / name) for folder in (ours, theirs))
        for state in (our, their):
            del state["seconds"], state["processor_seconds"]
        assert_same(our, their, where=name)
    assert rows(ours) == rows(theirs)
    assert not [path.name for path in ours.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_everything_the_next_command_needs(
    method: str, toy: tuple[DataSet, Split], tmp_path: Path
) -> None:
    summary = run(set_train(CONFIG, method=method), toy, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["method"] == summary.method == method
    assert stored["steps"] == 8
    assert summary.seconds > 0
    assert summary.peak_memory_mib > 0
    assert summary.best_dice is not None
    assert summary.last_dice is not None
    assert 0 <= summary.last_dice <= summary.best_dice <= 1
    assert load_split(tmp_path / "run" / "split.json", toy[0]) == toy[1]
    echoed = load_preset(tmp_path / "run" / "config.yaml")
    assert echoed.data.normalize != "auto"
    assert echoed.train.method == method
    history = rows(tmp_path / "run")
    assert [row["step"] for row in history] == ["4", "8"]
    assert float(history[-1]["dice block"]) == float(history[-1]["val_dice"])
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    model = checkpoint.load_model(tmp_path / "run")
    assert (model.step, model.channels, model.classes) == (8, 1, {1: "block"})


def test_warm_start_neither_asks_the_teacher_nor_the_unlabelled(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = Learner._loss_with_teacher

    def spy(learner: Learner, ramp: float) -> Any:
        asked.append(learner.done)
        return original(learner, ramp)

    monkeypatch.setattr(Learner, "_loss_with_teacher", spy)
    run(CONFIG, toy, tmp_path / "run")
    assert asked == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("killed_after", [4, 7])
def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    killed_after: int, toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(CONFIG, toy, whole)
    original = Learner.step

    def dies(learner: Learner, ramp: float, **options: bool) -> Any:
        if learner.done == killed_after:
            raise KeyboardInterrupt
        return original(learner, ramp, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, toy, broken)
    assert checkpoint.load(broken)["step"] == killed_after // 3 * 3
    torch.rand(17)  # the global generator must not matter
    run(CONFIG, toy, broken, resume=True)
    for name in (checkpoint.LAST, checkpoint.BEST):
        ours, theirs = checkpoint.load(broken / name), checkpoint.load(whole / name)
        for clock in ("seconds", "processor_seconds"):
            assert ours.pop(clock) != theirs.pop(clock)
        assert_same(ours, theirs)
    assert rows(broken) == rows(whole)


def test_another_seed_is_another_run(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    run(CONFIG, toy, tmp_path / "a")
    run(replace(CONFIG, seed=1), toy, tmp_path / "b")
    ours, theirs = (checkpoint.load(tmp_path / name)["teacher"] for name in "ab")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_earlier_run_is_kept_unless_overwriting(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    short = set_train(CONFIG, steps=1, method="supervised")
    run(short, toy, tmp_path)
    with pytest.raises(InputError, match=r"last\.pt.*--resume to go on, --overwrite"):
        run(short, toy, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    run(replace(short, seed=3), toy, tmp_path, overwrite=True)
    assert (tmp_path / "last.pt").read_bytes() != before
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_resuming_with_other_options_is_refused_and_they_are_named(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    short = set_train(CONFIG, steps=1, method="supervised")
    run(short, toy, tmp_path)
    with pytest.raises(InputError, match=r"other values of seed, train\.lr\. Cure"):
        run(replace(set_train(short, lr=0.001), seed=2), toy, tmp_path, resume=True)
    run(set_train(short, threads=0, checkpoint_every=7), toy, tmp_path, resume=True)


def test_resuming_a_finished_run_changes_nothing(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    first = run(CONFIG, toy, tmp_path)
    before = (tmp_path / "last.pt").read_bytes(), rows(tmp_path)
    again = run(CONFIG, toy, tmp_path, resume=True)
    assert ((tmp_path / "last.pt").read_bytes(), rows(tmp_path)) == before
    for name in ("steps", "seconds", "best_dice", "best_step", "last_dice"):
        assert getattr(again, name) == getattr(first, name), name


def test_resuming_on_other_cases_is_refused(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    data, split = toy
    config = set_train(CONFIG, steps=2)
    run(config, toy, tmp_path / "r")
    fewer = data, replace(split, unlabeled=split.unlabeled[1:])
    with pytest.raises(InputError, match="the structures and cases that the run was started with"):
        run(config, fewer, tmp_path / "r", resume=True)


def test_a_refusal_leaves_the_earlier_run_and_no_new_folder(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    config = set_train(CONFIG, steps=2)
    run(config, toy, tmp_path / "r")
    kept = sorted(path.name for path in (tmp_path / "r").iterdir())
    unusable = replace(config, network=replace(config.network, name="no.such:network"))
    for folder in ("r", "new"):
        with pytest.raises(InputError):
            run(unusable, toy, tmp_path / folder, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == kept
    assert not (tmp_path / "new").exists()


def test_overwriting_removes_what_was_said_about_the_earlier_run(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    config = set_train(CONFIG, steps=2)
    run(config, toy, tmp_path / "r")
    note_written(tmp_path / "r", "evaluation_test_last.csv", "report.html")
    for name in ("evaluation_test_last.csv", "report.html", ".last.pt.1.partial"):
        (tmp_path / "r" / name).touch()
    run(config, toy, tmp_path / "r", overwrite=True)
    left = {path.name for path in (tmp_path / "r").iterdir()}
    assert not left & {"evaluation_test_last.csv", "report.html", ".last.pt.1.partial"}


def test_resume_without_a_checkpoint_begins(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    assert run(set_train(CONFIG, steps=1), toy, tmp_path / "new", resume=True).steps == 1


def test_a_loss_that_is_not_finite_stops_and_names_the_step(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner._loss_with_teacher

    def poisoned(learner: Learner, ramp: float) -> Any:
        loss, logged = original(learner, ramp)
        return (loss * float("nan") if learner.done == 5 else loss), logged

    monkeypatch.setattr(Learner, "_loss_with_teacher", poisoned)
    with pytest.raises(InputError, match=r"training step 6: the loss is a finite number; got nan.*lower train\.lr"):
        run(CONFIG, toy, tmp_path / "run")
    kept = checkpoint.load(tmp_path / "run")
    assert kept["step"] == 3
    assert all(value.isfinite().all() for value in kept["teacher"].values())


def test_no_unlabelled_cases_trains_as_supervised_and_says_so(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    split = replace(toy[1], unlabeled=())
    summary = run(CONFIG, (toy[0], split), tmp_path / "run")
    assert summary.method == "supervised"
    assert summary.notes == ("There are no unlabelled cases: secl trains as supervised.", ONE_PATIENT)


def test_no_validation_cases_leaves_last_only(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    summary = run(CONFIG, (toy[0], replace(toy[1], val=())), tmp_path / "run")
    assert summary.best_dice is summary.last_dice is summary.best_step is None
    assert (tmp_path / "run" / "last.pt").is_file()
    assert not (tmp_path / "run" / "best.pt").exists()
    assert "no best checkpoint" in summary.notes[0]


@pytest.mark.parametrize("name", ["cuda:9", "tpu", "mps"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    name: str, toy: tuple[DataSet, Split], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--device.*got {name}"):
        run(set_train(CONFIG, device=name), toy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="a folder to write to; got a file"):
        run(CONFIG, toy, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_validation_follows_its_rules_for_absent_structures_and_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structure 1: Dice 1 and, spuriously, 0 for patient p, 0.5 for q; structure 2: absent for p, missed for q."""
    truths = {"p1": [1, 1, 0, 0], "p2": [0, 0, 0, 0], "q1": [1, 1, 2, 0]}
    claims = {"p1": [1, 1, 0, 0], "p2": [0, 1, 0, 0], "q1": [1, 0, 1, 0]}
    volumes = [
        Volume(
            Case(name, name[0], (), None, None), np.zeros((1, 2, 2), np.float32),
            np.array(truth).reshape(2, 2), np.eye(4), None,
        )
        for name, truth in truths.items()
    ]  # fmt: skip

    def predict(network: Any, preprocess: Any, config: Any, volume: Volume) -> torch.Tensor:
        claim = torch.tensor(claims[volume.case.name]).view(2, 2)
        return torch.nn.functional.one_hot(claim, 3).movedim(-1, 0).float()

    monkeypatch.setattr(validation, "predict_volume", predict)
    nothing: Any = None
    found = validation.validate(nothing, nothing, CONFIG, volumes, 2)
    assert found.structures == (0.5, 0.0)
    assert found.dice == 0.25
    assert found.precision == 3 / 5


def test_three_dimensions(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    options = to_dict(CONFIG)
    options["data"] |= {"dims": 3, "patch": [8, 8, 4]}
    options["contrast"] |= {"grid": [2, 2, 1]}
    options["train"] |= {"steps": 4}
    summary = run(from_dict(options), toy, tmp_path / "run")
    assert summary.steps == 4


def test_a_few_steps_learn_the_block(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    learned = set_train(CONFIG, steps=120, batch=4, validate_every=120, lr=0.01, decay=0.9, method="supervised")
    dice = run(learned, toy, tmp_path / "run").last_dice
    assert dice is not None
    assert dice > 0.8  # an untrained network has below 0.4


def test_what_a_structure_loses_under_the_teacher_is_in_the_summary(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run was stopped between the two validations."""
    found = iter((0.9, 0.6, 0.3))

    def falling(*_: Any) -> validation.Validation:
        dice = next(found)
        return validation.Validation(dice, (dice,), dice, (dice,), (dice,))

    monkeypatch.setattr(train, "validate", falling)
    config = set_train(CONFIG, method="secl", steps=6, warm_start=0.5, validate_every=2, checkpoint_every=2)
    assert not any("Dice fell" in note for note in run(config, toy, tmp_path, max_steps=4).notes)
    notes = run(config, toy, tmp_path, resume=True).notes
    fallen = [note.partition(".")[0] for note in notes if note != ONE_PATIENT]
    assert fallen == ["Dice fell under the teacher: block (90"]
