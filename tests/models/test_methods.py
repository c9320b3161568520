# SPDX-License-Identifier: Apache-2.0
"""The table of methods is what the command line and the README name, and its short names are short."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.command.cli_study import STUDIED
from secl_models.options.methods import METHODS, short_name
from tests.conftest import REPOSITORY


def test_the_readme_names_every_method_and_no_other() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`--method ([^`]*)`", text)
    assert [name for part in named for name in part.split(", ")] == list(METHODS)


def test_the_command_line_names_every_method() -> None:
    text = CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "400"}).stdout
    assert ", ".join(METHODS) in text
    assert STUDIED == "supervised,mean-teacher,copy-paste,secl,secl+"


def test_short_names_fit_twelve_columns_and_differ() -> None:
    short = [short_name(method) for method in METHODS]
    assert max(map(len, short)) <= 12
    assert len(set(short)) == len(short)
