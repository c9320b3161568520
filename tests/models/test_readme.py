# SPDX-License-Identifier: Apache-2.0
"""The two training examples of the README, taken from its text, do what the sentences around them say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secl_models.data.phantom import write_phantom
from secl_models.inference.predict import predict
from secl_models.method.checkpoint import load
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def _block(word: str) -> str:
    (found,) = (block for block in BLOCKS if word in block)
    return str(found)


def test_a_network_of_one_s_own_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block("def build(")
    assert len([line for line in block.splitlines() if line.strip()]) == 5
    (tmp_path / "my_net.py").write_text(block)
    (command,) = re.findall(
        r"`PYTHONPATH=\. (secl train --data DIR --out RUN\s--set network\.name=my_net:build)`", TEXT
    )
    write_phantom(tmp_path / "DIR", cases=10, labeled=8, size=(32, 32, 4))
    small = (
        "data.patch=[32,32]", "train.batch=2", "train.unlabeled_batch=2", "train.validate_every=6", "train.threads=1",
        "train.steps=6", "train.warm_start=0.3", "labeled=2", "network.projection=8",
    )  # fmt: skip
    options = [part for option in small for part in ("--set", option)]
    line = [
        str(Path(sys.executable).with_name("secl")),
        *command.split()[1:],
        *options,
    ]  # no current folder in its path
    monkeypatch.setenv("PYTHONPATH", ".")
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = load(tmp_path / "RUN")
    assert any("upcat_2" in name for name in state["teacher"])
    assert state["teacher"]["heads.0.layers.0.weight"].shape == (8, 8)  # the layer that the block taps
    monkeypatch.syspath_prepend(str(tmp_path))
    scan = next((tmp_path / "DIR" / "imagesTr").iterdir())
    assert predict(tmp_path / "RUN", scan, tmp_path / "seg.nii.gz").written == (tmp_path / "seg.nii.gz",)


def test_the_loss_teaches_a_loop_of_one_s_own() -> None:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(_block("secl_ops.tap("), "README.md", "exec"), names)
    assert torch.isfinite(names["loss"])
    first, last = names["model"]
    assert all(weight.grad is not None and weight.grad.any() for weight in (*first.parameters(), *last.parameters()))
    first.weight.grad = None
    names["model"](names["image"])
    names["contrast"](names["features"](), names["label"]).backward()
    assert first.weight.grad.any()  # the contrast alone teaches the layer that is tapped
