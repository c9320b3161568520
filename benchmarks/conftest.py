# SPDX-License-Identifier: Apache-2.0
"""What `make bench` prints: the load before, cases in order of their pairs, and a line for each after the tables."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from benchmarks import load
from benchmarks.provenance import BUSY
from benchmarks.standing import standing

Group = tuple[str, list[dict[str, Any]]]  # a case, and the statistics of its contenders
GROUPS = pytest.StashKey[Sequence[Group]]()
UNTIMED = (
    "torch.compile is not timed here, as it compiles for long; `python -m benchmarks run` judges beside it as well"
)


def pytest_report_header() -> str:
    """Whether the machine is quiet: the times of a busy one are shown, and called so."""
    cores = load.others(load.SECONDS["cpu"])
    return f"{'' if cores <= load.QUIET else BUSY}{load.said(cores)} before the start"


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(config: pytest.Config) -> Generator[None, list[Group], list[Group]]:
    """Small cases first, and whole pixel steps after the losses on rows."""
    groups = yield
    groups.sort(key=lambda group: group[1][0]["extra_info"]["order"])
    config.stash[GROUPS] = groups
    return groups


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """A line for each case, after its table."""
    for name, group in config.stash.get(GROUPS, ()):
        medians = {each["extra_info"]["contender"]: 1e3 * each["median"] for each in group}
        found = standing(group[0]["extra_info"]["rows"], medians)
        if found is not None:
            terminalreporter.write_line(f"{name}: {found}")
    if GROUPS in config.stash:
        terminalreporter.write_line(UNTIMED)
