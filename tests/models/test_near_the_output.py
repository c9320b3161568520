# SPDX-License-Identifier: Apache-2.0
"""Methods that contrast beside mixing: they learn the phantom, and resume bit for bit with banks and prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secl_models.data.cases import DataSet
from secl_models.data.phantom import write_phantom
from secl_models.data.splits import Split, make_split
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.method.networks import ContrastModel, build_network
from secl_models.options.schema import NetworkConfig, RunConfig, override
from tests.models.runs import tiny_config
from tests.models.test_train import assert_same, rows, run

STATE = {  # of each method: what its checkpoint holds beside the networks
    "mixed-region": (),
    "prototypes": ("near_the_output.prototype.rows",),
    "centroids": tuple(f"near_the_output.centroid.banks.{place}.rows" for place in (0, 1)),
    "disagreement": (),
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=10, labeled=8, size=(32, 32, 4))
    return data, make_split(data, 2, 0)


def config_of(method: str) -> RunConfig:
    options = (
        f"train.method={method}", "train.steps=30", "train.batch=4", "train.unlabeled_batch=4", "train.warm_start=0.4",
        "train.validate_every=30", "train.checkpoint_every=10", "train.lr=0.02", "train.decay=0.9",
        "contrast.confidence=0.5", "centroid.bank=20",
    )  # fmt: skip
    return override(tiny_config(), options)


@pytest.mark.parametrize("method", STATE)
def test_a_short_run_learns_and_resumes_bit_for_bit(
    method: str, phantom: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(method)
    run(config, phantom, tmp_path / "whole")
    original = Learner.step

    def dies(learner: Learner, ramp: float, **options: bool) -> Any:
        if learner.done == 24:
            raise KeyboardInterrupt
        return original(learner, ramp, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(config, phantom, tmp_path / "broken")
    assert checkpoint.load(tmp_path / "broken")["step"] == 20
    run(config, phantom, tmp_path / "broken", resume=True)
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("broken", "whole"))
    for clock in ("seconds", "processor_seconds"):
        assert ours.pop(clock) != theirs.pop(clock)
    assert_same(ours, theirs)
    for name in STATE[method]:
        assert theirs["objective"][name].any(), name
    history = rows(tmp_path / "whole")
    assert rows(tmp_path / "broken") == history
    assert float(history[-1]["supervised"]) < 0.9 * float(history[0]["supervised"])
    term = {"mixed-region": "region", "prototypes": "prototype", "centroids": "centroid"}.get(method, method)
    assert any(row[term] and float(row[term]) > 0 for row in history)


def test_another_head_near_the_output_changes_no_other_weight() -> None:
    """So that a method may go on from the labels-only steps of any other."""
    states = []
    for head in (None, "linear", "projection"):
        torch.manual_seed(3)
        network = build_network(NetworkConfig(channels=(4, 8, 16)), 2, 1, 2)
        states.append(dict(ContrastModel(network, 8, head).state_dict()))
    for state in states[1:]:
        assert [name for name in state if name not in states[0]]
        assert_same({name: state[name] for name in states[0]}, states[0])


@pytest.mark.parametrize("method", STATE)
def test_a_run_begins_as_labels_only(method: str, phantom: tuple[DataSet, Split], tmp_path: Path) -> None:
    """Bit for bit until the teacher is listened to."""
    for name in (method, "supervised"):
        run(config_of(name), phantom, tmp_path / name, max_steps=12)
    ours, theirs = (checkpoint.load(tmp_path / name) for name in (method, "supervised"))
    for part in ("student", "teacher"):
        assert_same({name: ours[part][name] for name in theirs[part]}, dict(theirs[part]))
