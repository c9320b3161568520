# SPDX-License-Identifier: Apache-2.0
"""Every command that a text or a `--help` shows exists, with its options and the keys that it sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from benchmarks.__main__ import parser
from secl_models.command.cli import app
from secl_models.options.schema import load_preset, override
from tests.models.test_github import TEXTS

COMMAND = re.compile(r"\b(secl(?= [a-z])|python -m benchmarks) ([a-z]+)( table| figure| cases| cost| suggest)?\b")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
SETTING = re.compile(r"--set '?([\w.]+=[^\s'`]+)'?")


def _groups(group: Any, name: str = "secl") -> Iterator[tuple[str, Any]]:
    yield name, group
    for word, command in getattr(group, "commands", {}).items():
        yield from _groups(command, f"{name} {word}")


CLICK = dict(_groups(typer.main.get_command(app)))
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in CLICK.items()
} | {
    f"python -m benchmarks {word}": set(command._option_string_actions)
    for word, command in parser()._subparsers._group_actions[0].choices.items()  # type: ignore[union-attr]  # argparse
}  # fmt: skip
SHOWN = {path.name: path.read_text(encoding="utf-8") for path in TEXTS[1:]} | {
    "the README": TEXTS[0].read_text(encoding="utf-8"),
    "epilogs": "\n".join(f"`{command.epilog}`" for command in CLICK.values() if command.epilog),
}


def unknown(text: str) -> list[str]:
    """Commands that do not exist, and options that their command lacks, as far as the end of their line."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        starts = list(COMMAND.finditer(line))
        ends = [match.start() for match in starts[1:]] + [len(line)] * bool(starts)
        for match, end in zip(starts, ends, strict=True):
            name = " ".join(part.strip() for part in match.groups("") if part)
            if name not in OPTIONS:
                found.append(name)
                continue
            rest = re.sub(r"[`,;(]", " ", line[match.end() : end])
            found += [f"{name} {option}" for option in OPTION.findall(rest) if option not in OPTIONS[name]]
    return found


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_that_is_shown_exists(name: str) -> None:
    assert unknown(SHOWN[name]) == []


@pytest.mark.parametrize("name", SHOWN)
def test_every_setting_that_is_shown_can_be_set(name: str) -> None:
    for setting in SETTING.findall(SHOWN[name]):
        if ":" not in setting:  # a network of the reader's own
            override(load_preset("acdc"), [setting])


def test_an_unknown_command_or_option_is_seen() -> None:
    assert unknown("`secl tain --data DIR`, `secl train --dta DIR`") == ["secl tain", "secl train --dta"]
    table = "| `python -m benchmarks runn` | `python -m benchmarks run` | `--cse x`, `--case y` |"
    assert unknown(table) == ["python -m benchmarks runn", "python -m benchmarks run --cse"]
    assert unknown("secl study cost --jobs 2") == ["secl study cost --jobs"]
    assert SETTING.findall("--set 'data.size=[96,96]' --set train.steps=2") == ["data.size=[96,96]", "train.steps=2"]
