# SPDX-License-Identifier: Apache-2.0
"""A run that starts from weights of a file: what matches is taken, what does not is named, and no other is mixed in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data.splits import make_split
from secl_models.method import checkpoint
from secl_models.method.networks import build_network
from secl_models.method.pretrained import load_pretrained, read_weights
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, override
from secl_models.study.jobs import Job, start_folder
from secl_models.train.resuming import identify
from secl_models.train.run import train
from tests.models.runs import TINY, TinyRun, tiny_config, tiny_run


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def _network(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(tiny_config().network, 2, 1, classes).module


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class _Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"network_weights": state, "logging": {"dice": [np.float64(0.5)]}, "epoch": np.int64(3)},
        lambda state: {"model": {"state_dict": {f"_orig_mod.net.{name}": value for name, value in state.items()}}},
        lambda state: {"student": {"x": torch.ones(1)}, "teacher": state},
    ],
)
def test_the_usual_containers_and_prefixes_are_seen_through(wrap: Any, tmp_path: Path) -> None:
    theirs, ours = _network(1), _network(0)
    torch.save(wrap(theirs.state_dict()), tmp_path / "weights.pth")
    account = load_pretrained(ours, tmp_path / "weights.pth")
    assert _equal(ours.state_dict(), theirs.state_dict())
    assert account.tensors[0] == account.tensors[1] == len({*theirs.parameters()})
    assert account.absent == account.reshaped == account.left == ()


def test_safetensors_and_a_run_of_secl(run: TinyRun, tmp_path: Path) -> None:
    theirs, ours = _network(1), _network(0)
    save_model(theirs, str(tmp_path / "weights.safetensors"))
    load_pretrained(ours, tmp_path / "weights.safetensors")
    assert _equal(ours.state_dict(), theirs.state_dict())
    account = load_pretrained(ours, run.folder / "last.pt")
    assert _equal(ours.state_dict(), checkpoint.load_model(run.folder).network.module.state_dict())
    assert account.tensors[0] == account.tensors[1]
    assert account.left == tuple(
        name for name in read_weights(run.folder / "last.pt")[0] if not name.startswith("network.")
    )
    assert str(account).startswith(f"Started from {run.folder}/last.pt (`teacher`, names without `network.module.`): ")


def test_what_does_not_match_is_named(tmp_path: Path) -> None:
    theirs, ours = dict(_Whole().state_dict()), _Whole()
    theirs["elsewhere.weight"] = theirs.pop("encoder.1.weight")
    theirs["head.bias"] = torch.ones(3)
    torch.save(theirs, tmp_path / "weights.pt")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    account = load_pretrained(ours, tmp_path / "weights.pt")
    assert (account.tensors, account.weights) == ((7, 9), (40 + 4 + 4 + 4 + 1 + 8, 67))
    assert account.absent == ("encoder.1.weight",)
    assert account.reshaped == ("head.bias (3,) in the file, (2,) in the network",)
    assert account.left == ("elsewhere.weight",)
    for name in ("encoder.1.weight", "head.bias"):
        assert torch.equal(ours.state_dict()[name], before[name])
    assert str(account) == (
        f"Started from {tmp_path}/weights.pt: 7 of 9 tensors, 61 of 67 weights. Not in the file: 1 (encoder.1.weight). "
        "Of another shape: 1 (head.bias (3,) in the file, (2,) in the network). Left over in it: 1 (elsewhere.weight)."
    )


def test_weights_of_one_part_find_it(tmp_path: Path) -> None:
    theirs, ours = _Whole(), _Whole()
    torch.save({**theirs.encoder.state_dict(), "fc.weight": torch.ones(9, 4)}, tmp_path / "encoder.pth")
    account = load_pretrained(ours, tmp_path / "encoder.pth")
    assert _equal(ours.encoder.state_dict(), theirs.encoder.state_dict())
    assert account.absent == ("head.weight", "head.bias")
    assert account.left == ("fc.weight",)
    assert "(as `encoder.`): 7 of 9 tensors" in str(account)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"an existing file of weights; got no such file"),
        (
            b"no weights",
            r"read without running code: .*; got a file that torch\.save did not write\. Cure: download it",
        ),
        (
            {"model": _Code()},
            r"read without running code: .*; got an object of \S*print, which only",
        ),
        ({"epoch": 3, "lr": 0.1}, r"tensors by name, also under state_dict, .*; got epoch, lr\. Cure: save"),
        ([torch.ones(1)], r"tensors by name, .*; got list"),
        (
            {"conv.weight": torch.ones(1)},
            r"some have the name of the network's; got 1 others: conv\.weight \(nearest: \w.*weight\)",
        ),
    ],
)
def test_a_file_of_nothing_that_serves_is_refused(
    content: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=rf"weights\.pth: .*{told}"):
        load_pretrained(network, file)
    assert _equal(network.state_dict(), before)
    assert "ran" not in capsys.readouterr().out


def test_other_shapes_throughout_are_said_to_be_so(tmp_path: Path) -> None:
    torch.save({name: torch.ones(1, 2, 3) for name in _network().state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"some have the shape of the network's; got other shapes in \d+ \(input_block"
    ):
        load_pretrained(_network(), tmp_path / "weights.pth")


def _config(init: Path | None, *more: str) -> RunConfig:
    return override(tiny_config(), [*more, *([f"network.init={init}"] if init else [])])


def test_a_run_starts_from_the_weights_and_keeps_the_account(
    run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "weights.pth", tmp_path / "run"
    torch.save(_network(1).state_dict(), file)
    config = _config(file, "train.lr=1e-30", "train.weight_decay=0")
    split = make_split(run.data, config.labeled, config.seed)
    summary = train(config, run.data, split, out, progress=False, max_steps=2)
    assert summary.init.startswith(f"Started from {file}: ")
    state = checkpoint.load(out)
    for owner in ("student", "teacher"):
        weights = {name.removeprefix("network.module."): value for name, value in state[owner].items()}
        assert all(torch.allclose(weights[name], value) for name, value in _network(1).state_dict().items())
    digest = state["config"]["network"]["init_digest"]
    assert len(digest) == 64

    monkeypatch.setattr("secl_models.method.learner.load_pretrained", None)  # a resumed run does not load it again
    with pytest.raises(InputError, match=r"other values of network\.init, network\.init_digest"):
        train(_config(None, "train.lr=1e-30", "train.weight_decay=0"), run.data, split, out, resume=True)
    kept = shutil.move(file, tmp_path / "elsewhere")
    summary = train(config, run.data, split, out, resume=True, progress=False, max_steps=3)  # the file is gone
    assert summary.init == json.loads((out / "summary.json").read_text())["init"] == state["init"]
    assert f"init_digest: {digest}" in (out / "config.yaml").read_text()

    torch.save(_network(2).state_dict(), file)  # another under its name
    with pytest.raises(InputError, match=r"other values of network\.init_digest"):
        train(config, run.data, split, out, resume=True)
    with pytest.raises(InputError, match=r"the file whose digest the options give; got .*\.\.\., not .*\.\.\."):
        identify(replace(config, network=replace(config.network, init_digest=digest)), None)
    shutil.move(kept, file)
    train(config, run.data, split, out, resume=True, progress=False)


def test_a_study_shares_warm_starts_of_one_init_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, "demo", 2, "secl", 0, overrides=(*TINY, "network.init=a.pth"))
    rival = replace(job, method="secl+")
    assert start_folder(job, tmp_path) == start_folder(rival, tmp_path)
    others = [replace(job, overrides=(*TINY, "network.init=b.pth")), replace(job, overrides=TINY)]
    assert len({start_folder(other, tmp_path) for other in (job, *others)}) == 3


def test_the_command_tells_what_matched(run: TinyRun, tmp_path: Path) -> None:
    file = tmp_path / "odd: [name].pth"
    torch.save(_network(1, classes=5).state_dict(), file)
    options = [part for option in TINY for part in ("--set", option)]
    base = ["train", "--data", str(run.data.root), "--preset", "demo", *options, "--labeled", "2", "--max-steps", "1"]
    done = CliRunner().invoke(cli.app, [*base, "--out", str(tmp_path / "run"), "--init", str(file)])
    assert done.exit_code == 0, done.output
    assert f"Started from {file}: " in done.stderr
    assert "Of another shape: 2 (output_block" in done.stderr
    done = CliRunner().invoke(cli.app, [*base, "--out", str(tmp_path / "none"), "--init", str(tmp_path / "no.pth")])
    assert done.exit_code == 2
    assert "no.pth: an existing file of weights; got no such file. Cure: name a .pt" in done.stderr
    assert not (tmp_path / "none").exists()
