# SPDX-License-Identifier: Apache-2.0
"""What several tests of the trainer need."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", place], check=False).returncode:
        skip_or_fail("mount", "no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)
