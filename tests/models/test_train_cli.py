# SPDX-License-Identifier: Apache-2.0
"""`secl train` as it is typed: stopping early, being stopped, the profile, and who speaks among several processes."""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data import check, volumes
from secl_models.data.cases import Case, DataSet
from secl_models.data.files import write_text
from secl_models.data.splits import make_split
from secl_models.data.volumes import Volume
from secl_models.method import checkpoint
from secl_models.method.learner import Learner, make_learner
from secl_models.options.schema import RunConfig, to_yaml
from secl_models.train import run as train
from tests.models.test_train import CONFIG, write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_toy(tmp_path_factory.mktemp("toy") / "data")


def call(toy: DataSet, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error, each on one line."""
    write_text(out.parent / "toy.yaml", to_yaml(CONFIG))
    arguments = ["train", "--data", str(toy.root), "--preset", str(out.parent / "toy.yaml"), "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", ["secl", *arguments])
    result = CliRunner().invoke(cli.app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split())


@pytest.mark.parametrize("method", ["secl", "supervised"])
def test_every_file_is_read_once_and_no_volume_is_held_in_vain(
    method: str, toy: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check hands on what training needs; of that only the validation cases are held while it trains."""
    times: Counter[Path] = Counter()
    found: list[weakref.ref[Volume]] = []
    held: list[tuple[Case, ...]] = []
    given: list[tuple[Case, ...]] = []
    read, step = volumes._read_file, Learner.step

    def look() -> None:
        held.append(tuple(volume.case for each in found if (volume := each()) is not None))

    def reading(path: Path, *arguments: Any) -> Any:
        times[path] += 1
        return read(path, *arguments)

    def examining(*arguments: Any) -> Any:
        volume, faults = volumes.examine_case(*arguments)
        assert volume is not None
        found.append(weakref.ref(volume))
        return volume, faults

    def making(config: RunConfig, *arguments: Any) -> Learner:
        given.extend(tuple(volume.case for volume in part) for part in arguments[:2])
        look()
        return make_learner(config, *arguments)

    def stepping(learner: Learner, *arguments: Any, **options: Any) -> Any:
        look()
        return step(learner, *arguments, **options)

    monkeypatch.setattr(volumes, "_read_file", reading)
    monkeypatch.setattr(check, "examine_case", examining)
    monkeypatch.setattr(train, "make_learner", making)
    monkeypatch.setattr(Learner, "step", stepping)
    split = make_split(toy, CONFIG.labeled, CONFIG.seed)
    unlabeled = split.unlabeled if method == "secl" else ()
    assert call(toy, tmp_path / "run", monkeypatch, "--max-steps", "1", "--method", method)[0] == 0
    cases = [*split.labeled, *split.unlabeled, *split.val, *split.test]
    assert times == Counter(file for case in cases for file in (*case.image, case.label) if file is not None)
    assert given == [split.labeled, unlabeled]
    assert held == [(*split.labeled, *unlabeled, *split.val), split.val]


@pytest.mark.parametrize("limit", [["--max-steps", "5"], ["--max-steps=5"]])
def test_max_steps_says_how_to_go_on_and_that_works(
    limit: list[str], toy: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    status, said, profile = call(toy, out, monkeypatch, *limit, "--profile", "--seed", "3")
    assert status == 0
    command = f"secl train --data {toy.root} --preset {tmp_path}/toy.yaml --out {out} --profile --seed 3 --resume"
    assert said.endswith(f"Stopped at step 5 of 8. Go on from the last checkpoint: {command}")
    assert "Where a step's time goes" in profile
    assert checkpoint.load(out)["step"] == 5
    status, said, _ = call(toy, out, monkeypatch, "--seed", "3", "--resume")
    assert status == 0
    assert "Trained 8 steps" in said
    assert "secl evaluate" in said


def test_sigterm_ends_with_its_own_status_and_says_how_to_go_on(
    toy: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner._loss_of_labels

    def asked(learner: Learner) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(learner)

    monkeypatch.setattr(Learner, "_loss_of_labels", asked)
    status, _, said = call(toy, tmp_path / "run", monkeypatch)
    assert status == 143
    assert "Stopped by SIGTERM after a step that is kept. Go on from the last checkpoint: secl train" in said
    assert said.endswith("--resume")
    assert checkpoint.load(tmp_path / "run")["step"] == 1


def test_one_process_speaks_for_all_unless_it_has_its_own_trouble(
    toy: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    status, said, trouble = call(toy, tmp_path / "run", monkeypatch)
    assert (status, said) == (2, "")
    assert trouble == (
        "secl, process 1: train.batch: a multiple of the 3 processes, which divide the images of a step; got 2. "
        "Cure: write 3, or start another number of processes."
    )
