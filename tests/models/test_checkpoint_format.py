# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of format 1, spelled out here: they load, are resumed, and name no module of this package."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from secl_models.data.cases import DataSet
from secl_models.data.splits import PARTS, Split, make_split
from secl_models.method import checkpoint
from secl_models.options.schema import RunConfig, from_dict
from secl_models.train.run import train
from tests.models.test_train import write_toy

# Every option by the name and the section that it has in files that exist.
CONFIG = yaml.safe_load("""
preset: default
labeled: 2
seed: 0
data: {dims: 2, size: null, spacing: null, patch: [16, 16], window: null, normalize: volume, foreground: 0.0,
  orientation: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]}
augment: {flip: [], rotate: 15.0, scale: 0.15, shift: 0.05, contrast: 0.25, brightness: 0.25, noise: 0.1, gamma: 0.3}
network: {name: 'tests.models.untrained:pointwise', channels: [4, 8, 8], taps: [0], last: 0, projection: 8}
contrast: {weight: 0.02, temperature: 0.1, denominator: negatives, per_class: 4, strategy: uniform, confidence: 0.4,
  queue: 4, grid: [2, 2], partitions: 4, backend: auto}
mix: {weight: 0.5, side: 0.6666666666666666, confidence: 0.0, whole: 0.5, largest: false}
prototype: {weight: 0.5, contrast: 0.001, count: 3, decay: 0.999, confidence: 0.9, temperature: 0.1, per_class: 32}
centroid: {weight: 0.1, unsure: 0.75, bank: 400, temperature: 0.5, boundary: 0.1, boundary_temperature: 0.07, reach: 1}
disagreement: {weight: 0.1, share: 0.8, dropout: 0.5}
train: {method: secl+, steps: 8, batch: 2, unlabeled_batch: 2, lr: 0.005, weight_decay: 0.0001, decay: 0.99,
  warm_start: 0.0, ramp: 0.25, consistency: 5.0, validate_every: 4, checkpoint_every: 3, device: cpu, precision: auto,
  compile: false, threads: 1}
""")
PREPROCESS = {
    "dims": 2, "size": None, "spacing": None, "normalize": "volume", "window": None,
    "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
}  # fmt: skip
SHAPES = {
    "network.module.0.weight": (2, 1, 1, 1),
    "network.module.0.bias": (2,),
    "heads.0.layers.0.weight": (2, 2),
    "heads.0.layers.0.bias": (2,),
    "heads.0.layers.2.weight": (8, 2),
    "heads.0.layers.2.bias": (8,),
}
GROUP = {
    "lr": 0.005, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0.0001, "amsgrad": False, "maximize": False,
    "foreach": None, "capturable": False, "differentiable": False, "fused": True, "decoupled_weight_decay": True,
    "params": [0, 1, 2, 3, 4, 5],
}  # fmt: skip


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def format_1(split: Split) -> dict[str, Any]:
    """What a run saved after its fourth step."""
    moments = {
        number: {"step": torch.tensor(4.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.ones(shape)}
        for number, shape in enumerate(SHAPES.values())
    }
    queue = {
        "queues.0.rows": torch.zeros(9, 8),
        "queues.0.labels": torch.full((9,), -1, dtype=torch.int32),
        "queues.0.written": torch.zeros(2, dtype=torch.int64),
    }
    return {
        "format": 1, "step": 4, "student": weights(0), "teacher": weights(1),
        "optimizer": {"state": moments, "param_groups": [GROUP]}, "objective": queue, "precision": {}, "processes": 1,
        "seconds": 0.3, "processor_seconds": 0.1, "best": {"dice": 0.5, "step": 4.0}, "last_dice": 0.5,
        "config": CONFIG, "preprocess": PREPROCESS, "classes": {1: "block"},
        "cases": {part: [case.name for case in getattr(split, part)] for part in PARTS}, "channels": 1,
    }  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path / "data")
    return data, make_split(data, 2, 0)


def shape_of(value: Any) -> Any:
    """A value without its numbers: names, kinds and sizes."""
    if isinstance(value, dict):
        return {name: shape_of(each) for name, each in value.items()}
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    return type(value)


def globals_of(file: Path) -> set[str]:
    """What a checkpoint's pickle asks to be imported."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("data.pkl"))
        found = list(pickletools.genops(archive.read(name)))
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in found)
    return {str(argument).replace(" ", ".") for operation, argument, _ in found if operation.name == "GLOBAL"}


def test_a_network_is_loaded_for_prediction(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    torch.save(format_1(toy[1]), tmp_path / "last.pt")
    loaded = checkpoint.load_model(tmp_path)
    assert (loaded.config, loaded.classes, loaded.step) == (from_dict(CONFIG), {1: "block"}, 4)
    image = torch.rand(1, 1, 16, 16)
    teacher = weights(1)
    expected = torch.nn.functional.conv2d(image, teacher["network.module.0.weight"], teacher["network.module.0.bias"])
    assert torch.equal(loaded.network(image).logits, expected)


def test_a_run_goes_on_and_saves_the_same_format(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    torch.save(format_1(toy[1]), tmp_path / "last.pt")
    config: RunConfig = from_dict(CONFIG)
    assert train(config, *toy, tmp_path, resume=True, progress=False).steps == 8
    state = checkpoint.load(tmp_path)
    # What is younger, and what format 1 does without.
    assert set(state.pop("found")) == set(toy[0].classes.values())
    assert state.pop("untaught") == {}  # nothing was validated before the teacher
    assert state.pop("one_part") == [1]
    assert state["config"]["data"].pop("spacing_from") == "auto"
    assert state.pop("init") == ""
    assert (state["config"]["network"].pop("init"), state["config"]["network"].pop("init_digest")) == (None, "")
    assert shape_of(state) == shape_of(format_1(toy[1]))
    assert not any(torch.equal(state["student"][name], old) for name, old in weights(0).items())
    assert globals_of(tmp_path / "last.pt") <= {
        "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "torch.IntStorage",
        "torch.LongStorage",
    }  # fmt: skip


def test_a_class_in_a_checkpoint_is_seen(tmp_path: Path) -> None:
    torch.save({"config": from_dict(CONFIG)}, tmp_path / "last.pt")
    assert "secl_models.options.schema.RunConfig" in globals_of(tmp_path / "last.pt")
