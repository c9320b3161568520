# SPDX-License-Identifier: Apache-2.0
"""Which patients to label next: what the networks disagree on, spread over what images look like."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.cases import Case, DataSet
from secl_models.data.splits import load_split
from secl_models.data.tables import read_table
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference import suggest as suggesting
from secl_models.inference.metrics import structure_names
from secl_models.inference.suggest import (
    TYPICAL,
    Candidate,
    Committee,
    Flipped,
    Look,
    _in_every_patient,
    candidate_of,
    choose,
    jensen_shannon,
    suggest,
)
from secl_models.inference.windows import predict_volume
from secl_models.method.checkpoint import load, save
from secl_models.method.output import Output
from secl_models.options.errors import InputError
from secl_models.report.suggestions import PAGE, TABLE, SuggestionRow
from tests.models.runs import TinyRun, tiny_run

CPU = torch.device("cpu")


def _candidate(name: str, disagreement: float, features: tuple[float, ...]) -> Candidate:
    case = Case(name, name, (Path(f"{name}.nii"),), None, None)
    return candidate_of(name, [Look(case, disagreement, np.array(features, np.float32), 0)])


def _names(candidates: list[Candidate], *, suggested: bool) -> list[str]:
    return [each.patient for each in candidates if each.suggested is suggested]


def test_votes_that_agree_are_not_apart() -> None:
    votes = torch.rand(1, 3, 4, 5).softmax(1).expand(4, -1, -1, -1)
    assert float(jensen_shannon(votes).max()) == pytest.approx(0, abs=1e-6)
    opposed = torch.eye(4).view(4, 4, 1)
    assert jensen_shannon(opposed).item() == pytest.approx(math.log(4))


def test_each_look_gives_its_most_doubtful_patient() -> None:
    near, far = (0.0, 0.0), (9.0, 9.0)
    all_of = [
        _candidate("a", 0.9, near),
        _candidate("b", 0.8, near),
        _candidate("c", 0.3, far),
        _candidate("d", 0.1, far),
    ]
    found = choose(all_of, 2)
    assert _names(found, suggested=True) == ["a", "c"]  # not b, which looks like a
    assert _names(found, suggested=False) == ["b", "d"]
    assert choose(all_of[::-1], 2) == found


def test_the_typical_patient_of_each_look_is_the_one_in_its_middle() -> None:
    places = {"a": 0.0, "b": 1.0, "c": 2.1, "d": 30.0, "e": 31.0, "f": 32.1}
    all_of = [_candidate(name, 1 / (1 + place), (place, 0.0)) for name, place in places.items()]
    found = choose(all_of, 2, TYPICAL)
    assert _names(found, suggested=True) == ["b", "e"]
    assert all(each.group is not None for each in found)
    assert choose(all_of[::-1], 2, TYPICAL) == found
    assert _names(choose(all_of, 2), suggested=True) != ["b", "e"]
    alike = [_candidate(name, float(name), (1.0, 2.0)) for name in "12345"]
    assert len(_names(choose(alike, 3, TYPICAL), suggested=True)) == 3


def test_what_is_clear_is_not_suggested_however_it_looks() -> None:
    alike = [_candidate(f"{number:02}", 0.5 + number / 100, (number / 100,)) for number in range(10)]
    clear = [_candidate(f"clear {number:02}", 0.01, (50.0,)) for number in range(10)]
    found = choose([*clear, *alike], 2)
    assert all(not name.startswith("clear") for name in _names(found, suggested=True))
    assert all(each.group is None for each in found if each.patient.startswith("clear"))


def test_a_patient_in_whom_a_structure_is_overlooked_comes_first() -> None:
    case = Case("blind", "blind", (Path("blind.nii"),), None, None)
    look = Look(case, 0.0, np.zeros(1, np.float32), 0, frozenset({2}))
    sees = replace(look, case=replace(case, name="other"), found=frozenset({1, 3}))
    blind = candidate_of("blind", [look], expected={1, 2})
    assert blind.missing == (1,)
    assert candidate_of("blind", [look, sees], expected={1, 2}).missing == ()  # another of the patient's cases shows it
    seen = [_candidate(name, float(name), (float(name),)) for name in "12345"]
    found = choose([*seen, blind], 2)
    assert "blind" in _names(found, suggested=True)
    assert choose([*seen, replace(blind, missing=())], 2)[-1].patient == "blind"


def test_images_that_look_the_same_are_told_apart_by_disagreement() -> None:
    found = choose([_candidate(name, float(name), (1.0, 2.0)) for name in "12345"], 3)
    assert _names(found, suggested=True) == ["5", "4", "3"]


class _Left(nn.Module):
    """Calls the first half of the first axis a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Output:
        logits = torch.zeros(len(x), 2, *x.shape[2:]) + self.weight
        logits[:, 1, : x.shape[2] // 2] = 9
        return Output(logits, (), logits)


def test_a_mirrored_vote_lies_as_the_image_does() -> None:
    x = torch.zeros(1, 1, 8, 6)
    assert torch.equal(Flipped(_Left(), None)(x).logits, _Left()(x).logits)
    assert torch.equal(Flipped(_Left(), 1)(x).logits, _Left()(x).logits)
    assert torch.equal(Flipped(_Left(), 0)(x).logits, _Left()(x).logits.flip(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def test_the_divergence_is_that_of_whole_volumes(run: TinyRun) -> None:
    committee = Committee.of(run.folder, CPU)
    volume = load_volume(run.data.cases[0], run.data)
    apart, claimed, seen = committee.divergence(volume)
    voters = [
        predict_volume(Flipped(model.network, axis), model.preprocess, model.config, volume)
        for model in (committee.student, committee.teacher)
        for axis in (None, *model.config.augment.flip)
    ]
    votes = torch.stack(voters)
    assert np.array_equal(apart, jensen_shannon(votes).numpy())
    assert np.array_equal(claimed, (votes.argmax(1) > 0).any(0).numpy())
    assert seen == set(votes.argmax(1).unique().tolist()) - {0}
    look = committee.look(volume)
    assert look.disagreement == pytest.approx(apart[claimed].mean())
    by_plane: npt.NDArray[np.float32] = np.where(claimed, apart, 0).sum((0, 1))
    assert look.plane == by_plane.argmax()


def test_a_run_ranks_its_unlabelled_patients(run: TinyRun) -> None:
    seen: list[tuple[int, int]] = []
    committee = Committee.of(run.folder, CPU)
    found = suggest(
        run.folder, run.data, 2, committee=committee, progress=lambda done, total: seen.append((done, total))
    )
    unlabeled = load_split(run.folder / "split.json", run.data).unlabeled
    assert {each.patient for each in found} == {case.patient for case in unlabeled}
    assert [each.suggested for each in found[:3]] == [True, True, False]
    assert seen[-1] == (len(unlabeled), len(unlabeled))
    again = suggest(run.folder / "last.pt", run.data, 2, committee=committee)
    assert [(a.patient, a.disagreement) for a in again] == [(b.patient, b.disagreement) for b in found]


@pytest.mark.parametrize("count", [0, 99])
def test_more_than_there_are_is_refused(count: int, run: TinyRun) -> None:
    with pytest.raises(InputError, match="patients of the run without a label"):
        suggest(run.folder, run.data, count, committee=Committee.of(run.folder, CPU))


def test_another_data_set_is_refused(run: TinyRun) -> None:
    with pytest.raises(InputError, match="the same classes"):
        suggest(run.folder, replace(run.data, classes={1: "aorta"}), 1, committee=Committee.of(run.folder, CPU))


def test_a_student_that_is_not_there_is_named(run: TinyRun, tmp_path: Path) -> None:
    state = load(run.folder)
    del state["student"]
    save(tmp_path / "last.pt", state)
    with pytest.raises(InputError, match="a checkpoint with the student's weights; got none"):
        Committee.of(tmp_path, CPU)


def test_the_command_writes_a_table_and_a_page(run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "suggest"
    line = ["suggest", "--checkpoint", str(run.folder), "--data", str(run.data.root), "--count", "2", "--out", str(out)]
    answer = CliRunner().invoke(app, line)
    assert answer.exit_code == 0, answer.output
    rows = read_table(out / TABLE, SuggestionRow, "suggestions", "suggest again")
    assert [row.suggested for row in rows] == ["yes", "yes", *["no"] * (len(rows) - 2)]
    page = (out / PAGE).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"Label next: {rows[0].patient}, {rows[1].patient}" in page
    assert answer.output.count("label next") == 2
    split = load_split(run.folder / "split.json", run.data)
    labels = {case.patient for case in run.data.cases if case.label} - {case.patient for case in split.val + split.test}
    told = answer.output.replace("\n", "")
    assert (
        f"--preset {run.folder}/config.yaml --split-of {run.folder} --labeled {len(labels) + 2} --out NEW_RUN" in told
    )
    first = (out / PAGE).read_bytes(), (out / TABLE).read_bytes()
    assert CliRunner().invoke(app, line).exit_code == 0  # what it wrote it replaces, with the same
    assert ((out / PAGE).read_bytes(), (out / TABLE).read_bytes()) == first


def test_what_is_overlooked_is_named(run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Committee.look

    def overlooking(committee: Committee, volume: Volume) -> Look:
        seen = look(committee, volume)
        return replace(seen, disagreement=0.0, found=frozenset()) if volume.case.name == overlooked else seen

    unlabeled = load_split(run.folder / "split.json", run.data).unlabeled
    overlooked = unlabeled[-1].name
    monkeypatch.setattr(Committee, "look", overlooking)
    line = ["suggest", "--checkpoint", str(run.folder), "--data", str(run.data.root), "--out", str(tmp_path)]
    answer = CliRunner().invoke(app, line)
    assert answer.exit_code == 0, answer.output
    rows = {row.patient: row for row in read_table(tmp_path / TABLE, SuggestionRow, "suggestions", "suggest again")}
    names = structure_names(run.data.classes)
    assert rows[unlabeled[-1].patient].missing == ";".join(names)
    assert rows[unlabeled[-1].patient].suggested == "yes"
    assert "not found" in answer.output
    assert f'<td data-name="Not found">{", ".join(names)}</td>' in (tmp_path / PAGE).read_text()


def test_a_patient_with_one_labelled_image_is_not_suggested_for_another(run: TinyRun) -> None:
    split = load_split(run.folder / "split.json", run.data)
    owner, other = split.labeled[0].patient, split.unlabeled[0].name
    cases = tuple(replace(case, patient=owner) if case.name == other else case for case in run.data.cases)
    found = suggest(run.folder, replace(run.data, cases=cases), 1, committee=Committee.of(run.folder, CPU))
    assert owner not in {each.patient for each in found}
    assert len(found) == len(split.unlabeled) - 1


def test_a_label_that_leaves_a_structure_out_does_not_say_that_it_may_be_missing(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load_split(run.folder / "split.json", run.data)

    def without_the_second(case: Case, data: DataSet) -> Volume:
        volume = load_volume(replace(case, unlabeled=()), data)
        label = np.asarray(volume.label)
        return replace(volume, label=np.where(label == 2, -2, label)) if case.unlabeled else volume

    monkeypatch.setattr(suggesting, "load_volume", without_the_second)
    whole, partly = split.labeled[0], replace(split.labeled[1], unlabeled=(2,))
    assert _in_every_patient([whole, partly], run.data) == {1, 2, 3}
    assert _in_every_patient([partly], run.data) == {1, 3}


def test_only_the_patients_that_are_named_are_ranked(run: TinyRun) -> None:
    patients = [case.patient for case in load_split(run.folder / "split.json", run.data).unlabeled][:3]
    found = suggest(run.folder, run.data, 2, committee=Committee.of(run.folder, CPU), among=patients)
    assert {each.patient for each in found} == set(patients)


def test_the_command_writes_over_nothing_that_is_not_its_own(run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text("mine")
    data = ["--data", str(run.data.root), "--out", str(tmp_path)]
    answer = CliRunner().invoke(app, ["suggest", "--checkpoint", str(run.folder), *data])
    assert answer.exit_code == 2
    assert (tmp_path / TABLE).read_text() == "mine"
    assert not (tmp_path / PAGE).exists()
