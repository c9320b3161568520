# SPDX-License-Identifier: Apache-2.0
"""The wheel holds every module and every file that they read, and works in an environment without this repository."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from secl_models.data.phantom import write_phantom
from tests.conftest import REPOSITORY
from tests.models.runs import TINY

pytestmark = pytest.mark.exhaustive
SHIPPED = {".py", ".yaml", ".j2", ".typed"}
OUTSIDE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(command: list[object], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=OUTSIDE | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the extension from a copy, so that nothing is left in the working tree."""
    source = tmp_path_factory.mktemp("source") / "secl"
    hidden = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("secl_ops", "secl_models"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=hidden)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", source.parent, source],
        source.parent, SECL_BUILD="none")  # fmt: skip
    (built,) = source.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that holds the wheel and, besides, what it needs.

    What it needs is read where this Python has it. The working tree is not in there: it is found by a finder that only
    this Python starts.
    """
    place = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place / "bin" / "python"]
    run([*pip, "install", "--no-deps", "--no-index", wheel], place)
    return place / "bin"


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    expected = {
        str(path.relative_to(REPOSITORY))
        for package in ("secl_ops", "secl_models")
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in SHIPPED
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_installed_wheel_trains_and_reports_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    place = run([installed / "python", "-c", "import secl_ops; print(secl_ops.__file__)"], tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)
    assert "reference" in run([installed / "secl", "doctor"], tmp_path)
    write_phantom(tmp_path / "data", cases=10, labeled=8, size=(32, 32, 4))
    options = [part for option in TINY for part in ("--set", option)]
    train = [installed / "secl", "train", "--data", "data", "--out", "run", "--preset", "demo", *options]
    assert "Trained 20 steps" in run([*train, "--steps", "20"], tmp_path)
    run([installed / "secl", "evaluate", "--checkpoint", "run", "--data", "data"], tmp_path)
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
