# SPDX-License-Identifier: Apache-2.0
"""Every example runs: those of the public docstrings and those of the README."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import secl_ops
from secl_models.data.phantom import write_phantom
from tests.conftest import REPOSITORY
from tests.test_floors import SOURCES, module_name

README = REPOSITORY / "README.md"
TEXTS = sorted(
    path
    for folder in (".github", "benchmarks", "csrc", "docs", "secl_models", "secl_ops", "tests")
    for path in (REPOSITORY / folder).rglob("*.md")
) + sorted(REPOSITORY.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the data set `phantom`, which the examples of secl_models read."""
    folder = tmp_path_factory.mktemp("examples")
    write_phantom(folder / "phantom", cases=12, labeled=8)
    return folder


@pytest.mark.parametrize("module", [module_name(path) for path in SOURCES if ">>>" in path.read_text()])
def test_docstring_examples(module: str, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(phantom_folder)
    failed, attempted = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert attempted > 0
    assert failed == 0


def test_every_public_name_has_an_example() -> None:
    for name in secl_ops.__all__:
        if name not in ("PixelSample", "__version__"):
            assert ">>>" in (getattr(secl_ops, name).__doc__ or ""), name


def test_readme_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def anchors(text: str) -> set[str]:
    """What a link may name after `#`: the headings as they are addressed on the web."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(file: Path, text: str) -> list[str]:
    """Links to files that are not there, or to headings that their file lacks."""
    broken = []
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        there = target.exists() and target.is_relative_to(REPOSITORY)
        if not there or (heading and heading not in anchors(text if target == file else target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_every_link_within_the_repository_resolves(file: Path) -> None:
    assert broken_links(file, file.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](no.md) [b](README.md#no-such-heading) [c](#none) [d](README.md) ![e](../outside.png)\n"
    assert broken_links(README, text) == ["no.md", "README.md#no-such-heading", "#none", "../outside.png"]


def test_the_readme_is_short_and_shows_a_picture_first() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1300
    assert "](benchmarks/results/growth-cpu.png)" in text.partition("\n## ")[0]


def test_no_text_names_a_path_of_the_machine_that_it_was_written_on() -> None:
    absolute = re.compile(r"(?:^|[\s`'\"(])(/[\w.-]+/[\w./-]+)")
    assert absolute.findall("see /one/two/three.csv, not a/b or //c.d/e") == ["/one/two/three.csv"]
    assert [(file.name, path) for file in TEXTS for path in absolute.findall(file.read_text(encoding="utf-8"))] == []
