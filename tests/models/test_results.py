# SPDX-License-Identifier: Apache-2.0
"""What README and report say was measured is what the committed CSV files hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from secl_models.study.rows import BASELINE, STEPS, TIME
from tests.conftest import REPOSITORY
from tests.models.results import OURS, RESULTS, SETTINGS, TABLES, cases, difference, fastest, interval, signed

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")


def _means(method: str, other: str, budget: str = STEPS) -> list[str]:
    return [signed(difference(place, method, other, budget).mean).removeprefix("+") for place in SETTINGS.values()]


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_the_report_shows_the_committed_rows(make: Callable[[], str]) -> None:
    assert make() in REPORT


def test_the_readme_tells_the_truth_about_contrast_in_its_third_line() -> None:
    """The gain over labels-only, then whose it is: nobody has to scroll for the second."""
    what, gain, truth = [line for line in README.splitlines()[1:] if line][:3]
    assert "contrastive" in what
    (one, three, four), (one_time, three_time, four_time) = (
        _means("secl+", BASELINE, spent) for spent in (STEPS, TIME)
    )
    assert f"{one} Dice points at equal steps and {one_time} at equal time" in gain
    assert f"by {three} and {three_time} with three, and by {four} and {four_time} with four cases" in gain
    assert "the mixing's, not the contrast's" in truth
    added = [interval(difference(place, "secl+", "copy-paste")).partition(" [")[0] for place in SETTINGS.values()]
    assert "{}, {} and {} points".format(*added) in truth
    assert "gains {}, {} and {} at equal steps".format(*_means("secl", BASELINE)) in truth


def test_the_report_s_answer_is_that_of_its_tables() -> None:
    answer = " ".join(REPORT.partition("**Answer.**")[2].partition("###")[0].split())
    steps, time = _means("secl+", BASELINE), _means("secl+", BASELINE, TIME)
    assert f"gains {steps[0]} Dice points" in answer
    assert f"at equal steps and {time[0]} at equal time;" in answer
    assert f"{steps[1]} and {time[1]} with three; {steps[2]} and {time[2]} with four" in answer
    assert "gains {}, {} and {} points".format(*_means("secl", BASELINE)) in answer


def test_the_intervals_that_leave_zero_out_are_those_that_the_report_names() -> None:
    found = {
        (method, budget, name)
        for name, place in SETTINGS.items()
        for method, other, budget in (
            ("secl+", BASELINE, STEPS), ("secl+", BASELINE, TIME), ("copy-paste", BASELINE, STEPS),
            ("secl+", "copy-paste", STEPS), ("secl", BASELINE, STEPS), ("secl", "mean-teacher", STEPS),
        )
        for low, high in [re.findall(r"[-+]?\d+\.\d", interval(difference(place, method, other, budget)))[2:]]
        if float(low) > 0 or float(high) < 0
    }  # fmt: skip
    one, three = list(SETTINGS)[:2]
    assert found == {
        ("secl+", STEPS, one), ("secl+", TIME, one), ("copy-paste", STEPS, one), ("copy-paste", STEPS, three),
    }  # fmt: skip
    assert (
        "Only the gains of `secl+` and `copy-paste` with one patient, and at equal steps that of `copy-paste`" in REPORT
    )


def test_the_sizes_at_which_rivals_are_faster_are_named() -> None:
    slower, eager = [], []
    for name, rows in cases("cases.csv").items():
        times = {row["contender"]: float(row["p50_ms"]) for row in rows if row["p50_ms"]}
        if OURS not in times:
            continue
        if float(fastest(rows, OURS)["p50_ms"]) < times[OURS]:
            slower.append((name, fastest(rows, OURS)["contender"], int(rows[0]["rows"])))
        if times["eager torch"] < times[OURS]:
            eager.append(name)
    assert {rival for _, rival, _ in slower} == {"torch.compile"}
    assert len(slower) == 5
    assert max(rows for *_, rows in slower) < 500
    assert eager == ["chaitanya-local", "u2pl"]
    assert "at the five sizes of at most a few hundred rows, and than eager torch at two" in REPORT
    assert "(chaitanya-local and u2pl)" in REPORT


@pytest.mark.parametrize("file", sorted([*RESULTS.rglob("*.csv"), *RESULTS.rglob("*.png")]), ids=lambda file: file.name)
def test_every_committed_result_is_in_the_report(file: Path) -> None:
    name = file.relative_to(RESULTS).as_posix()
    assert (f"| `{name}` |" if file.suffix == ".csv" else f"]({name})") in REPORT
