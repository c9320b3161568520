# SPDX-License-Identifier: Apache-2.0
"""Suggested patients against random ones: what is drawn, what is not run again, and what the table says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secl_models.command.cli import app
from secl_models.data.cases import DataSet
from secl_models.data.splits import drawn_order, labelable, make_split, split_with
from secl_models.data.volumes import Volume
from secl_models.inference.suggest import DOUBT, TYPICAL, WAYS, Committee, Look
from secl_models.options.errors import InputError
from secl_models.study import labelling as study
from secl_models.study.labelling import Labelling, require_patients, run_labelling
from secl_models.study.labelling_rows import FIRST, RANDOM, Draw, LabellingRow, read_labelling
from secl_models.study.labelling_table import compare, labelling_markdown
from secl_models.train.run import train
from tests.models.runs import TINY, tiny_config, tiny_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return tiny_run(tmp_path_factory).data


def _labelling(seed: int = 0, ways: tuple[str, ...] = WAYS) -> Labelling:
    return Labelling(Draw("data", "supervised", seed, "demo"), replace(tiny_config(), labeled=1, seed=seed), 2, ways)


def _row(seed: int, choice: str, dice: float, method: str = "supervised") -> LabellingRow:
    return LabellingRow("heart", method, seed, "demo", choice, "a;b", dice, 1.0, 1.0, "lv=1.0", 6, 1.0, "", "")


def test_a_draw_has_three_runs_that_share_their_first_patients(data: DataSet, tmp_path: Path) -> None:
    rows = run_labelling([_labelling()], data, tmp_path / "runs", tmp_path / "rows.csv")
    assert [row.choice for row in rows] == [FIRST, RANDOM, DOUBT, TYPICAL]
    first, random, *suggested = (row.patients.split(";") for row in rows)
    assert [len(first), len(random), *map(len, suggested)] == [1, 3, 3, 3]
    assert all(first == found[:1] for found in (random, *suggested))
    assert all(set(found) <= set(labelable(data)) for found in suggested)
    assert random == drawn_order(labelable(data), 0)[:3]
    assert list((tmp_path / "runs").glob("data-*")) == []  # what is a row needs no folder
    assert all(row.steps == 6 and 0 <= row.dice <= 100 for row in rows)


def test_no_row_is_run_again(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    one_way = _labelling(4, (DOUBT,))  # of this draw the suggested patients are not the random ones
    whole = run_labelling([one_way], data, tmp_path / "whole", tmp_path / "whole.csv")
    trained: list[str] = []

    def counting(*args: object, **options: object) -> object:
        trained.append(str(args[3]))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        run_labelling([one_way], data, tmp_path / "runs", file)
    assert [row.choice for row in read_labelling(file)] == [FIRST, RANDOM]
    trained.extend(["", ""])
    again = run_labelling([one_way], data, tmp_path / "runs", file)
    assert [(row.choice, row.patients, row.dice) for row in again] == [
        (row.choice, row.patients, row.dice) for row in whole
    ]
    assert not any(RANDOM in folder for folder in trained[3:])
    trained.clear()
    assert run_labelling([one_way], data, tmp_path / "runs", file) == again
    assert trained == []


def test_patients_are_looked_at_once_for_every_way_and_trained_on_once_where_the_ways_agree(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    trained: list[str] = []
    look = Committee.look

    def looking(committee: Committee, volume: Volume) -> Look:
        looked.append(volume.case.name)
        return look(committee, volume)

    def training(*args: object, **options: object) -> object:
        trained.append(Path(str(args[3])).name)
        return train(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Committee, "look", looking)
    monkeypatch.setattr(study, "train", training)
    alone = replace(_labelling(), more=4)  # all others, whoever chooses
    rows = run_labelling([alone], data, tmp_path / "runs", tmp_path / "rows.csv")
    assert [row.choice for row in rows] == [FIRST, RANDOM, DOUBT, TYPICAL]
    assert len(looked) == len(set(looked)) == 4
    assert [name.rpartition("-")[2] for name in trained] == [FIRST, RANDOM]
    assert rows[1] == replace(rows[2], choice=RANDOM) == replace(rows[3], choice=RANDOM)


def test_a_draw_of_patients_is_made_where_the_layout_lists_them(data: DataSet) -> None:
    listed = replace(data, layout="ssl4mis")
    assert {case.patient for case in make_split(listed, 2, 0).labeled} == set(labelable(data)[:2])
    orders = {tuple(drawn_order(labelable(listed), seed)) for seed in range(4)}
    assert len(orders) == 4
    chosen = labelable(data)[-2:]
    assert {case.patient for case in split_with(listed, chosen).labeled} == set(chosen)


def test_differences_are_paired_by_draw() -> None:
    gains = {0: 2.0, 1: -1.0, 2: 5.0}
    rows = [
        _row(seed, choice, dice)
        for seed, gain in gains.items()
        for choice, dice in ((FIRST, 50.0), (RANDOM, 60.0 + 10 * seed), (DOUBT, 60.0 + 10 * seed + gain))
    ]
    rows.append(_row(3, RANDOM, 0.0))  # a draw that is not finished
    (found,) = compare(rows)
    assert (found.gain.mean, found.gain.count, found.won) == (2.0, 3, 2)
    assert found.dice[RANDOM].mean == 70.0
    low, high = found.gain.interval() or (0, 0)
    assert low == pytest.approx(2 - 4.302653 * 3 / 3**0.5)
    assert high == pytest.approx(2 + 4.302653 * 3 / 3**0.5)
    head, _, line = labelling_markdown(rows).splitlines()
    assert head.startswith("| data | method | suggested by | draws |")
    assert line.startswith("| heart | supervised | doubt | 3 |")
    assert "| +2.0 ± 3.0 | -5.5 to +9.5 |" in line
    assert line.endswith("| 2 of 3 |")
    assert compare([*rows, _row(0, FIRST, 1.0, "secl+")]) == [found]


@pytest.mark.parametrize(("first", "more"), [(0, 2), (1, 0), (3, 3), (90, 1)])
def test_too_few_patients_are_refused(data: DataSet, first: int, more: int) -> None:
    assert len(labelable(data)) == 5
    require_patients(data, 2, 2)
    with pytest.raises(InputError, match="together fewer than the 5 training patients with a label"):
        require_patients(data, first, more)


def test_the_command_runs_the_draws_and_prints_the_table(data: DataSet, tmp_path: Path) -> None:
    options = [part for option in TINY[1:] for part in ("--set", option)]
    line = ["study", "suggest", "--data", str(data.root), "--preset", "demo", "--by", "typical"]
    line += ["--methods", "supervised", "--seeds", "0"]
    answer = CliRunner().invoke(app, [*line, *options, "--out", str(tmp_path), "--quiet", "--markdown"])
    assert answer.exit_code == 0, answer.output
    assert "[draw 1 of 1] supervised, seed 0, typical (" in answer.output
    assert "| data | supervised | typical | 1 |" in answer.output
    assert len(read_labelling(tmp_path / "suggest.csv")) == 3
    answer = CliRunner().invoke(app, [*line, *options, "--out", str(tmp_path), "--quiet"])
    assert "[draw" not in answer.output
    assert re.search(r"supervised +typical +1 ", answer.output)
    wrong = CliRunner().invoke(app, [*line, "--by", "size", "--out", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "--by: doubt or typical; got size" in wrong.output
    refused = CliRunner().invoke(app, [*line, "--add", "9", "--out", str(tmp_path)])
    assert refused.exit_code == 2
    assert "--labeled and --add" in refused.output
