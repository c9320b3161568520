# SPDX-License-Identifier: Apache-2.0
"""Each target against what `python -m benchmarks gpu` measured: met, missed, or not measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import VERDICT, write_whole
from benchmarks.provenance import Row, read_rows
from benchmarks.targets import TARGETS, Target

UNITS = {"p50_ms": "ms", "extra_mib": "MiB"}
MEANT_FOR = "H200"


def judge(target: Target, rows: Sequence[Row]) -> tuple[str, str, str]:
    """Measured value; "met", "missed", "measured" where no figure is set, or "not measured"; what to try, or why."""
    row = next((row for row in reversed(rows) if row["target"] == target.name), None)
    if row is None:
        return "", "not measured", "the stage `targets` did not come to it: see targets.log"
    if not row[target.column]:
        return "", "not measured", row["note"]
    value = float(row[target.column])
    spread = f" ({row['p20_ms']} .. {row['p80_ms']})" if target.column == "p50_ms" else ""
    measured = f"{value:g} {UNITS[target.column]}{spread}"
    if target.most is None:
        return measured, "measured", target.next_step
    met = value <= target.most
    return measured, "met" if met else "missed", "" if met else target.next_step


def verdict(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> str:
    """The verdict as a table in Markdown."""
    machines = " or ".join(dict.fromkeys(row["machine"] for row in rows)) or "unknown"
    lines = [
        "## Verdict", "", f"Measured on {machines}; the targets are meant for an {MEANT_FOR}.", "",
        "| target | at most | measured: median (p20 .. p80) | verdict | next |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for target in targets:
        value, word, advice = judge(target, rows)
        most = "not set" if target.most is None else f"{target.most:g} {UNITS[target.column]}"
        lines.append(f"| {target.name} | {most} | {value} | {word} | {advice} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the verdict on the table of targets in a folder."""
    out = Path(arguments[0])
    text = verdict(read_rows(out / "targets.csv"))
    write_whole(out / VERDICT, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
