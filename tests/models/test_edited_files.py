# SPDX-License-Identifier: Apache-2.0
"""Files of a run that somebody edited are refused by name, or read past; no command ends in a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from secl_models.data.splits import make_split
from secl_models.inference.evaluate import evaluate
from secl_models.inference.evaluations import load_evaluation
from secl_models.options.errors import InputError
from secl_models.report.page import write_report
from secl_models.train.run import train
from secl_models.train.run_folder import read_history, read_summary
from tests.models.runs import TinyRun, tiny_run


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> TinyRun:
    """A copy of the run, to be changed."""
    run = tiny_run(tmp_path_factory)
    return replace(run, folder=Path(shutil.copytree(run.folder, tmp_path / "own")))


EDITS: dict[str, Callable[[str], str]] = {
    "another separator": lambda text: text.replace(",", ";"),
    "decimal commas": lambda text: text.replace(".", ","),
    "a word for a number": lambda text: text.replace("3,", "three,", 1),
    "a step that is no whole number": lambda text: text.replace("\n3,", "\n3.5,"),
    "a column more": lambda text: text.replace("step,", "note,step,").replace("\n", "\nx,"),
    "a row that is too long": lambda text: text.rstrip("\n") + ",1,2,3\n",
    "a row that is too short": lambda text: text + "9,1\n",
    "a null character": lambda text: text + "\0",
    "no text at all": lambda text: "\udcff",
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_history_is_refused_or_read(own: TinyRun, edit: str) -> None:
    file = own.folder / "history.csv"
    file.write_text(EDITS[edit](file.read_text()), errors="surrogateescape")
    before = file.read_bytes()
    split = make_split(own.data, own.config.labeled, own.config.seed)
    with pytest.raises(InputError, match=r"history\.csv: the history as it was written: .*; got fault at "):
        train(own.config, own.data, split, own.folder, resume=True, progress=False)
    assert file.read_bytes() == before
    file.unlink()
    train(own.config, own.data, split, own.folder, resume=True, progress=False)


def test_tables_that_a_spreadsheet_marked_are_read(own: TinyRun) -> None:
    evaluate(own.folder, own.data, progress=False)
    files = [own.folder / name for name in ("history.csv", "evaluation_test_last.csv")]
    before = read_history(files[0]), load_evaluation(own.folder)
    for file in files:
        file.write_text(file.read_text(), encoding="utf-8-sig", newline="\r\n")
    assert (read_history(files[0]), str(load_evaluation(own.folder))) == (before[0], str(before[1]))


def test_empty_columns_are_not_faults(own: TinyRun) -> None:
    rows = read_history(own.folder / "history.csv")
    assert [row["step"] for row in rows] == ["3", "6"]
    assert "" in rows[0].values()
    (own.folder / "history.csv").write_text("")
    assert read_history(own.folder / "history.csv") == []


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"method": 3}', "\udcff"])
def test_an_edited_summary_is_refused(own: TinyRun, content: str) -> None:
    file = own.folder / "summary.json"
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"summary\.json: the summary as it was written; .* with --resume"):
        write_report([own.folder], own.data, own.folder / "report.html")
    assert not (own.folder / "report.html").exists()
    split = make_split(own.data, own.config.labeled, own.config.seed)
    train(own.config, own.data, split, own.folder, resume=True, progress=False)
    assert read_summary(file)["method"] == "secl+"


def test_a_score_that_is_no_number_is_none(own: TinyRun) -> None:
    file = own.folder / "summary.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "last_dice": float("nan")}))
    assert read_summary(file)["last_dice"] is None
    assert read_summary(own.folder / "none.json") == {}


@pytest.mark.parametrize(
    "edit", [lambda text: text.replace(",", ";"), lambda text: text.replace(",0.", ",x."), lambda text: "\udcff"]
)
def test_edited_scores_are_refused(own: TinyRun, edit: Callable[[str], str]) -> None:
    evaluate(own.folder, own.data, progress=False)
    file = own.folder / "evaluation_test_last.csv"
    file.write_text(edit(file.read_text()), errors="surrogateescape")
    with pytest.raises(
        InputError, match=r"evaluation_test_last\.csv: the scores of an evaluation with the columns pat"
    ):
        load_evaluation(own.folder)


def test_scores_of_no_case_are_refused(own: TinyRun) -> None:
    evaluate(own.folder, own.data, progress=False)
    file = own.folder / "evaluation_test_last.csv"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"test_last\.csv: the scores of at least one case; got none"):
        load_evaluation(own.folder)


def test_an_option_younger_than_the_checkpoint_has_its_default_there(own: TinyRun) -> None:
    import torch

    state = torch.load(own.folder / "last.pt", weights_only=True)
    del state["config"]["mix"]["largest"]
    torch.save(state, own.folder / "last.pt")
    split = make_split(own.data, own.config.labeled, own.config.seed)
    assert train(own.config, own.data, split, own.folder, resume=True, progress=False).steps == 6
