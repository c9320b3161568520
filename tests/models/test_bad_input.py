# SPDX-License-Identifier: Apache-2.0
"""Data and runs that are not as they should be: what is said, and what is left to go on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secl_models.data.cases import DataSet
from secl_models.data.layouts import read_data_set
from secl_models.data.splits import Split, make_split
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.options.errors import InputError
from secl_models.train import run as train
from tests.models.test_train import CONFIG, ONE_PATIENT, assert_same_run, rows, run, set_train, write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


def test_after_a_loss_that_is_not_finite_the_last_good_checkpoint_goes_on(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner._loss_with_teacher

    def poisoned(learner: Learner, ramp: float) -> Any:
        loss, logged = original(learner, ramp)
        return (loss * float("nan") if learner.done == 5 else loss), logged

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_loss_with_teacher", poisoned)
        with pytest.raises(InputError) as refusal:
            run(CONFIG, toy, tmp_path / "run")
    assert str(refusal.value) == (
        "training step 6: the loss is a finite number; got nan. Cure: lower train.lr (now 0.005) under "
        f"another --out, or check the intensities and go on from {tmp_path / 'run' / 'last.pt'}."
    )
    run(CONFIG, toy, tmp_path / "run", resume=True)
    run(CONFIG, toy, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_learning_rate_far_too_high_stops_before_anything_is_kept(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    config = set_train(CONFIG, lr=1e30, method="supervised", checkpoint_every=1)
    with pytest.raises(
        InputError, match=r"training step [234]: the loss .* got (nan|inf).*lower train.lr \(now 1e\+30"
    ):
        run(config, toy, tmp_path)
    kept = checkpoint.load(tmp_path)
    assert kept["step"] < 4
    assert rows(tmp_path) == []


def test_a_structure_that_no_labelled_case_shows_is_named(
    toy: tuple[DataSet, Split], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_toy(tmp_path / "data")
    description = json.loads((data.root / "dataset.json").read_text())
    description["labels"] |= {"2": "ring"}
    (data.root / "dataset.json").write_text(json.dumps(description))
    data = read_data_set(data.root)
    note = (
        "No labelled case shows ring: it cannot be learned. "
        "Raise --labeled, or take another --seed, which draws other cases."
    )
    unlearned = (
        "Dice below 5 % of ring on the validation cases: not learned. Train longer, label more cases that show it, "
        "or see in the report whether a label is at fault."
    )
    assert run(CONFIG, (data, make_split(data, 2, 0)), tmp_path / "run").notes == (note, ONE_PATIENT, unlearned)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["notes"] == [note, ONE_PATIENT, unlearned]
    assert [message for message in caplog.messages if message in (note, unlearned)] == [note, unlearned]
    history = rows(tmp_path / "run")
    assert history[-1]["dice block"]
    assert checkpoint.load_model(tmp_path / "run").classes == {1: "block", 2: "ring"}


def test_images_smaller_than_the_patch_are_padded_and_far_smaller_ones_are_counted(
    toy: tuple[DataSet, Split], tmp_path: Path
) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, patch=(20, 24)))
    summary = run(config, toy, tmp_path / "slightly")
    assert summary.notes == (ONE_PATIENT,)
    assert summary.last_dice is not None
    config = replace(CONFIG, data=replace(CONFIG.data, patch=(32, 24)))
    assert run(config, toy, tmp_path / "far", max_steps=1).notes[0] == (
        "7 of 7 training images fill less than half of data.patch [32, 24]; the rest is padding, where no "
        "class is ever taught. A smaller patch is faster."
    )


def test_one_image_of_each_kind_is_enough_to_train(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    data, split = toy
    one = replace(split, labeled=split.labeled[:1], unlabeled=split.unlabeled[:1], val=split.val[:1], test=())
    assert run(CONFIG, (data, one), tmp_path / "run").steps == 8


@pytest.mark.parametrize("cases", [1, 2])
def test_one_image_only_cannot_be_divided(cases: int, tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data", cases=cases)
    with pytest.raises(InputError) as refusal:
        make_split(data, 1, 0)
    assert str(refusal.value) == (
        f"--labeled: between 1 and the 0 training patients with a label in {data.root}; got 1. Cure: label three "
        "patients or more: test, validation and training take one each at the least."
    )


def test_no_unlabelled_image_trains_as_supervised_and_says_so(
    toy: tuple[DataSet, Split], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, split = toy
    train.train(CONFIG, data, replace(split, unlabeled=()), tmp_path / "run")
    assert "There are no unlabelled cases: secl trains as supervised." in caplog.messages
    run(set_train(CONFIG, method="supervised"), (data, split), tmp_path / "supervised")
    ours, theirs = (rows(tmp_path / name) for name in ("run", "supervised"))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other file"])
def test_a_damaged_checkpoint_is_refused_and_the_other_one_goes_on(
    damage: str, toy: tuple[DataSet, Split], tmp_path: Path
) -> None:
    run(CONFIG, toy, tmp_path, max_steps=5)
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    content = {"truncated": last.read_bytes()[:-100], "empty": b"", "other file": b"hello" * 1000}[damage]
    last.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        run(CONFIG, toy, tmp_path, resume=True)
    assert str(refusal.value).startswith(f"{last}: a whole checkpoint; got a file that torch cannot read")
    assert "Cure: use the run's other checkpoint (to resume from it, copy it over this one), or train again." in str(
        refusal.value
    )
    assert last.read_bytes() == content
    last.write_bytes(best.read_bytes())
    assert run(CONFIG, toy, tmp_path, resume=True).steps == 8
