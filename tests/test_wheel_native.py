# SPDX-License-Identifier: Apache-2.0
"""The wheel with the C++ half: one for every Linux from glibc 2.28, every Python from 3.11, every later torch."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

import setup
from secl_ops import library
from tests.conftest import REPOSITORY

OUTSIDE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="the tag is of Linux with glibc"
)
USES = """
import torch, secl_ops
assert secl_ops.backends()["native"] is None, secl_ops.backends()
features = torch.randn(1, 16, 8, 8, requires_grad=True)
secl_ops.pixel_contrast(
    features, torch.arange(64).view(1, 8, 8) % 4, per_class=4, num_classes=4, seed=0, backend="native"
).backward()
print(secl_ops.__file__, bool(features.grad.any()))
"""


def python(arguments: list[object], folder: Path, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=OUTSIDE | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy(place: Path) -> Path:
    """The files that a build reads, so that it leaves nothing in the working tree."""
    hidden = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("csrc", "secl_ops", "secl_models"):
        shutil.copytree(REPOSITORY / folder, place / folder, ignore=hidden)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, place)
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    source = copy(folder / "secl")
    python(["-m", "build", "--no-isolation", "--wheel", "--outdir", folder, "."], source, SECL_BUILD="cpu")
    (built,) = folder.glob("*.whl")
    return built


def test_both_halves_know_the_oldest_torch() -> None:
    assert setup.OLDEST_TORCH == library.OLDEST_TORCH
    assert setup.TORCH_TARGET == "0x020b000000000000"


@pytest.mark.parametrize(("choice", "needed"), [("cpu", ["torch>=2.11"]), ("cuda", ["torch>=2.11"]), ("none", [])])
def test_a_build_frontend_is_told_what_the_chosen_build_needs(choice: str, needed: list[str], tmp_path: Path) -> None:
    source = copy(tmp_path / "secl")
    asks = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    assert python(["-c", asks], source, SECL_BUILD=choice).splitlines()[-1] == str(needed)


def test_a_source_archive_holds_every_source(tmp_path: Path) -> None:
    source = copy(tmp_path / "secl")
    python(["-m", "build", "--no-isolation", "--sdist", "--outdir", tmp_path, "."], source, SECL_BUILD="none")
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = [path for path in (REPOSITORY / "csrc").rglob("*") if path.is_file()]
    assert {str(path.relative_to(REPOSITORY)) for path in files} <= held
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= held


@pytest.mark.exhaustive
def test_the_wheel_serves_every_later_python_and_glibc(wheel: Path) -> None:
    assert wheel.name.endswith(f"-cp311-abi3-manylinux_2_28_{platform.machine()}.whl")
    python(["-m", "abi3audit", "--strict", wheel], wheel.parent)
    found = json.loads(python(["-m", "auditwheel", "show", "--json", wheel], wheel.parent))
    assert all(re.fullmatch(r"libc10\.so|libtorch\w*\.so", name) for name in found["external_libs"])  # torch's own
    number = re.fullmatch(r"manylinux_2_(\d+)_\w+", found["sym_tag"])
    assert number is not None
    assert int(number[1]) <= 28


@pytest.mark.exhaustive
def test_the_wheel_contrasts_natively_where_nothing_else_is(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = ["-m", "pip", "--disable-pip-version-check", "--python", place / "bin" / "python"]
    python([*pip, "install", "--no-deps", "--no-index", wheel], place)
    done = subprocess.run(
        [place / "bin" / "python", "-c", USES], cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, moved = done.stdout.split()
    assert Path(file).is_relative_to(place)
    assert moved == "True"
