# SPDX-License-Identifier: Apache-2.0
"""Tables on a narrow terminal lose no word."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from secl_models.inference.evaluations import Evaluation, evaluation_table
from secl_models.inference.metrics import CaseScores, StructureScore
from secl_models.options.terminal import print_table
from secl_models.study.rows import Row
from secl_models.study.table import as_table

STRUCTURES = ("left ventricle", "myocardium", "right ventricle")


def _scores() -> Table:
    cases = tuple(
        CaseScores(f"p{i}", f"c{i}", tuple(StructureScore(s, 0.7, 12.3 + i, 2.3, "mm", "both") for s in STRUCTURES))
        for i in range(3)
    )
    return evaluation_table([Evaluation(name, "test", cases, 1.0, 5) for name in ("last", "best")])


def _study() -> Table:
    rows = [
        Row("acdc", 4, name, "steps", seed, 900, 60.0, 50.0, "last", 71.5, 12.0, 1.0, 9.0, "cpu", "", "a=71.5", "demo")
        for name in ("supervised", "mean-teacher") for seed in (0, 1)
    ]  # fmt: skip
    return as_table(rows, width=40)


def _printed(table: Table, width: int) -> str:
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 100])
@pytest.mark.parametrize("make", [_scores, _study])
def test_no_word_of_a_table_is_lost(width: int, make: type[Table]) -> None:
    table = make()
    text = _printed(table, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = [word for column in table.columns for cell in (column.header, *column.cells) for word in str(cell).split()]
    shown = text.split()
    for word in words:
        assert word.removeprefix("[bold]").removesuffix("[/]") in shown, word


def test_a_wide_terminal_has_the_table_itself() -> None:
    assert "structure            Dice %" in _printed(_scores(), 80)
    assert "structure" in _printed(_scores(), 40).split()


def test_a_narrow_help_cuts_no_option() -> None:
    environment = {**os.environ, "COLUMNS": "40"}
    command = [sys.executable, "-m", "secl_models", "train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    for option in ("--labeled", "--checkpoint-every", "--log-format"):
        assert option in words
    assert max(map(len, done.stdout.splitlines())) <= 50  # click wraps no narrower
