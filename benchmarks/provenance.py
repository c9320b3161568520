# SPDX-License-Identifier: Apache-2.0
"""Where a number comes from: machine, commit, date; and the CSV files that keep it beside the number."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def commit() -> str:
    """The commit of this checkout, marked where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def today() -> str:
    """The date in UTC."""
    return datetime.now(UTC).date().isoformat()


def machine() -> str:
    """The processor's name and its widest vectors."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def shown(path: Path) -> str:
    """The path as seen from here, for messages."""
    return os.path.relpath(path)


def write_rows(table: Path, fields: Sequence[str], rows: Sequence[Sequence[object]], *, append: bool) -> None:
    """Write rows under these columns, after the rows that are there or instead of them.

    Raises:
        SystemExit: The table to append to has other columns.
    """
    kept = append and table.exists()
    if kept:
        with table.open(newline="") as file:
            found = next(csv.reader(file), [])
        if found != list(fields):
            raise SystemExit(
                f"{shown(table)} must have the columns {','.join(fields)}; it has {','.join(found)}; "
                "remove it or name another with --out"
            )
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a" if kept else "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not kept:
            writer.writerow(fields)
        writer.writerows(rows)
