# SPDX-License-Identifier: Apache-2.0
"""What is told while nobody watches a bar: lines for a log, objects for a program, silence where it was asked for."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from secl_models.command import cli
from secl_models.command.errors_to_exit import progress_bar
from secl_models.options import events
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, Pace, bars, listen, tell
from secl_models.train import run as train_run
from secl_models.train.progress import TrainingProgress
from secl_models.train.warnings import unlearned
from tests.models.runs import TINY, TinyRun, tiny_run

STAMP = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def _nobody_listens_afterwards() -> Iterator[None]:
    yield
    listen()
    handler, events._Voice.handler = events._Voice.handler, None
    events._Voice.bars = events._Voice.choice = None
    if handler is not None:
        logging.getLogger("secl_models").removeHandler(handler)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def _train(run: TinyRun, out: Path, *more: object) -> Result:
    options = [part for option in TINY for part in ("--set", option)]
    return _call("train", "--data", run.data.root, "--out", out, "--preset", "demo", *options, *more)


def _objects(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code in (0, 2), result.output
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_a_log_says_what_begins_each_validation_and_each_checkpoint(run: TinyRun, tmp_path: Path) -> None:
    result = _train(run, tmp_path / "r")
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if STAMP.match(line)]
    told = [STAMP.sub("", line) for line in lines]
    assert re.fullmatch(
        rf"training secl\+ on {run.data.root} \(2 labelled, 5 unlabelled, 1 validation, 2 test\): "
        rf"6 steps on cpu \(.+ threads?\), into {tmp_path / 'r'}",
        told[1],
    )
    assert told[0] == "checking 10 cases"
    numbers = r"loss \d+\.\d+, Dice % [-\d.]+ \(.+ [-\d.]+, .+\), \d+ images/s, \d+ MiB, \d:\d\d:\d\d left"
    for line, step in zip(told[2::2], (3, 6), strict=True):
        assert re.fullmatch(rf"step {step}/6: {numbers}", line)
    for line, step in zip(told[3::2], (3, 6), strict=True):
        assert line == f"step {step}/6: kept {tmp_path / 'r' / 'last.pt'}"
    assert "Trained 6 steps" not in result.stderr


def test_json_lines_carry_the_numbers(run: TinyRun, tmp_path: Path) -> None:
    found = _objects(_train(run, tmp_path / "r", "--log-format", "json"))
    assert [entry["event"] for entry in found if entry["event"] != "note"] == [
        "start", "start", "validation", "checkpoint", "validation", "checkpoint", "end",
    ]  # fmt: skip
    (hidden,) = [entry for entry in found if "hidden" in entry]
    assert (hidden["labeled"], hidden["hidden"]) == (2, 3)
    told = [entry for entry in found if entry["event"] != "note"]
    start, validation, end = told[1], told[2], told[-1]
    assert (start["method"], start["device"], start["steps"], start["seed"]) == ("secl+", "cpu", 6, 0)
    assert start["cases"] == {"labeled": 2, "unlabeled": 5, "val": 1, "test": 2}
    assert validation["step"] == 3
    assert set(validation["structures"]) == set(run.data.classes.values())
    assert validation["images_per_second"] > 0
    assert validation["memory_mib"] > 1
    assert validation["seconds_left"] > 0
    assert end["steps"] == 6
    refused = _objects(_train(run, tmp_path / "r", "--log-format", "json"))[-1]
    assert refused["level"] == "error"
    assert refused["rule"] == "an empty or new folder for a new run"
    assert refused["cure"].startswith("add --resume")


def test_every_line_is_an_object_beside_warnings_and_a_profile(
    run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(*_: object) -> tuple[str, ...]:
        warnings.warn("from afar", UserWarning, stacklevel=1)
        return ()

    monkeypatch.setattr(train_run, "notes_on", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        found = _objects(_train(run, tmp_path / "r", "--log-format", "json", "--profile", "--method", "supervised"))
    assert [entry["level"] for entry in found if "from afar" in entry["message"]] == ["warning"]
    (profile,) = [entry for entry in found if entry["event"] == "profile"]
    assert profile["milliseconds"]["step"] > 0
    listen("plain")
    assert logging.getLogger("py.warnings").handlers == []


def test_quiet_leaves_results_and_errors(run: TinyRun, tmp_path: Path) -> None:
    result = _train(run, tmp_path / "r", "--quiet", "--method", "supervised")
    assert not [line for line in result.stderr.splitlines() if STAMP.match(line)]
    assert "Trained 6 steps" in result.stdout
    result = _train(run, tmp_path / "r", "--quiet")
    assert "an empty or new folder for a new run" in result.stderr


def test_every_long_command_says_how_far_it_is(run: TinyRun, tmp_path: Path) -> None:
    scored = _call("evaluate", "--checkpoint", run.folder, "--data", run.data.root, "--out", tmp_path, "--no-report")
    assert re.search(r"last 1/2 phantom_\d+: Dice % .+; \d:\d\d:\d\d left", scored.stderr)
    images = run.data.cases[0].image[0].parent
    done = _call("predict", "--checkpoint", run.folder, "--input", images, "--out", tmp_path / "seg")
    assert re.search(r"8/8 \S+\.nii\.gz in \d+\.\d s, 0:00:00 left", done.stderr)
    checked = _call("check", "--data", run.data.root)
    assert "checking 10 cases" in checked.stderr
    quiet = _call("check", "--data", run.data.root, "--quiet")
    assert quiet.stderr == ""
    assert "0 errors" in quiet.stdout


def test_a_bar_stands_for_the_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    listen()
    assert bars()
    tell("step", "a line")
    tell("note", "a note", level=NOTE)
    assert terminal.getvalue() == "a note\n"
    listen("plain")
    assert not bars()
    tell("step", "a line")
    assert terminal.getvalue().endswith(" a line\n")
    listen(quiet=True)
    assert not bars()
    tell("note", "another note", level=NOTE)
    tell("note", "a warning", level=logging.WARNING)
    assert terminal.getvalue().endswith(" a line\na warning\n")
    listen(silent=True)
    tell("note", "another warning", level=logging.WARNING)
    tell("error", "an error", level=logging.ERROR)
    assert terminal.getvalue().endswith("a warning\nan error\n")


def test_another_format_is_refused(run: TinyRun) -> None:
    with pytest.raises(InputError, match="--log-format: one of auto, plain, json; got xml"):
        listen("xml")
    assert "--log-format" in _call("check", "--data", run.data.root, "--log-format", "xml").stderr


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    listen("json", prefix="secl seed 0: ")
    tell("step", "a line", loss=math.nan, list=[math.inf, 1], path=Path("x"))
    found = json.loads(capsys.readouterr().err)
    assert (found["loss"], found["list"], found["path"], found["run"]) == (None, [None, 1], "x", "secl seed 0")


def test_a_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """First look, then each minute, and the time left from the steps of this call alone."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(events.Pace.__init__, "__defaults__", (0, 60.0, lambda: now[0]))
    listen("plain")
    values = {"loss": 0.5, "images_per_second": 7.0, "memory_mib": 99.0}
    with TrainingProgress("secl", 100, 40, spoken=True, bar=False) as progress:
        for done in range(50, 101, 10):
            now[0] += 25.0
            progress.looked(done, values, None, {})
    told = [STAMP.sub("", line) for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "step 50/100: loss 0.500, 7 images/s, 99 MiB, 0:02:05 left",
        "step 80/100: loss 0.500, 7 images/s, 99 MiB, 0:00:50 left",
    ]


def test_a_task_without_a_bar_speaks_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(events.Pace.__init__, "__defaults__", (0, 60.0, lambda: now[0]))
    listen("plain")
    with progress_bar("checking 40 cases") as progress:
        for done in range(1, 41):
            now[0] += 1.0
            progress(done, 40)
    told = [STAMP.sub("", line) for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "checking 40 cases",
        "checking 40 cases: 10/40, 0:00:30 left",
        "checking 40 cases: 20/40, 0:00:20 left",
        "checking 40 cases: 30/40, 0:00:10 left",
        "checking 40 cases: 40/40, 0:00:00 left",
    ]


def test_nothing_is_known_before_the_first_part() -> None:
    assert Pace(5).left(0) == "?"


def test_a_structure_that_was_not_learned_is_named() -> None:
    assert unlearned({"ring": 0.4, "core": math.nan}, {}) == ()
    (said,) = unlearned({"ring": 0.4, "core": 0.0, "rim": 0.04}, {"rim": 0.9})
    assert said.startswith("Dice below 5 % of core, rim on the validation cases: not learned.")


def test_a_structure_that_is_lost_under_the_teacher_is_named() -> None:
    before = {"ring": 0.44, "core": 0.8, "rim": math.nan}
    assert unlearned({"ring": 0.4, "core": 0.9, "rim": 0.5}, before) == ()
    (said,) = unlearned({"ring": 0.38, "core": 0.7, "rim": 0.5}, before)
    assert said.startswith("Dice fell under the teacher: ring (44.0 to 38.0 %), core (80.0 to 70.0 %). It may")


def test_resuming_nothing_is_said(run: TinyRun, tmp_path: Path) -> None:
    result = _train(run, tmp_path / "r", "--resume", "--method", "supervised")
    assert result.exit_code == 0
    assert f"There is no last.pt in {tmp_path / 'r'} to resume: the run starts anew." in result.stderr
    assert "to resume" not in _train(run, tmp_path / "r", "--resume", "--method", "supervised").stderr
