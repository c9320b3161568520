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


def test_every_picture_of_the_readme_is_there() -> None:
    """In a fresh clone: one that git ignores is there for its author alone."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text())
    assert len(pictures) > 3
    assert [name for name in pictures if not (REPOSITORY / name).is_file()] == []
