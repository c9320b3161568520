# SPDX-License-Identifier: Apache-2.0
"""What of a sweep runs in every test run: a share, and each value of each parameter in it."""

from __future__ import annotations

import itertools
from unittest.mock import Mock

import pytest

from tests.conftest import REPOSITORY
from tests.sweeps import kept, of_part

pytest_plugins = ["pytester"]

SWEPT = """
import pytest

@pytest.mark.thinned(4, backend="slow")
@pytest.mark.parametrize("backend", ["quick", "slow"])
@pytest.mark.parametrize("size", range(6))
@pytest.mark.parametrize("side", "ab")
def test_thinned(backend, size, side): ...

@pytest.mark.deferred(backend="slow", side="a")
@pytest.mark.parametrize("backend", ["quick", "slow"])
@pytest.mark.parametrize("side", "ab")
def test_deferred(backend, side): ...
"""


@pytest.mark.parametrize("share", [2, 3, 4, 7])
def test_a_share_holds_each_value_of_each_parameter(share: int) -> None:
    product = [dict(zip("abc", found, strict=True)) for found in itertools.product(range(5), range(2), range(3))]
    places = kept(product, share)
    assert {value for place in places for value in product[place].items()} == {
        value for found in product for value in found.items()
    }
    assert len(places) <= 30 // share + 5


def test_the_rest_of_a_sweep_is_exhaustive(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    pytester.makeconftest(
        "from tests.sweeps import thin\n\ndef pytest_collection_modifyitems(items):\n    thin(items)\n"
    )
    pytester.makeini("[pytest]\nmarkers =\n    exhaustive\n    thinned\n    deferred\n")
    pytester.makepyfile(SWEPT)
    share = pytester.runpytest_subprocess("-q", "-m", "not exhaustive", "-p", "no:cacheprovider")
    share.assert_outcomes(passed=12 + 6 + 3, deselected=6 + 1)
    rest = pytester.runpytest_subprocess("-q", "-m", "exhaustive", "-p", "no:cacheprovider")
    rest.assert_outcomes(passed=6 + 1, deselected=12 + 6 + 3)


def _item(name: str, *marks: str) -> pytest.Item:
    found = Mock(pytest.Item, nodeid=name)
    found.get_closest_marker.side_effect = lambda mark: mark if mark in marks else None
    return found


def test_parts_hold_each_exhaustive_test_once_and_all_the_others() -> None:
    rest = [_item(f"test_a.py::test[{number}]", "exhaustive") for number in range(40)]
    always = [_item(f"test_b.py::test[{number}]") for number in range(5)]
    parts = [of_part([*rest, *always], f"{number}/3") for number in (1, 2, 3)]
    for run, left in parts:
        assert len(run) + len(left) == 45
        assert run[-5:] == always
        assert 5 < len(run) - 5 < 25
    assert sorted(item.nodeid for run, _ in parts for item in run[:-5]) == sorted(item.nodeid for item in rest)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(pytest.UsageError, match="SECL_PART: a part such as 1/2; got"):
        of_part([], part)
