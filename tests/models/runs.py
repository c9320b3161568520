# SPDX-License-Identifier: Apache-2.0
"""One tiny finished run on a tiny phantom, made once and shared by the tests of what comes after training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from secl_models.data.cases import DataSet
from secl_models.data.phantom import write_phantom
from secl_models.data.splits import make_split
from secl_models.options.schema import RunConfig, load_preset, override
from secl_models.train.run import train

TINY = (
    "labeled=2",
    "data.patch=[32,32]",
    "network.channels=[4,8,16]",
    "network.projection=8",
    "train.steps=6",
    "train.batch=2",
    "train.unlabeled_batch=2",
    "train.warm_start=0.6",
    "train.validate_every=3",
    "train.checkpoint_every=3",
    "train.threads=1",
    "train.device=cpu",
)


@dataclass(frozen=True)
class TinyRun:
    """A run folder with `last.pt` and `best.pt`, and its data."""

    folder: Path
    data: DataSet
    config: RunConfig


def tiny_config() -> RunConfig:
    """The demo's options, six steps of a very small network."""
    return override(load_preset("demo"), TINY)


def tiny_run(factory: pytest.TempPathFactory) -> TinyRun:
    """Train once per session."""
    return _trained(factory.getbasetemp() / "tiny")


@cache
def _trained(folder: Path) -> TinyRun:
    folder.mkdir()
    data = write_phantom(folder / "data", cases=10, labeled=8, size=(32, 32, 4))
    config = tiny_config()
    train(config, data, make_split(data, config.labeled, config.seed), folder / "run", progress=False)
    return TinyRun(folder / "run", data, config)
