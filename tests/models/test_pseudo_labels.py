# SPDX-License-Identifier: Apache-2.0
"""What is said about pseudo-labels and anchors is a plain count, and reaches history and TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from secl_models.data.cases import Case
from secl_models.data.volumes import Volume
from secl_models.inference import validate as validation
from secl_models.inference.palette import rgb
from secl_models.inference.panels import GAP, OPACITY, slice_panels
from secl_models.options.schema import RunConfig
from tests.models.runs import tiny_run


def test_coverage_and_purity_are_counts_over_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shape, classes = (9, 8, 3), 3
    truths = {name: rng.integers(0, classes, shape) for name in "abc"}  # structure 3 is in no truth
    chances = {name: rng.dirichlet([0.08] * (classes + 1), shape) for name in "abc"}
    volumes = [
        Volume(Case(name, name, (), None, None), np.zeros((1, *shape), np.float32), truth, np.eye(4), None)
        for name, truth in truths.items()
    ]

    def predict(network: Any, preprocess: Any, config: Any, volume: Volume) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(chances[volume.case.name], -1, 0))

    monkeypatch.setattr(validation, "predict_volume", predict)
    nothing: Any = None
    found = validation.validate(nothing, nothing, RunConfig(), volumes, classes)
    truth, chance = (
        np.concatenate([part[name].reshape(-1, *last) for name in "abc"])
        for part, last in ((truths, ()), (chances, (4,)))
    )
    sure, claim = chance.max(-1) >= RunConfig().contrast.confidence, chance.argmax(-1)
    for index in (1, 2):
        assert found.coverage[index - 1] == pytest.approx(np.mean(sure[truth == index]))
        assert found.purity[index - 1] == pytest.approx(np.mean(truth[sure & (claim == index)] == index))
    assert 0.1 < found.coverage[0] < 0.99
    assert math.isnan(found.coverage[2])  # no such voxel
    assert found.purity[2] == 0.0
    assert found.precision == pytest.approx(np.mean((truth == claim)[sure & (claim > 0)]))
    row = found.row(["x", "y", "z"])
    assert (row["coverage y"], row["purity z"], row["val_dice"]) == (found.coverage[1], 0.0, found.dice)


def test_nothing_confident_is_unknown_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(
        Case("a", "a", (), None, None), np.zeros((1, 2, 2), np.float32), np.eye(2, dtype=int), np.eye(4), None
    )
    monkeypatch.setattr(validation, "predict_volume", lambda *_: torch.full((2, 2, 2), 0.5))
    nothing: Any = None
    found = validation.validate(nothing, nothing, RunConfig(), [volume], 1)
    assert found.coverage == (0.0,)
    assert math.isnan(found.purity[0])
    assert math.isnan(found.precision)


def test_the_picture_shows_image_label_and_prediction() -> None:
    image = np.arange(40, dtype=np.float32).reshape(5, 8, 1).repeat(3, -1)
    truth, prediction = np.zeros((5, 8, 3), int), np.zeros((5, 8, 3), int)
    truth[1, 2, 1], prediction[4, 7, 1] = 1, 2  # the slice that shows a structure is the middle one
    picture = slice_panels(image, truth, prediction)
    factor = 20  # of 8 rows to 160
    assert picture.shape == (160, 3 * 5 * factor + 2 * GAP, 3)
    small = picture[factor // 2 :: factor]
    panels = [small[:, start + factor // 2 : start + 5 * factor : factor] for start in (0, 102, 204)]
    plain, label, claim = (panel[::-1].transpose(1, 0, 2).astype(float) for panel in panels)  # as [x, y]
    for tinted, (x, y), index in ((label, (1, 2), 1), (claim, (4, 7), 2)):
        changed = np.argwhere((tinted != plain).any(-1))
        assert changed.tolist() == [[x, y]]
        assert np.abs(tinted[x, y] - (1 - OPACITY) * plain[x, y] - OPACITY * np.array(rgb(index))).max() <= 1
    assert plain[0, 0, 0] < plain[0, 7, 0] < plain[4, 7, 0]


def test_history_and_tensorboard_hold_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tiny_run(tmp_path_factory)
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    (tag,) = board.Tags()["images"]
    pictures = board.Images(tag)
    assert [event.step for event in pictures] == [3, 6]  # every validation
    shown = matplotlib.image.imread(io.BytesIO(pictures[-1].encoded_image_string))
    assert shown.shape[0] == 160
    assert shown.std() > 0.05
    with (run.folder / "history.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    for name in run.data.classes.values():
        value = board.Scalars(f"coverage/{name}")[-1].value
        assert value == pytest.approx(float(last[f"coverage {name}"]), abs=1e-5)
    assert board.Scalars("positives")[-1].step == 6
