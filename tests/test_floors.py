# SPDX-License-Identifier: Apache-2.0
"""Imports point down, public names are the documented ones, and neither Triton nor the extension is needed to start."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secl_ops
from tests.conftest import REPOSITORY
from tests.floors import FLOORS

PACKAGES = ("secl_ops", "secl_models", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    if module not in FLOORS:
        pytest.fail(f"{module} has no floor; give it one in tests/floors.py")
    return FLOORS[module]


def imported(tree: ast.AST) -> Iterator[str]:
    known = {module_name(path) for path in SOURCES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def upward(module: str, tree: ast.AST) -> list[str]:
    own = floor(module)
    targets = {name for name in imported(tree) if name.split(".")[0] in PACKAGES}
    return [f"{module} ({own}) imports {name} ({floor(name)})" for name in sorted(targets) if floor(name) >= own]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert upward(module_name(path), ast.parse(path.read_text())) == []


def test_an_upward_import_is_seen() -> None:
    assert upward("secl_ops.spec", ast.parse("from secl_ops import functional")) != []
    assert upward("secl_ops.backends.reference", ast.parse("import secl_ops.ops")) != []


def test_secl_models_uses_public_names_of_secl_ops_only() -> None:
    for path in SOURCES:
        if path.is_relative_to(REPOSITORY / "secl_models"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secl_ops"):
                    assert node.module == "secl_ops", f"{path}: {node.module}"
                    assert {alias.name for alias in node.names} <= set(secl_ops.__all__), path


def test_public_names() -> None:
    assert all(hasattr(secl_ops, name) for name in secl_ops.__all__)
    contract = {
        "info_nce", "sample_pixels", "gather_pixels", "pool_regions", "class_means", "pixel_contrast",
        "PixelContrastLoss", "ClassQueue", "backends",
    }  # fmt: skip
    assert contract <= set(secl_ops.__all__)


COLD_START = """
import importlib.metadata, sys
from pathlib import Path
sys.modules['triton'] = None
_version = importlib.metadata.version
def version(name):
    if name == 'triton':
        raise importlib.metadata.PackageNotFoundError(name)
    return _version(name)
importlib.metadata.version = version
_glob = Path.glob
Path.glob = lambda self, pattern, **options: iter(()) if pattern.startswith('_C') else _glob(self, pattern, **options)
import torch, secl_ops
rows = torch.eye(4).requires_grad_()
secl_ops.info_nce(rows, anchor_labels=torch.tensor([0, 0, 1, 1])).backward()
state = secl_ops.backends()
assert state['reference'] is None, state
assert 'pip install' in state['triton'][0], state
assert 'SECL_BUILD' in state['native'][0], state
"""


def test_cold_start_without_triton_and_without_the_extension() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", COLD_START], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_file_stays_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
