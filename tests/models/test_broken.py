# SPDX-License-Identifier: Apache-2.0
"""A few cases of `make fuzz-commands`, and whether it would see a fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from secl_models.command import cli
from tests.broken import __main__ as broken
from tests.broken.whole import make_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "whole"
    make_whole(folder)
    return folder


def test_no_command_falls_over_a_broken_folder(whole: Path) -> None:
    found = [broken.run_case(whole, 2, number) for number in range(25)]
    assert [(what, faults) for _, what, faults in found if faults] == []
    assert len({end for end, *_ in found}) > 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh"),
        (SystemExit(3), "exit status 3"),
        (SystemExit(2), "no cure"),
    ],
)
def test_a_fault_is_seen(whole: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, said: str) -> None:
    app = typer.Typer()

    @app.command()
    def check(data: str) -> None:
        (Path("data") / "dataset.json").write_text("changed")
        Path(".x.partial").touch()
        raise fault

    monkeypatch.setattr(cli, "app", app)
    _, faults = broken.faults_of(whole, ["data"])
    assert said in faults[0]
    if isinstance(fault, ZeroDivisionError):
        assert faults[1:] == ["exit status 1: ", "an input was changed", "left behind: .x.partial"]
