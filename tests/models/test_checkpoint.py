# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or absent, refused by name when damaged, and predicting what was trained."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secl_models.data.cases import Case
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.inference.windows import predict_volume
from secl_models.method import checkpoint
from secl_models.method.networks import ContrastModel, build_network
from secl_models.options.errors import InputError
from secl_models.options.schema import DataConfig, NetworkConfig, RunConfig, to_dict

CONFIG = RunConfig(
    data=DataConfig(patch=(16, 16), normalize="volume", orientation=None),
    network=NetworkConfig(channels=(4, 8, 8), projection=8),
)


def make_state(config: RunConfig = CONFIG) -> tuple[ContrastModel, dict[str, Any]]:
    torch.manual_seed(0)
    model = ContrastModel(build_network(config.network, config.data.dims, 1, 2), 8).eval()
    return model, {
        "format": checkpoint.FORMAT,
        "step": 12,
        "teacher": model.state_dict(),
        "config": to_dict(config),
        "preprocess": Preprocess.from_config(config.data).to_dict(),
        "classes": {200: "wall", 600: "chamber"},
        "channels": 1,
    }


def make_volume(*shape: int) -> Volume:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    case = Case("a", "a", (Path("a.nii.gz"),), None, None)
    return Volume(case, image, None, np.eye(4), (1.0,) * len(shape))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model, state = make_state()
    checkpoint.save(tmp_path / "last.pt", state)
    loaded = checkpoint.load_model(tmp_path)
    assert (loaded.config, loaded.classes, loaded.step) == (CONFIG, state["classes"], 12)
    assert loaded.preprocess == Preprocess.from_config(CONFIG.data)
    assert not loaded.network.training
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(loaded.network(image).logits, model(image).logits)


def test_an_interrupted_save_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "last.pt", make_state()[1])
    before = (tmp_path / "last.pt").read_bytes()

    def dies(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last.pt", {})
    assert (tmp_path / "last.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_reader_of_the_old_file_never_sees_it_change(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    os.link(tmp_path / "last.pt", tmp_path / "open")
    before = (tmp_path / "open").read_bytes()
    checkpoint.save(tmp_path / "last.pt", {"step": 2})
    assert (tmp_path / "open").read_bytes() == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: an existing checkpoint or run folder; got no such file"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"last\.pt: an existing checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, make_state()[1])
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"last\.pt: a whole checkpoint"):
        checkpoint.load(file)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save(Evil(), tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(InputError, match="a file that torch cannot read"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="a checkpoint of secl, format 1; got no entry format, step"):
        checkpoint.load(tmp_path / "other.pt")
    checkpoint.save(tmp_path / "future.pt", make_state()[1] | {"format": 99})
    with pytest.raises(InputError, match="got format 99"):
        checkpoint.load(tmp_path / "future.pt")


def test_weights_of_another_network_are_named_not_loaded(tmp_path: Path) -> None:
    _, state = make_state()
    wider = replace(CONFIG, network=NetworkConfig(channels=(4, 8, 12), projection=8))
    checkpoint.save(tmp_path / "last.pt", state | {"config": to_dict(wider)})
    with pytest.raises(InputError, match=r"is \(8, .*instead of \(12, .* and \d+ more. Cure"):
        checkpoint.load_model(tmp_path)


def test_missing_and_unknown_entries_are_named() -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="bias is missing; other is unknown"):
        checkpoint.load_weights(layer, {"weight": layer.weight, "other": layer.bias}, "a.pt")


@pytest.mark.parametrize("shape", [(16, 16, 3), (21, 37, 2), (9, 5, 1), (20, 20)])
@pytest.mark.parametrize("size", [None, (24, 24)])
def test_probabilities_lie_on_the_volumes_own_grid(shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, size=size))
    model, _ = make_state(config)
    probability = predict_volume(model.network, Preprocess.from_config(config.data), config, make_volume(*shape))
    assert probability.shape == (3, *shape)
    assert probability.dtype == torch.float32
    # a softmax and a resampling with weights that add up to one, both in float32
    assert (probability.sum(0) - 1).abs().max() < 1e-5


def test_a_slice_is_predicted_alike_alone_and_in_its_volume() -> None:
    model, _ = make_state()
    volume = make_volume(16, 16, 4)
    preprocess = replace(Preprocess.from_config(CONFIG.data), normalize="slice")
    whole = predict_volume(model.network, preprocess, CONFIG, volume)
    for number in range(4):
        alone = predict_volume(
            model.network, preprocess, CONFIG, replace(volume, image=volume.image[..., number : number + 1])
        )
        # convolutions over batches of other sizes may add in another order
        assert (whole[..., number] - alone[..., 0]).abs().max() < 1e-5


def test_three_dimensional_patches_cover_the_volume() -> None:
    config = replace(
        CONFIG,
        data=replace(CONFIG.data, dims=3, patch=(8, 8, 4)),
        contrast=replace(CONFIG.contrast, grid=(2, 2, 1)),
    )
    model, _ = make_state(config)
    probability = predict_volume(model.network, Preprocess.from_config(config.data), config, make_volume(19, 12, 3))
    assert probability.shape == (3, 19, 12, 3)
    assert probability.isfinite().all()
