# SPDX-License-Identifier: Apache-2.0
"""Imports point down, secl_models uses public names alone, and neither Triton nor the extension is needed to start."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secl_ops
from tests.conftest import REPOSITORY
from tests.floors import FLOORS, LONGEST_CHAIN, ROOMS

PACKAGES = ("secl_ops", "secl_models", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = frozenset(map(module_name, SOURCES))


def floor(module: str) -> int:
    package, _, rest = module.partition(".")
    if package == "secl_models":
        room = rest.partition(".")[0]
        return 20 if not rest else 40 if room == "__main__" else 21 + ROOMS.index(room)
    if module not in FLOORS:
        pytest.fail(f"{module} has no floor; give it one in tests/floors.py")
    return FLOORS[module]


def within_a_room(module: str, other: str) -> bool:
    return module.startswith("secl_models.") and module.split(".")[1] == other.split(".")[1]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in KNOWN else node.module


def upward(module: str, tree: ast.AST) -> list[str]:
    own = floor(module)
    targets = {name for name in imported(tree) if name.split(".")[0] in PACKAGES}
    return [
        f"{module} ({own}) imports {name} ({floor(name)})"
        for name in sorted(targets)
        if floor(name) > own or (floor(name) == own and not within_a_room(module, name))
    ]


def chains(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """The longest chain of imports that ends in each module; a circle is refused."""
    found: dict[str, list[str]] = {}

    def follow(module: str, above: tuple[str, ...]) -> list[str]:
        assert module not in above, f"imports run in a circle: {' -> '.join((*above, module))}"
        if module not in found:
            below = [follow(name, (*above, module)) for name in graph[module]]
            found[module] = [*max(below, key=len, default=[]), module]
        return found[module]

    for module in graph:
        follow(module, ())
    return found


def import_graph(package: str) -> dict[str, set[str]]:
    paths = [path for path in SOURCES if path.is_relative_to(REPOSITORY / package)]
    modules = {module_name(path): set(imported(ast.parse(path.read_text()))) for path in paths}
    return {name: {used for used in targets if used in modules and used != name} for name, targets in modules.items()}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert upward(module_name(path), ast.parse(path.read_text())) == []


def test_an_upward_import_is_seen() -> None:
    assert upward("secl_ops.spec", ast.parse("from secl_ops import functional")) != []
    assert upward("secl_ops.engines.reference", ast.parse("import secl_ops.ops")) != []
    assert upward("secl_models.data.check", ast.parse("from secl_models.method.networks import Output")) != []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_but_a_test_imports_a_test(path: Path) -> None:
    assert [name for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == "tests"] == []


def test_every_room_of_secl_models_has_modules_and_nothing_lies_beside_them() -> None:
    beside = {path.stem for path in (REPOSITORY / "secl_models").glob("*.py")}
    rooms = {path.parent.name for path in (REPOSITORY / "secl_models").glob("*/*.py") if path.stem != "__init__"}
    assert (beside, rooms) == ({"__init__", "__main__"}, set(ROOMS))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.stem == "__init__"], ids=module_name)
def test_a_room_holds_one_docstring_and_exports_nothing(path: Path) -> None:
    if module_name(path) in ("secl_ops", "secl_ops.engines.triton"):  # the public names; the lazy backend
        return
    body = ast.parse(path.read_text()).body
    assert [type(node) for node in body] == [ast.Expr], path


@pytest.mark.parametrize("package", PACKAGES)
def test_chains_of_imports_stay_short(package: str) -> None:
    longest = max(chains(import_graph(package)).values(), key=len)
    assert len(longest) <= LONGEST_CHAIN[package], " -> ".join(longest)


def test_a_circle_of_imports_is_seen() -> None:
    with pytest.raises(AssertionError, match="in a circle: a -> b -> a"):
        chains({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_module_is_found_by_its_dotted_name(path: Path) -> None:
    """`import a.b.c as m` asks the packages for their attributes: no public function may stand in a module's way."""
    name = module_name(path)
    if name == "secl_models.__main__" or name.startswith("benchmarks"):
        return
    space: dict[str, object] = {}
    exec(f"import {name} as found", space)
    assert space["found"] is sys.modules[name]


# What an option may be called is no public name of its own: it is spelled where the options of the losses are.
ALLOWED = {"secl_ops": set(secl_ops.__all__), "secl_ops.spec": {"BACKENDS", "DENOMINATORS", "STRATEGIES"}}


def test_secl_models_uses_public_names_and_the_vocabularies_of_secl_ops_only() -> None:
    for path in SOURCES:
        if path.is_relative_to(REPOSITORY / "secl_models"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secl_ops"):
                    assert node.module in ALLOWED, f"{path}: {node.module}"
                    assert {alias.name for alias in node.names} <= ALLOWED[node.module], path


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
