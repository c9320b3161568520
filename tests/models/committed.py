# SPDX-License-Identifier: Apache-2.0
"""The committed CSV files of benchmarks/results, and how its README writes a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence

from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))
