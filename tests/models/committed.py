# SPDX-License-Identifier: Apache-2.0
"""The committed CSV files of benchmarks/results, and how its README writes a table and a difference."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence

from secl_models.report.spread import Spread
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")


def interval(spread: Spread) -> str:
    """Mean ± SD and, in brackets, the 95 % interval of Student's t."""
    ends = spread.interval()
    assert ends is not None
    return f"{signed(spread.mean)} ± {spread.deviation:.1f} [{', '.join(map(signed, ends))}]"
