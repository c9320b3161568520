# SPDX-License-Identifier: Apache-2.0
"""What README and report say was measured is what the committed CSV files hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from secl_models.inference.suggest import DOUBT, TYPICAL
from secl_models.options.methods import BASELINE
from secl_models.report.spread import Spread
from secl_models.study.labelling_rows import read_labelling
from secl_models.study.labelling_table import compare
from secl_models.study.rows import STEPS, TIME, read_rows
from secl_models.study.table import paired
from tests.conftest import REPOSITORY
from tests.models.committed import RESULTS, interval, signed, table
from tests.models.long_study import differences, wanted
from tests.models.long_study_goal import gained
from tests.models.long_study_picture import ingredients_figure
from tests.models.results import (
    SETTINGS,
    TABLES,
    _time,
    difference,
    standings,
)

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")


def _means(method: str, other: str, budget: str = STEPS, checkpoint: str = "last") -> list[str]:
    found = [difference(place, method, other, budget, checkpoint) for place in SETTINGS.values()]
    return [signed(spread.mean).removeprefix("+") for spread in found]


def _deciding() -> list[dict[str, Spread]]:
    """What each ingredient gives on ACDC with three patients and on the hippocampus."""
    found = gained()
    return [found["acdc", 3], found["hippocampus", 4]]


def _of_both(ingredient: str) -> list[str]:
    """Such as `+1.1 ± 0.5 [+0.2, +1.9]`, of ACDC with three patients and of the hippocampus."""
    return [interval(found[ingredient]) for found in _deciding()]


def _together() -> list[list[str]]:
    """Points of mixing and contrast over labels only, at equal steps and at equal time, of each data set."""
    return [
        [signed(found[f"both, equal {spent}"].mean).removeprefix("+") for spent in ("steps", "time")]
        for found in _deciding()
    ]


def _words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_the_report_shows_the_committed_rows(make: Callable[[], str]) -> None:
    assert make() in REPORT


def test_the_pairs_that_one_point_takes() -> None:
    assert [wanted(deviation) for deviation in (0.2, 1.0, 1.5, 3.0)] == [8, 10, 20, 24]


def test_the_picture_of_the_long_study_has_a_dot_for_every_seed() -> None:
    found = differences()
    figure = ingredients_figure(found)
    dots = [float(x) for axes in figure.axes for drawn in axes.collections for x, _ in np.asarray(drawn.get_offsets())]
    assert sorted(dots) == pytest.approx(sorted(value for each in found for value in each.values))
    shown = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert shown == list(dict.fromkeys(f"{each.data}, {each.labeled} labelled" for each in found))
    for axes in figure.axes:  # no seed lies outside
        low, high = axes.get_xlim()
        assert all(low < x < high for drawn in axes.collections for x, _ in np.asarray(drawn.get_offsets()))


def test_a_time_that_was_taken_beside_others_says_so() -> None:
    row = {"p50_ms": "2", "p20_ms": "1", "p80_ms": "3", "rounds": "5", "note": ""}
    busy = row | {"note": "BUSY: others kept 0.90 cores busy"}
    assert [_time(row), _time(busy), _time(busy | {"rounds": "1"})] == [
        "2 (1 - 3)",
        "2 (1 - 3, BUSY)",
        "2 (one round, BUSY)",
    ]


def test_the_readme_tells_the_truth_about_contrast_in_its_third_line() -> None:
    """The gain over labels-only, then whose it is: nobody has to scroll for the second."""
    what, gain, truth = [line for line in README.splitlines()[1:] if line][:3]
    assert "contrastive" in what
    (steps, time), (other_steps, other_time) = _together()
    best = gained()["acdc", 3]["both, labels in patches"].text()
    assert f"by {steps} Dice points at equal steps and {time} at equal time with three labelled patients" in gain
    assert f"({best} where labels alone do best), and by {other_steps} and {other_time} with four cases" in gain
    assert "Most of that is the mixing's" in truth
    assert "contrast adds {} and {} points".format(*_of_both("contrast on top of mixing")) in truth
    assert "it gives {} and {} over a mean teacher".format(*_of_both("contrast without mixing")) in truth


def test_the_report_s_answer_is_that_of_its_tables() -> None:
    answer = _words(REPORT.partition("**Answer.**")[2].partition("###")[0])
    on_acdc, on_hippocampus = _of_both("contrast on top of mixing")
    assert f"adds {on_acdc} Dice points on ACDC and {on_hippocampus} on the hippocampus" in answer
    assert "gives {} and {} over a mean teacher".format(*_of_both("contrast without mixing")) in answer
    mixing = [each["mixing, equal steps"].text(sign=True) for each in _deciding()]
    assert "Mixing gives most: {} and {} over labels only".format(*mixing) in answer
    (steps, time), (other_steps, other_time) = _together()
    assert f"give +{steps} and +{other_steps} at equal steps, +{time} and +{other_time} at equal time" in answer
    for labeled, whom in ((1, "one patient"), (7, "seven")):
        found = gained()["acdc", labeled]
        both = [interval(found[f"contrast {where}"]) for where in ("on top of mixing", "without mixing")]
        assert "{}, {} on top of mixing and {} without it".format(whom, *both) in answer
    worst = min(value for each in differences() if each.labeled == 1 and "on top" in each.name for value in each.values)
    assert f"one seed of it loses {-worst:.1f} points" in answer


def test_what_the_change_at_padding_gave_is_what_its_rows_say() -> None:
    rows = [row for row in read_rows(RESULTS / "study_padding.csv") if row.checkpoint == "last"]
    gave = []
    for method in ("copy-paste", "secl+"):
        before, after = (
            [row for row in rows if (row.method, row.commit) == (method, commit)]
            for commit in ("19b0a641fca4", "976d6bf9ca34")
        )
        found = paired(after, before)
        assert found is not None
        gave.append(interval(found))
    assert "gave `copy-paste` {} and `secl+` {} Dice points".format(*gave) in _words(REPORT)


def test_the_ingredients_whose_intervals_leave_zero_out_are_those_that_are_said_to() -> None:
    """README and answer call the contrast's gain on top of mixing above zero on both data sets."""
    for found in _deciding():
        low, _ = found["contrast on top of mixing"].interval() or (0.0, 0.0)
        assert low > 0
    without = [found["contrast without mixing"].interval() or (0.0, 0.0) for found in _deciding()]
    assert [low > 0 for low, _ in without] == [False, True]


def test_the_answer_of_the_first_study_is_that_of_its_tables() -> None:
    answer = _words(REPORT.partition("**Its answer.**")[2].partition("###")[0])
    steps, time = _means("secl+", BASELINE), _means("secl+", BASELINE, TIME)
    assert f"gains {steps[0]} Dice points" in answer
    assert f"at equal steps and {time[0]} at equal time;" in answer
    assert f"{steps[1]} and {time[1]} with three; {steps[2]} and {time[2]} with four" in answer
    assert "gains {}, {} and {} points".format(*_means("secl", BASELINE)) in answer


def test_the_best_checkpoints_gain_what_the_report_says() -> None:
    pairs = zip(*(_means("secl+", BASELINE, spent, "best") for spent in (STEPS, TIME)), strict=True)
    assert "`secl+` gains {} points".format(", ".join(" and ".join(pair) for pair in pairs)) in _words(REPORT)


def test_anchors_at_uncertain_pixels_did_on_validation_what_the_report_says() -> None:
    """The last points of the study's curves are means over its validation patients."""
    steps = [row for row in table("study_curves.csv") if row["budget"] == STEPS]
    last = {(row["data"], int(row["labeled"]), row["method"], row["seed"]): float(row["dice"]) for row in steps}
    said = []
    for place in SETTINGS.values():
        tries = [row for row in table("study_tries.csv") if (row["data"], int(row["labeled"])) == place]
        hard = [
            float(row["val_dice"])
            for row in tries
            if row["options"].endswith("contrast.weight=0.1 contrast.strategy=hard")
        ]
        others = [[dice for (*where, name, _), dice in last.items() if (*where, name) == (*place, method)]
                  for method in ("secl+", "copy-paste")]  # fmt: skip
        assert [len(values) for values in (hard, *others)] == [3, 3, 3]
        said.append("{:.1f}, {:.1f} and {:.1f}".format(*map(fmean, (hard, *others))))
    assert "means of three seeds: {} with one patient; {} with three; {} on".format(*said) in _words(REPORT)


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


def test_the_sizes_that_miss_what_is_wanted_are_named_with_a_reason() -> None:
    missed = {name for name, found in standings().items() if not found.met}
    assert set(re.findall(r"^- \*\*(.+?)\*\*", REPORT.partition("Short of what is wanted")[2], re.MULTILINE)) == missed
    assert all(found.factor > 1 for found in standings().values())
    assert "`secl_ops` is the fastest at every size" in REPORT


@pytest.mark.parametrize("file", sorted([*RESULTS.rglob("*.csv"), *RESULTS.rglob("*.png")]), ids=lambda file: file.name)
def test_every_committed_result_is_in_the_report(file: Path) -> None:
    name = file.relative_to(RESULTS).as_posix()
    assert (f"| `{name}` |" if file.suffix == ".csv" else f"]({name})") in REPORT


def test_the_answer_on_suggested_patients_is_that_of_its_rows() -> None:
    found = {(each.data, each.method, each.way): each for each in compare(read_labelling(RESULTS / "suggest.csv"))}
    of_doubt, of_secl, typical = (
        f"{found['hippocampus', *key].gain.mean:+.1f}"
        for key in (("supervised", DOUBT), ("secl+", DOUBT), ("supervised", TYPICAL))
    )
    answer = _words(REPORT.partition("**Answer.** No gain over patients")[2].partition("```")[0])
    assert (
        f"gave {of_doubt} points with labels only and {of_secl} with `secl+`, the most typical ones {typical}" in answer
    )
    for each in found.values():
        low, high = each.gain.interval() or (0.0, 0.0)
        assert low < 0 < high  # or there is a gain, or a loss, to tell of
    on_acdc = [found["acdc", method, DOUBT].gain for method in ("supervised", "secl+")]
    assert all(gain.count == found["hippocampus", "supervised", DOUBT].gain.count == 8 for gain in on_acdc)
    gains = [f"{gain.mean:+.1f}" for gain in on_acdc]
    assert f"On ACDC those in most doubt gave {gains[0]} with labels only and {gains[1]} with `secl+`" in answer
