# SPDX-License-Identifier: Apache-2.0
"""Labels-only steps taken once: every method goes on from them bit for bit as if it had taken them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secl_models.data.cases import DataSet
from secl_models.data.splits import Split, make_split
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.options.errors import InputError
from secl_models.options.methods import METHODS
from tests.models.test_train import CONFIG, assert_same, assert_same_run, run, set_train, write_toy

WARM = 4  # of 8 steps
BRANCHING = set_train(CONFIG, warm_start=WARM / 8)
LABELS = set_train(BRANCHING, method="supervised", ramp=0.5, unlabeled_batch=0)  # what no labels-only step reads


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


@pytest.fixture(scope="module")
def start(toy: tuple[DataSet, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    run(LABELS, toy, out, max_steps=WARM)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_branch_is_bit_for_bit_the_run_that_was_never_divided(
    method: str, toy: tuple[DataSet, Split], start: Path, tmp_path: Path
) -> None:
    config = set_train(BRANCHING, method=method)
    run(config, toy, tmp_path / "whole")
    summary = run(config, toy, tmp_path / "branch", start=start)
    assert_same_run(tmp_path / "branch", tmp_path / "whole")
    assert summary.seconds > checkpoint.load(start)["seconds"]  # those of the shared steps count in every method


def test_all_methods_start_as_equals(
    toy: tuple[DataSet, Split], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def look(learner: Learner, ramp: float, **_: bool) -> None:
        state = learner.state()
        found[learner.config.train.method] = {name: state[name] for name in ("step", "student", "teacher", "optimizer")}
        assert (ramp > 0) is METHODS[learner.config.train.method].listens  # the first step after the branch
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", look)
    for method in METHODS:
        with pytest.raises(KeyboardInterrupt):
            run(set_train(BRANCHING, method=method), toy, tmp_path / method, start=start)
        for part in ("student", "teacher"):  # a head of the method's own is as it was drawn
            shared = type(found[method][part])((name, found[method][part][name]) for name in found["supervised"][part])
            assert_same(shared, found["supervised"][part], f"{method}/{part}")
        assert_same(found[method]["optimizer"]["state"], found["supervised"]["optimizer"]["state"], method)
        assert found[method]["step"] == found["supervised"]["step"]
    kept = checkpoint.load(start)
    assert_same(found["supervised"], {name: kept[name] for name in found["supervised"]})


@pytest.mark.parametrize("killed_after", [5, 7])  # before the first checkpoint of the branch, and after it
def test_a_killed_branch_goes_on(
    killed_after: int, toy: tuple[DataSet, Split], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(BRANCHING, toy, tmp_path / "whole")
    original, taken = Learner.step, []

    def dies(learner: Learner, ramp: float, **options: bool) -> Any:
        taken.append(learner.done)
        if learner.done == killed_after and taken.count(killed_after) == 1:
            raise KeyboardInterrupt
        return original(learner, ramp, **options)

    monkeypatch.setattr(Learner, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(BRANCHING, toy, tmp_path / "branch", resume=True, start=start)
    run(BRANCHING, toy, tmp_path / "branch", resume=True, start=start)
    assert min(taken) == WARM
    assert taken.count(4) == (2 if killed_after == 5 else 1)
    assert_same_run(tmp_path / "branch", tmp_path / "whole")


def test_weights_that_labels_only_does_not_have_are_as_they_were_drawn(
    toy: tuple[DataSet, Split], start: Path, tmp_path: Path
) -> None:
    state = checkpoint.load(start)
    for part in ("student", "teacher"):
        state[part] = {name: value for name, value in state[part].items() if not name.startswith("heads.")}
    state["optimizer"]["param_groups"][0]["params"] = list(range(len(state["student"])))
    (tmp_path / "bare").mkdir()
    checkpoint.save(tmp_path / "bare" / checkpoint.LAST, state)
    for name in ("history.csv", checkpoint.BEST):
        (tmp_path / "bare" / name).write_bytes((start / name).read_bytes())
    run(BRANCHING, toy, tmp_path / "whole")
    run(BRANCHING, toy, tmp_path / "branch", start=tmp_path / "bare")
    assert_same_run(tmp_path / "branch", tmp_path / "whole")


def test_only_the_labels_only_steps_of_a_run_alike_are_gone_on_from(
    toy: tuple[DataSet, Split], start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "branch"
    with pytest.raises(InputError, match=r"at most the 2 of this run's warm start; got 4 steps of supervised"):
        run(set_train(BRANCHING, warm_start=0.25), toy, out, start=start)
    with pytest.raises(InputError, match=r"other values of train\.lr"):
        run(set_train(BRANCHING, lr=0.001), toy, out, start=start)
    run(BRANCHING, toy, tmp_path / "secl", max_steps=3)
    with pytest.raises(InputError, match=r"got 3 steps of secl\. Cure: start from a run of supervised"):
        run(BRANCHING, toy, out, start=tmp_path / "secl")
    with pytest.raises(InputError, match="an existing checkpoint or run folder"):
        run(BRANCHING, toy, out, start=tmp_path / "none")
    assert not out.exists()


def test_the_labels_only_run_is_left_as_it_was(toy: tuple[DataSet, Split], start: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in start.iterdir() if path.is_file()}
    run(BRANCHING, toy, tmp_path / "branch", start=start)
    torch.rand(3)
    assert {path.name: path.read_bytes() for path in start.iterdir() if path.is_file()} == before
