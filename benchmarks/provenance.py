# SPDX-License-Identifier: Apache-2.0
"""Where a number comes from: machine, commit, versions, date; and the CSV files that keep it beside the number."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from secl_models.method.origin import git, installed, processor

RESULTS = Path(__file__).resolve().parent / "results"
SOURCE = ("threads", "machine", "versions", "commit", "date")  # of a whole run
ORIGIN = (*SOURCE, "load")  # of a row: `load` is that before its case; empty in rows from before it was read
BUSY = "BUSY: "  # begins what a note says of the load
PACKAGES = (
    "torch",
    "triton",
    "pytorch-metric-learning",
    "pykeops",
    "cut-cross-entropy",
    "inf-cl",
    "memeff",
    "monai",
    "lightly",
)
NO_GPU = "no GPU: a rehearsal"  # in the place of a GPU's name: no number beside it means anything
Row = dict[str, str]


def commit() -> str:
    """The commit of this checkout, marked where files differ from it."""
    return git(RESULTS.parent, "describe", "--always", "--dirty") or "unknown"


def today() -> str:
    """The date in UTC."""
    return datetime.now(UTC).date().isoformat()


def machine(device: str = "cpu") -> str:
    """The processor's name and its widest vectors; with a GPU, its name and driver first."""
    here = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    if device == "cpu":
        return here
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {here}"


def versions() -> str:
    """Python, torch and whichever rivals are installed."""
    found = {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}
    return "; ".join(f"{name} {number}" for name, number in found.items() if number)


def origin(threads: int, device: str = "cpu") -> tuple[object, ...]:
    """The values of the columns `SOURCE`."""
    return (threads, machine(device), versions(), commit(), today())


def shown(path: Path) -> str:
    """The path as seen from here, for messages."""
    return os.path.relpath(path)


def read_rows(table: Path) -> list[Row]:
    """Every row of a table, in order; none where there is no table."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def fault(row: Mapping[str, str]) -> str | None:
    """What a row of any table lacks: every number has its origin, every absence its reason."""
    missing = [field for field in SOURCE if not row.get(field)]
    if row.get("load", "") is None:  # the row ends before its columns do
        missing.append("load")
    if missing:
        return f"no {', '.join(missing)}"
    if "p50_ms" in row:
        note, memory = row["note"].partition(BUSY)[0].removesuffix("; "), "memory: "
        if bool(row["p50_ms"]) == bool(note) and not note.startswith(memory):
            return "either a time or a note that says why there is none"
        if row["p50_ms"] and bool(row["extra_mib"]) == note.startswith(memory):
            return f"either extra_mib or a note that begins with {memory!r}"
    return None


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
