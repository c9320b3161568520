# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a run: which cases, which files, which refusals, and numbers that agree with the metric."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from secl_models.data.cases import DataSet
from secl_models.data.folders import LISTED
from secl_models.data.splits import Split, load_split, save_split
from secl_models.data.volumes import load_volume
from secl_models.inference.evaluate import evaluate, evaluated_cases, find_checkpoints, score_volume
from secl_models.inference.evaluations import (
    Evaluation,
    evaluation_table,
    format_mean,
    load_evaluation,
    save_evaluations,
)
from secl_models.inference.metrics import DEFINITIONS, MEAN, CaseScores, StructureScore, score_case
from secl_models.inference.windows import predict_volume
from secl_models.method.checkpoint import load_model
from secl_models.options.errors import InputError
from tests.models.runs import TinyRun, tiny_run


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def test_last_and_best_are_scored_and_written(run: TinyRun, tmp_path: Path) -> None:
    results = evaluate(run.folder, run.data, out=tmp_path, progress=False)
    assert [result.checkpoint for result in results] == ["last", "last-largest", "best", "best-largest"]
    test = load_split(run.folder / "split.json", run.data).test
    with (tmp_path / "evaluation_test_last.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["case"] for row in rows} == {case.name for case in test}
    assert len(rows) == len(test) * len(run.data.classes)
    assert {row["unit"] for row in rows} == {"mm"}
    summary = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert summary["last"]["structures"][MEAN]["dice"]["mean"] == results[0].summary[-1].dice[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != LISTED) == [
        "evaluation_test.json",
        *(
            f"evaluation_test_{name}{end}.csv"
            for name in ("best-largest", "best", "last-largest", "last")
            for end in ("", "_patients")
        ),
    ]
    assert list(summary) == [
        "last",
        "last-largest",
        "best",
        "best-largest",
        "definitions",
    ]  # side by side, and what the words mean
    assert summary["definitions"] == DEFINITIONS
    assert (summary["last"]["step"], summary["best"]["step"]) == (6, load_model(run.folder / "best.pt").step)


def test_a_checkpoint_evaluated_alone_leaves_the_pair_alone(run: TinyRun, tmp_path: Path) -> None:
    evaluate(run.folder, run.data, out=tmp_path, progress=False)
    pair = (tmp_path / "evaluation_test.json").read_bytes()
    evaluate(run.folder / "best.pt", run.data, out=tmp_path, progress=False)
    assert (tmp_path / "evaluation_test.json").read_bytes() == pair
    alone = json.loads((tmp_path / "evaluation_test_best.json").read_text())
    assert list(alone) == ["best", "definitions"]  # evaluation_test_best-largest.json has the other
    best, both = alone["best"], json.loads(pair)["best"]
    assert best["structures"] == both["structures"]


def test_the_csv_by_patient_holds_the_means_behind_the_mean(tmp_path: Path) -> None:
    def case(patient: str, name: str, *dice: float | None) -> CaseScores:
        states = {None: "absent", 0.0: "missed"}
        pairs = zip("ab", dice, strict=True)
        scores = (StructureScore(n, d, d, d, "mm", states.get(d, "both")) for n, d in pairs)
        return CaseScores(patient, name, tuple(scores))

    cases = (case("p", "p_ED", 0.5, 0.0), case("p", "p_ES", 1.0, None), case("q", "q_ED", None, None))
    save_evaluations([Evaluation("last", "test", cases, 1.0, 3)], tmp_path, pair=True)
    with (tmp_path / "evaluation_test_last_patients.csv").open() as stream:
        rows = {(row["patient"], row["structure"]): row for row in csv.DictReader(stream)}
    assert list(rows) == [(patient, name) for patient in "pq" for name in ("a", "b", MEAN)]
    assert [rows["p", name]["dice"] for name in ("a", "b", MEAN)] == ["0.75", "0.0", "0.375"]
    assert [rows["q", name]["hd95"] for name in ("a", MEAN)] == ["", ""]
    counted = [rows["p", "b"][name] for name in ("cases", "missed", "spurious", "absent")]
    assert counted == ["2", "1", "0", "1"]
    assert [rows["q", "a"][name] for name in ("cases", "missed", "absent")] == ["1", "0", "1"]
    summary = json.loads((tmp_path / "evaluation_test.json").read_text())["last"]["structures"]
    assert summary[MEAN]["dice"]["mean"] == 0.375  # of p alone: q has no structure to find


@pytest.mark.parametrize("split", ["test", "val"])
def test_lists_that_were_swapped_after_training_are_refused(run: TinyRun, split: str, tmp_path: Path) -> None:
    stored = load_split(run.folder / "split.json", run.data)
    folder = _with_split(run, tmp_path, replace(stored, test=stored.val, val=stored.test))
    other = {"test": "val", "val": "test"}[split]
    message = rf"last\.pt: no patient of the {split} list .* got \S+, on the {other} list that the checkpoint"
    with pytest.raises(InputError, match=message):
        evaluate(folder, run.data, split=split, progress=False)
    assert not list(tmp_path.glob("evaluation*"))


def test_scores_are_those_of_the_metric_on_the_native_grid(run: TinyRun) -> None:
    model = load_model(run.folder)
    case = load_split(run.folder / "split.json", run.data).test[0]
    volume = load_volume(case, run.data)
    assert volume.label is not None
    prediction = predict_volume(model.network, model.preprocess, model.config, volume).argmax(0).numpy()
    expected = score_case(prediction, volume.label, run.data.classes, volume.spacing)
    assert list(score_volume(model, volume).scores) == expected


def test_what_is_written_reads_back_equal(run: TinyRun, tmp_path: Path) -> None:
    result = evaluate(run.folder / "last.pt", run.data, split="val", out=tmp_path, progress=False)[0]
    loaded = load_evaluation(tmp_path, "val", "last")
    assert loaded is not None
    assert loaded.cases == result.cases
    assert math.isnan(loaded.seconds)
    assert load_evaluation(tmp_path, "test", "last") is None


def test_table_shows_every_structure_of_both_checkpoints(run: TinyRun, tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table(evaluate(run.folder, run.data, out=tmp_path, progress=False)))
    text = console.export_text()
    assert all(text.count(name) == 4 + 1 for name in run.data.classes.values())  # before and after, and the caption
    assert text.count("mean ") == 4 + 1
    assert "…" not in text


def _with_split(run: TinyRun, folder: Path, split: Split) -> Path:
    save_split(folder / "split.json", split)
    (folder / "last.pt").write_bytes((run.folder / "last.pt").read_bytes())
    return folder


def test_a_labelled_training_patient_is_never_evaluated(run: TinyRun, tmp_path: Path) -> None:
    # One scan labelled for training, another scan of the same patient on the test list.
    cases = {case.name: case for case in run.data.cases}
    split = load_split(run.folder / "split.json", run.data)
    patient = split.labeled[0].patient
    twin = replace(cases[split.test[0].name], patient=patient)
    data = replace(run.data, cases=tuple(twin if case.name == twin.name else case for case in run.data.cases))
    folder = _with_split(run, tmp_path, split)
    with pytest.raises(InputError, match=patient):
        evaluate(folder, data, progress=False)
    assert not list(tmp_path.glob("evaluation*"))


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", r"--split: test or val; got train\. Cure: ask for test or val")],
)
def test_only_test_and_val_can_be_asked_for(run: TinyRun, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluated_cases(run.folder, run.data, split)


def test_other_classes_are_refused(run: TinyRun, tmp_path: Path) -> None:
    data = replace(run.data, classes={**run.data.classes, 3: "something else"})
    with pytest.raises(InputError, match=r"last\.pt: checkpoint and data set have the same classes"):
        evaluate(run.folder, data, out=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_its_split_is_refused(run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((run.folder / "last.pt").read_bytes())
    with pytest.raises(InputError, match=r"split\.json: the run folder holds the split .* got no such file"):
        evaluate(tmp_path, run.data, progress=False)


def test_an_empty_list_is_refused(run: TinyRun, tmp_path: Path) -> None:
    split = load_split(run.folder / "split.json", run.data)
    save_split(tmp_path / "split.json", replace(split, test=()))
    with pytest.raises(InputError, match=r"test list of .*: at least one case; got none"):
        evaluated_cases(tmp_path, run.data, "test")


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got a folder without last\.pt"):
        find_checkpoints(tmp_path)
    with pytest.raises(InputError, match="got nothing at this path"):
        find_checkpoints(tmp_path / "no")


def test_a_missing_device_is_refused_before_anything_is_read(tmp_path: Path, run: TinyRun) -> None:
    with pytest.raises(InputError, match="--device: auto, cpu, cuda"):
        evaluate(tmp_path / "no", run.data, device="tpu9")


def test_score_of_an_unlabelled_volume_is_refused(run: TinyRun) -> None:
    data: DataSet = run.data
    case = next(case for case in data.cases if case.label is None)
    with pytest.raises(InputError, match=f"{case.name}: a case to score has a label"):
        score_volume(load_model(run.folder), load_volume(case, data))


def test_a_mean_without_spread_is_written_alone() -> None:
    assert format_mean((0.5, math.nan), 100) == "50.0"
    assert format_mean((math.nan, math.nan)) == "-"
