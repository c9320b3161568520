# SPDX-License-Identifier: Apache-2.0
"""How far probabilities can be believed: the temperature, what it does on other patients, and Dice without truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.cases import Case, DataSet
from secl_models.data.labels import opened
from secl_models.data.tables import read_table
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference import calibrate as calibrating
from secl_models.inference.calibrate import calibrate, near_structures
from secl_models.inference.calibrations import (
    Expected,
    agreement,
    calibration_file,
    calibration_table,
    load_calibration,
)
from secl_models.inference.evaluate import evaluate, evaluated_cases
from secl_models.inference.metrics import structure_names
from secl_models.inference.reliability import (
    BINS,
    FLOOR,
    Seen,
    entropy,
    expected_dice,
    fit_temperature,
    reliability,
    scaled,
)
from secl_models.inference.windows import predict_volume
from secl_models.method.checkpoint import load_model
from secl_models.options.errors import InputError
from secl_models.report.calibration_charts import calibration_charts
from secl_models.report.page import write_report
from tests.models.runs import TinyRun, tiny_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> TinyRun:
    """The tiny run in a folder of its own, where files may be added."""
    found = tiny_run(tmp_path_factory)
    shutil.copytree(found.folder, tmp_path / "run")
    return replace(found, folder=tmp_path / "run")


def test_a_temperature_moves_no_class() -> None:
    probabilities = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).softmax(0)
    for temperature in (0.3, 1.0, 5.0):
        warm = scaled(probabilities, temperature)
        assert torch.equal(warm.argmax(0), probabilities.argmax(0))
        assert warm.sum(0).tolist() == pytest.approx([1.0] * 50)
    assert scaled(probabilities, 1.0).numpy() == pytest.approx(probabilities.numpy(), rel=1e-5)
    assert bool((entropy(scaled(probabilities, 5.0)) > entropy(probabilities)).all())


def test_the_temperature_is_found_that_made_the_truth() -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 20_000, generator=random)
    truth = torch.multinomial(logits.softmax(0).T, 1, generator=random).squeeze(1)
    for temperature in (0.5, 1.0, 3.0):
        shown = (temperature * logits).softmax(0)
        assert fit_temperature([Seen(shown, truth)]) == pytest.approx(temperature, rel=0.03)
        assert reliability([Seen(shown, truth)], temperature).error < 0.01
    assert reliability([Seen((3 * logits).softmax(0), truth)]).error > 0.05
    assert fit_temperature([Seen(torch.zeros(4, 0), torch.zeros(0, dtype=torch.int64))]) == 1.0


def test_a_label_that_leaves_structures_out_finds_the_same_temperature() -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 40_000, generator=random)
    truth = torch.multinomial(logits.softmax(0).T, 1, generator=random).squeeze(1)
    shown, half = (3 * logits.double()).softmax(0), 20_000
    left_out = [[2, 3], [1]]
    seen = [
        Seen(shown[:, place], torch.where(torch.isin(truth[place], torch.tensor(missing)), 0, truth[place]), missing)
        for place, missing in zip((slice(half), slice(half, None)), left_out, strict=True)
    ]
    assert fit_temperature(seen) == pytest.approx(3.0, rel=0.03)
    assert reliability(seen, 3.0).error < 0.01
    as_background = [replace(case, unlabeled=()) for case in seen]
    assert fit_temperature(as_background) > 4
    told = seen[0].told_apart(1.0).exp()
    expected = torch.stack([shown[[0, 2, 3]].sum(0), shown[1]])[:, :half]
    assert told[:2].numpy() == pytest.approx(expected.numpy(), abs=len(shown) * FLOOR)
    assert not told[2:].any()


def test_bins_hold_every_voxel_once() -> None:
    probabilities = torch.tensor([[0.95, 0.6, 1.0, 0.5], [0.05, 0.4, 0.0, 0.5]])
    found = reliability([Seen(probabilities, torch.tensor([0, 1, 0, 1]))])
    assert sum(found.voxels) == 4
    assert len(found.voxels) == BINS
    assert found.voxels[-1] == 2
    assert found.confidence[-1] == pytest.approx(0.975)
    assert found.accuracy[-1] == 1.0
    gaps = [2 * abs(0.975 - 1), 0.6, 0.5]
    assert found.error == pytest.approx(sum(gaps) / 4)


def test_the_expected_dice_is_the_true_one_of_sure_voxels() -> None:
    truth = torch.rand(3, 400, generator=torch.Generator().manual_seed(0)).argmax(0)
    called = truth.clone()
    called[:40] = 1
    p = (truth == 1).double()
    mask = called == 1
    expected = expected_dice(float(p[mask].sum()), int(mask.sum()), float(p.sum()))
    both = int(((truth == 1) & mask).sum())
    assert expected == pytest.approx(2 * both / (int(mask.sum()) + int((truth == 1).sum())))
    assert expected_dice(0.0, 0, 0.1) is None
    assert expected_dice(0.0, 0, 20.0) == 0.0  # more is expected than was called


def test_agreement_needs_three_that_differ() -> None:
    same = [Expected(name, "LV", 0.5, 0.4) for name in "abc"]
    related, error = agreement(same)
    assert related is None
    assert error == pytest.approx(0.1)
    assert agreement(same[:2])[0] is None
    assert agreement([]) == (None, None)
    opposed = [Expected("a", "LV", 0.2, 0.9), Expected("b", "LV", 0.5, 0.5), Expected("c", "LV", 0.8, 0.1)]
    assert agreement(opposed)[0] == pytest.approx(-1)


def test_a_run_is_calibrated_on_its_validation_patients_and_tried_on_the_test_patients(run: TinyRun) -> None:
    seen: list[int] = []
    found, file = calibrate(run.folder, run.data, device=CPU, progress=lambda done, total: seen.append(total - done))
    lists = [len(evaluated_cases(run.folder, run.data, split)) for split in ("val", "test")]
    assert [found.val.cases, found.test.cases] == lists
    assert seen == list(range(sum(lists)))[::-1]
    assert found.val.after.error <= found.val.before.error
    assert load_calibration(run.folder) == load_calibration(run.folder / "last.pt") == found
    assert file == calibration_file(run.folder)
    rows = read_table(calibration_table(run.folder), Expected, "rows", "again")
    assert {row.case for row in rows} <= {case.name for case in evaluated_cases(run.folder, run.data, "test")}
    if rows:
        assert found.dice_error == pytest.approx(np.mean([abs(row.expected - row.dice) for row in rows]))
    model = load_model(run.folder)
    looked = {
        case.name: (predict_volume(model.network, model.preprocess, model.config, volume), np.asarray(volume.label))
        for split in ("val", "test")
        for case in evaluated_cases(run.folder, run.data, split)
        for volume in [load_volume(case, run.data)]
    }
    near = [near_structures(*looked[case.name]) for case in evaluated_cases(run.folder, run.data, "val")]
    temperature = fit_temperature(near)
    assert found.temperature == temperature != 1.0
    for row in rows:
        p = scaled(looked[row.case][0], temperature)
        index = structure_names(model.classes).index(row.structure) + 1
        mask = p.argmax(0) == index
        expected = expected_dice(float(p[index][mask].sum()), int(mask.sum()), float(p[index].sum()))
        assert row.expected == pytest.approx(expected)
    again, _ = calibrate(run.folder, run.data, device=CPU)
    assert again == found


@pytest.mark.parametrize("slices", [8, 40, 64])
def test_voxels_that_are_too_many_are_drawn_from_every_slice(slices: int) -> None:
    label = np.zeros((256, 320, slices), np.int64)
    label[[0, -1], [0, -1]] = 1
    places = torch.arange(label.size, dtype=torch.float32).view(label.shape)
    drawn = near_structures(torch.stack([places, -places]), label)
    assert drawn.truth.numel() == drawn.probabilities.shape[1] == 1 << 18
    by_slice = np.bincount(drawn.probabilities[0].long().numpy() % slices, minlength=slices)
    assert by_slice.min() > 0.8 * (1 << 18) / slices
    again = near_structures(torch.stack([places, -places]), label)
    assert torch.equal(again.probabilities, drawn.probabilities)


def test_the_dice_that_is_expected_is_of_the_voxels_that_the_label_tells(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(run.folder, run.data, device=CPU)
    whole = read_table(calibration_table(run.folder), Expected, "rows", "again")

    def beside(case: Case, data: DataSet) -> Volume:
        """The image twice, one above the other; nothing is said of the second."""
        volume = load_volume(case, data)
        label = np.asarray(volume.label)
        image = np.concatenate([volume.image, volume.image], 3)
        return replace(volume, image=image, label=np.concatenate([label, np.full_like(label, -1)], 2))

    monkeypatch.setattr(calibrating, "load_volume", beside)
    calibrate(run.folder, run.data, device=CPU)
    half = read_table(calibration_table(run.folder), Expected, "rows", "again")
    assert [(each.case, each.structure) for each in half] == [(each.case, each.structure) for each in whole]
    assert [each.expected for each in half] == pytest.approx([each.expected for each in whole], rel=0.02)


def test_a_calibration_of_another_checkpoint_is_refused(run: TinyRun) -> None:
    calibrate(run.folder, run.data, device=CPU)
    file = calibration_file(run.folder)
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"checkpoint": "0" * 64}))
    with pytest.raises(InputError, match="the calibration of this checkpoint; got that of another"):
        load_calibration(run.folder)
    file.write_text(json.dumps(values | {"temperature": "hot"}))
    with pytest.raises(InputError, match=r"calibration_last\.json"):
        load_calibration(run.folder)
    file.unlink()
    assert load_calibration(run.folder) is None


def test_the_report_of_a_run_that_went_on_leaves_its_calibration_out(
    run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(run.folder, run.data, device=CPU)
    evaluate(run.folder, run.data, progress=False)
    file = calibration_file(run.folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "0" * 64}))
    write_report([run.folder], run.data, tmp_path / "report.html")
    assert "How far to believe" not in (tmp_path / "report.html").read_text()
    assert "the calibration of this checkpoint; got that of another. Cure: calibrate again" in caplog.text


def test_a_run_without_test_patients_is_calibrated(run: TinyRun, tmp_path: Path) -> None:
    whole, _ = calibrate(run.folder, run.data, device=CPU)
    evaluate(run.folder, run.data, progress=False)
    file = run.folder / "split.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test": []}))
    found, _ = calibrate(run.folder, run.data, device=CPU)
    assert (found.temperature, found.val) == (whole.temperature, whole.val)
    assert (found.test.cases, found.correlation, found.dice_error) == (0, None, None)
    answer = CliRunner().invoke(app, ["calibrate", "--checkpoint", str(run.folder), "--data", str(run.data.root)])
    assert "No test case: no calibration error" in answer.output
    (sure,) = calibration_charts(run.folder, ["a"])
    assert f"Voxels near the structures of {whole.val.cases} validation cases" in sure["text"]


def test_a_file_of_somebody_else_stays(run: TinyRun) -> None:
    calibration_file(run.folder).write_text("mine")
    with pytest.raises(InputError):
        calibrate(run.folder, run.data, device=CPU)
    assert calibration_file(run.folder).read_text() == "mine"


def test_the_command_says_what_was_found_and_the_report_shows_it(run: TinyRun, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["calibrate", "--checkpoint", str(run.folder), "--data", str(run.data.root)])
    assert answer.exit_code == 0, answer.output
    found = load_calibration(run.folder)
    assert found is not None
    assert f"Temperature {found.temperature:.2f}" in answer.output
    page = tmp_path / "report.html"
    line = ["evaluate", "--checkpoint", str(run.folder), "--data", str(run.data.root), "--no-report"]
    assert CliRunner().invoke(app, line).exit_code == 0
    write_report([run.folder], run.data, page)
    assert "How far to believe a probability" in page.read_text()
    calibration_file(run.folder).unlink()
    write_report([run.folder], run.data, page)
    assert "How far to believe a probability" not in page.read_text()


def _partly(run: TinyRun, *splits: str) -> DataSet:
    """The data set of a run in which the labels of some lists are said to show two of three structures."""
    names = {case.name for split in splits for case in evaluated_cases(run.folder, run.data, split)}
    cases = (replace(case, unlabeled=(2,)) if case.name in names else case for case in run.data.cases)
    return replace(run.data, cases=tuple(cases))


def test_a_label_that_leaves_structures_out_does_not_count_as_background(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = calibrate(run.folder, run.data, device=CPU)

    def without_the_second(case: Case, data: DataSet) -> Volume:
        volume = load_volume(replace(case, unlabeled=()), data)
        label = np.asarray(volume.label)
        if case.unlabeled:
            label = opened(np.where(label == 2, 0, label), case.unlabeled, data.classes, Path("a"))
        return replace(volume, label=label)

    monkeypatch.setattr(calibrating, "load_volume", without_the_second)
    found, _ = calibrate(run.folder, _partly(run, "test"), device=CPU)
    assert found.temperature == whole.temperature
    assert found.test.cases == whole.test.cases
    rows = read_table(calibration_table(run.folder), Expected, "rows", "again")
    assert {row.structure for row in rows} <= {"right ventricle", "left ventricle"}
    alone, _ = calibrate(run.folder, _partly(run, "val", "test"), device=CPU)
    assert alone.val.cases == whole.val.cases
    assert sum(alone.val.before.voxels) == sum(whole.val.before.voxels)  # what may be the second counts as well
    assert alone.temperature != whole.temperature
