# SPDX-License-Identifier: Apache-2.0
"""What of a sweep `make test` runs: a share of the product of a test's parameters; `make test-all` runs the rest.

    @pytest.mark.thinned(4, backend="triton")    # of the parameters that include this one, every fourth combination
    @pytest.mark.deferred(backend="triton")      # none of them

The share of a thinned test lies on a diagonal of the product, so that each value meets many others, and every value of
every parameter is in it. With `SECL_PART=1/2` in the environment, only the first half of the rest is run.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest


def kept(numbered: Sequence[dict[str, int]], share: int) -> set[int]:
    """Places, in a list of combinations, of those on every `share`-th diagonal, and of what else each value needs."""
    chosen = {place for place, found in enumerate(numbered) if sum(found.values()) % share == 0}
    covered = {value for place in chosen for value in numbered[place].items()}
    for place, found in enumerate(numbered):
        if not covered.issuperset(found.items()):
            chosen.add(place)
            covered.update(found.items())
    return chosen


def _call(item: pytest.Item) -> Any:
    return item.callspec  # type: ignore[attr-defined]


def _concerns(marker: pytest.Mark, item: pytest.Item) -> bool:
    given = _call(item).params
    return all(str(given[name]).removesuffix("-many") == str(value) for name, value in marker.kwargs.items())


def indices(calls: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """Each combination with the values of its parameters numbered as they come; a value is an object of the test's."""
    known: defaultdict[str, dict[int, int]] = defaultdict(dict)
    return [
        {name: known[name].setdefault(id(value), len(known[name])) for name, value in call.items()} for call in calls
    ]


def thin(items: Sequence[pytest.Item]) -> None:
    """Mark as `exhaustive` what lies outside the share of a test that is `thinned`, and what is `deferred`."""
    sweeps: defaultdict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    shares: dict[tuple[str, str], int] = {}
    for item in items:
        for marker in item.iter_markers():
            if marker.name == "deferred" and _concerns(marker, item):
                item.add_marker(pytest.mark.exhaustive)
            elif marker.name == "thinned" and _concerns(marker, item):
                sweep = item.nodeid.partition("[")[0], str(marker.kwargs)
                sweeps[sweep].append(item)
                (shares[sweep],) = marker.args
    for sweep, found in sweeps.items():
        inside = kept(indices([_call(item).params for item in found]), shares[sweep])
        for place, item in enumerate(found):
            if place not in inside:
                item.add_marker(pytest.mark.exhaustive)


def of_part(items: Sequence[pytest.Item], part: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What is run where the exhaustive tests are divided, and the exhaustive tests of the other parts.

    Args:
        items: All tests.
        part: Such as `1/2`; a test is of the same part wherever it runs.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise pytest.UsageError(f"SECL_PART: a part such as 1/2; got {part}")
    run: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        place = int.from_bytes(hashlib.sha256(item.nodeid.encode()).digest()[:8]) % parts
        outside = item.get_closest_marker("exhaustive") is not None and place != number - 1
        (left if outside else run).append(item)
    return run, left
