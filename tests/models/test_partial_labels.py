# SPDX-License-Identifier: Apache-2.0
"""Structures that some cases do not label: nowhere learned as background there, and not scored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.labels import IGNORED, OPEN
from secl_models.data.layouts import read_data_set
from secl_models.data.open_labels import class_sets, settled
from secl_models.data.partial_labels import left_out, unlabeled_of
from secl_models.data.phantom import write_phantom
from secl_models.data.preprocess import Preprocess, resolve
from secl_models.data.resident import ResidentData
from secl_models.data.splits import make_split
from secl_models.data.volumes import load_volume, load_volumes
from secl_models.inference.evaluations import load_evaluation
from secl_models.inference.metrics import UNLABELED, score_case, summarise
from secl_models.inference.validate import validate
from secl_models.method import learner, objective, prototypes
from secl_models.method.largest_part import one_part_structures
from secl_models.method.networks import build_network
from secl_models.method.objective import Objective
from secl_models.method.step import StepContext
from secl_models.method.supervised import supervised_loss
from secl_models.options.errors import InputError
from secl_models.options.methods import METHODS
from secl_models.train.run import train
from tests.models.runs import TINY, tiny_config

NAMES = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
MUSCLE, LEFT = 2, 3


def _clear(file: Path, *values: int) -> None:
    label = nib.nifti1.load(file)
    stored = np.asarray(label.dataobj).copy()
    stored[np.isin(stored, values)] = 0
    nib.nifti1.save(nib.nifti1.Nifti1Image(stored, label.affine, label.header), file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of which every other label lacks the myocardium, and one the left ventricle as well."""
    place = tmp_path_factory.mktemp("partial")
    write_phantom(place, cases=10, labeled=8, size=(32, 32, 4))
    said: dict[str, list[Any]] = {}
    for number, file in enumerate(sorted((place / "labelsTr").iterdir())):
        name = file.name.removesuffix(".nii.gz")
        if number == 0:
            _clear(file, MUSCLE, LEFT)
            said[name] = ["right ventricle"]
        elif number % 2 == 0:
            _clear(file, MUSCLE)
            said[name] = [1, "left ventricle"]
    about = json.loads((place / "dataset.json").read_text())
    (place / "dataset.json").write_text(json.dumps(about | {"labeled": said}))
    return place


def test_dataset_json_says_what_a_label_shows(folder: Path) -> None:
    data = read_data_set(folder)
    unlabeled = [case.unlabeled for case in data.cases if case.label is not None]
    assert unlabeled == [(2, 3), (), (2,), (), (2,), (), (2,), ()]
    assert left_out(data) == "left out of 8 labels: myocardium of 4, left ventricle of 1"
    assert "left out of 8 labels: myocardium of 4" in CliRunner().invoke(app, ["check", "--data", str(folder)]).output


def test_the_other_spelling_says_the_same(folder: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(folder / name)
    about = json.loads((folder / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(about | {"labelled": about.pop("labeled")}))
    assert left_out(read_data_set(tmp_path)) == left_out(read_data_set(folder))


@pytest.mark.parametrize(
    ("said", "rule", "got"),
    [
        (["right ventricle"], "lists structures for each case", "right ventricle"),
        ({"phantom_001": "right ventricle"}, "lists structures for each case", "right ventricle"),
        ({"case_77": [1]}, "is that of a case", "case_77"),
        ({"phantom_002": ["aorta"]}, "are among right ventricle, myocardium, left ventricle", "aorta"),
        ({"phantom_002": []}, "one or more", "none"),
    ],
)
def test_what_it_cannot_mean_is_refused(said: Any, rule: str, got: str, folder: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(folder / name)
    about = json.loads((folder / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(about | {"labeled": said}))
    with pytest.raises(InputError, match=rule) as refused:
        read_data_set(tmp_path)
    assert got in str(refused.value.got)


@pytest.mark.parametrize(("cell", "unlabeled"), [("", ()), ("left ventricle", (1, 2)), ('"1; myocardium"', (3,))])
def test_a_table_says_it_in_a_column(cell: str, unlabeled: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    label = sorted((folder / "labelsTr").iterdir())[1]
    table = tmp_path / "data.csv"
    row = f"{folder}/imagesTr/{label.name},{label},a,,{cell}\n"
    table.write_text(f"image,label,patient,split,labeled\n{row}")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {name: value for value, name in NAMES.items()}}))
    assert read_data_set(table).cases[0].unlabeled == unlabeled


def test_a_table_has_one_such_column(folder: Path, tmp_path: Path) -> None:
    name = next((folder / "labelsTr").iterdir()).name
    row = f"{folder}/imagesTr/{name},{folder}/labelsTr/{name},a,,1,2\n"
    (tmp_path / "data.csv").write_text(f"image,label,patient,split,labeled,Labeled\n{row}")
    with pytest.raises(InputError, match="each column stands once; got 2 columns labeled"):
        read_data_set(tmp_path)


def test_a_label_that_shows_what_it_is_said_to_leave_out_is_refused(folder: Path) -> None:
    data = read_data_set(folder)
    whole = next(case for case in data.cases if case.label is not None and not case.unlabeled)
    with pytest.raises(InputError, match="voxels of myocardium") as refused:
        load_volume(replace(whole, unlabeled=(MUSCLE,)), data)
    assert "add myocardium to `labeled`" in refused.value.cure


def _written_out(logits: Tensor, label: Tensor, sets: list[tuple[int, ...]]) -> float:
    """The loss pixel by pixel."""
    probability = logits.double().softmax(1).movedim(1, -1).reshape(-1, logits.shape[1])
    entropy, overlap, volume = [], torch.zeros(logits.shape[1]).double(), torch.zeros(logits.shape[1]).double()
    for row, value in zip(probability, label.flatten().tolist(), strict=True):
        if value == IGNORED:
            continue
        may_be = {0, *sets[OPEN - value]} if value <= OPEN else {value}
        entropy.append(-math.log(sum(float(row[index]) for index in may_be)))
        for index in range(1, len(row)):
            if value <= OPEN and index in may_be:
                continue
            overlap[index] += row[index] * (index == value)
            volume[index] += row[index] + (index == value)
    dice = (2 * overlap + 1) / (volume + 1)
    return 0.5 * (sum(entropy) / len(entropy) + 1 - float(dice[1:].mean()))


def test_the_loss_is_the_one_written_out() -> None:
    sets = [(2,), (2, 3)]
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 5, 6, generator=random)
    label = torch.randint(-3, 4, (2, 5, 6), generator=random)
    found = supervised_loss(logits, label, class_sets=class_sets(sets, 3))
    assert found.item() == pytest.approx(_written_out(logits, label, sets))


def test_an_open_voxel_pulls_no_structure_that_it_may_be_to_background() -> None:
    logits = torch.zeros(1, 4, 1, 1, requires_grad=True)
    supervised_loss(logits, torch.full((1, 1, 1), OPEN), class_sets=class_sets([(2,)], 3)).backward()
    slope = logits.grad
    assert slope is not None
    background, right, muscle, left = slope.flatten().tolist()
    assert background == muscle < 0 < right == left


def test_batches_hold_the_number_of_the_set(folder: Path) -> None:
    data = read_data_set(folder)
    volumes = load_volumes(data, (case for case in data.cases if case.label is not None))
    config = resolve(tiny_config(), data, volumes)
    resident = ResidentData(volumes, [], config, torch.device("cpu"))
    assert resident.unlabeled_sets == ((2, 3), (2,))
    values = {value for step in range(8) for value in resident.batch(step, 4, 0)[0].label.unique().tolist()}
    assert values >= {OPEN, OPEN - 1, 0, 1, 2, 3}


def test_what_no_structure_is_left_out_of_trains_as_before(folder: Path) -> None:
    logits, label = torch.randn(2, 4, 8, 8), torch.randint(-1, 4, (2, 8, 8))
    with_sets = supervised_loss(logits, label, class_sets=class_sets([(1,)], 3))
    assert with_sets.item() == supervised_loss(logits, label).item()
    assert class_sets((), 3) is None


def test_a_structure_that_is_left_out_is_not_scored() -> None:
    truth = np.array([[1, OPEN, OPEN, 3]])
    found = np.array([[1, 1, 2, 0]])
    scores = score_case(found, truth, NAMES, None, unlabeled=[2])
    assert [score.state for score in scores] == ["both", UNLABELED, "missed"]
    assert scores[0].dice == pytest.approx(2 / 3)
    whole = score_case(found, np.maximum(truth, 0), NAMES, None)
    assert [whole[0], whole[2]] == [scores[0], scores[2]]


def test_settled_keeps_what_is_wrong_for_certain() -> None:
    truth, found = torch.tensor([OPEN, OPEN, OPEN, IGNORED, 1]), torch.tensor([0, 2, 1, 1, 2])
    assert settled(truth, found, [2]).tolist() == [IGNORED, IGNORED, 0, IGNORED, 1]


def test_validation_leaves_it_out_of_the_means(folder: Path) -> None:
    data = read_data_set(folder)
    volumes = load_volumes(data, [case for case in data.cases if case.unlabeled == (MUSCLE,)])
    config = resolve(tiny_config(), data, volumes)
    network = build_network(config.network, 2, 1, 3).eval()
    with torch.no_grad():
        found = validate(network, Preprocess.from_config(config.data), config, volumes, 3)
    assert [math.isnan(dice) for dice in found.structures] == [False, True, False]


def test_a_structure_is_one_part_by_the_labels_that_show_it() -> None:
    label = np.full((6, 6), OPEN)
    label[1:3, 1:3], label[5, 5] = 1, 2
    assert one_part_structures([label], 3) == (1, 2)


def test_names_and_values_are_read_alike() -> None:
    assert unlabeled_of(["2", "right ventricle"], NAMES, "x") == unlabeled_of([1, 2], NAMES, "x") == (3,)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns_open_voxels_as_such(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(logits: Tensor, label: Tensor, *rest: Any) -> Tensor:
        if (label <= OPEN).any():
            seen.append(rest[1:] and rest[1] is not None)
        return supervised_loss(logits, label, *rest)

    def watched_context(objective: Objective, context: StepContext, *rest: Any) -> Any:
        assert context.label.min() >= IGNORED  # what the other terms read
        return forward(objective, context, *rest)

    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", watched_context)
    for module in (learner, objective, prototypes):
        monkeypatch.setattr(module, "supervised_loss", watched)
    options = tiny_config()
    config = replace(options, labeled=8, train=replace(options.train, method=method, warm_start=0.0))
    data = read_data_set(folder)
    split = make_split(data, 4, 0)
    assert any(case.unlabeled for case in split.labeled)
    train(config, data, split, tmp_path / "run", progress=False)
    assert seen
    assert all(seen)


def test_a_run_is_evaluated_without_it(folder: Path, tmp_path: Path) -> None:
    options = [part for option in TINY for part in ("--set", option)]
    run, data = str(tmp_path / "run"), str(folder)
    invoke = CliRunner().invoke
    assert invoke(app, ["train", "--data", data, "--out", run, "--preset", "demo", *options]).exit_code == 0
    assert invoke(app, ["evaluate", "--checkpoint", run, "--data", data]).exit_code == 0
    evaluation = load_evaluation(tmp_path / "run")
    assert evaluation is not None
    known = {case.name: case.unlabeled for case in read_data_set(folder).cases}
    for scored in evaluation.cases:
        states = [score.state == UNLABELED for score in scored.scores]
        assert states == [index in known[scored.case] for index in (1, 2, 3)]
    assert len(summarise(evaluation.cases)) == 4
