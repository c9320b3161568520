# SPDX-License-Identifier: Apache-2.0
"""Every example runs: those of the public docstrings and those of the README."""

from __future__ import annotations

import doctest
import importlib
import re

import pytest

import secl_ops
from tests.conftest import REPOSITORY
from tests.test_floors import SOURCES, module_name

README = REPOSITORY / "README.md"


@pytest.mark.parametrize("module", [module_name(path) for path in SOURCES if ">>>" in path.read_text()])
def test_docstring_examples(module: str) -> None:
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
