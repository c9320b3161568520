# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: the processor, the versions and the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("secl", "torch", "monai", "lightning-fabric", "nibabel", "numpy")


def processor() -> str:
    """The name of the processor."""
    return _told_by_linux("model name") or platform.processor() or platform.machine()


def instructions() -> frozenset[str]:
    """Extensions of the processor's instructions as Linux names them, such as avx512_bf16; none where it tells none."""
    return frozenset((_told_by_linux("flags") or _told_by_linux("Features")).split())


def _told_by_linux(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of what the result of a run depends on."""
    found = {name: installed(name) or "not installed" for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def git(folder: Path, *arguments: str) -> str | None:
    """What git says about the checkout that a folder lies in; None outside one, and without git."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def commit() -> str | None:
    """Commit of the checkout this package runs from, with `+` where its files differ; None outside one."""
    package = Path(__file__).resolve().parent.parent
    head, changed = git(package, "rev-parse", "--short=12", "HEAD"), git(package, "status", "--porcelain", "--", ".")
    return None if head is None or changed is None else head + ("+" if changed else "")
