# SPDX-License-Identifier: Apache-2.0
"""What an interpreter lacks is said by name, and `make test-gpu PYTHON=...` fetches nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import present
from tests.conftest import REPOSITORY


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert present.main(["pytest", "no-such-package"]) == 2
    told = capsys.readouterr()
    assert f"pytest {pytest.__version__}" in told.out
    assert "lacks no-such-package; bring them" in told.err
    assert present.main(["pytest"]) == 0


def test_an_old_interpreter_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(present, "OLDEST", (9, 0))
    assert present.main([]) == 2
    assert "lacks Python >= 9.0" in capsys.readouterr().err


@pytest.mark.parametrize("given", [True, False])
def test_a_named_interpreter_brings_its_own_packages(given: bool) -> None:
    command = ["make", "--dry-run", "--always-make", "test-gpu", *([f"PYTHON={sys.executable}"] if given else [])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    python = sys.executable if given else ".venv/bin/python"
    assert f"SECL_REQUIRE=cuda,triton {python} -m pytest" in done.stdout
    assert (f"{sys.executable} -m tests.present" in done.stdout) == given
    assert ("pip install" in done.stdout) != given
