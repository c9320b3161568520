# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study show the numbers of its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Patch, Rectangle

from secl_models.inference.evaluate import evaluate
from secl_models.options.errors import InputError
from secl_models.study import pictures as study_pictures
from secl_models.study.cases import draw_cases
from secl_models.study.pictures import accuracy_figure, draw_study, gain_figure, pseudo_label_figure
from secl_models.study.rows import Point, Row
from tests.models.runs import tiny_run

KEY = ("heart", 3)


def make_row(method: str, seed: int, dice: float, budget: str = "steps") -> Row:
    return Row(
        *KEY, method, budget, seed, 100, 60.0, 60.0, "last", dice, 2.0, 1.0, 900.0, "cpu", "abc", f"RV={dice}", "p"
    )


def make_points(method: str, seed: int, dice: float, budget: str = "steps") -> list[Point]:
    return [
        Point(*KEY, method, budget, seed, "p", step, 0.6 * step, 0.6 * step, reached, "RV=90", f"RV={dice}", "abc")
        for step, reached in ((50, dice - 2.5), (100, dice))
    ]


ROWS = [
    *(make_row("supervised", seed, 60.0 + seed) for seed in (0, 1)),
    *(make_row("supervised", seed, 61.0 + seed, "time") for seed in (0, 1)),
    *(make_row("secl+", seed, 64.0 + 2 * seed) for seed in (0, 1)),
]


def widths(bars: Iterable[Patch]) -> list[float]:
    return [bar.get_width() for bar in bars if isinstance(bar, Rectangle)]


def test_the_gain_is_a_dot_per_seed_and_a_bar_for_the_mean() -> None:
    figure = gain_figure(ROWS)
    assert figure is not None
    steps, time = figure.axes
    assert widths(steps.patches) == [4.5]
    assert widths(time.patches) == [3.5]
    assert np.asarray(steps.collections[0].get_offsets())[:, 0].tolist() == [4.0, 5.0]
    assert np.asarray(time.collections[0].get_offsets())[:, 0].tolist() == [3.0, 4.0]
    assert "+4.5" in [text.get_text() for text in steps.texts]
    assert gain_figure([row for row in ROWS if row.method == "supervised"]) is None


def test_accuracy_is_the_mean_over_seeds_against_minutes() -> None:
    points = [
        *make_points("supervised", 0, 60.0), *make_points("supervised", 1, 62.0),
        *make_points("supervised", 0, 63.0, "time"), *make_points("secl+", 0, 65.0),
    ]  # fmt: skip
    (axes,) = accuracy_figure(points).axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert lines.keys() == {"labels only", "labels only, equal time", "secl+"}
    assert lines["labels only"].tolist() == [[0.5, 58.5], [1.0, 61.0]]
    slowed = [replace(point, seconds=2 * point.seconds) for point in points]  # by other programs
    for one_thread, minutes in ((True, [0.5, 1.0]), (False, [1.0, 2.0])):
        (axes,) = accuracy_figure(slowed, one_thread=one_thread).axes
        assert np.asarray(axes.lines[0].get_xdata()).tolist() == minutes
        assert ("one thread" in axes.get_xlabel()) == one_thread


def test_the_clock_counts_where_a_run_had_more_than_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def draw(points: object, one_thread: bool) -> Figure:
        asked.append(one_thread)
        return Figure()

    monkeypatch.setattr(study_pictures, "accuracy_figure", draw)
    for machine in ("AMD EPYC, 1 thread", "AMD EPYC, 1 threads", "AMD EPYC, 11 threads", "NVIDIA H200"):
        draw_study([replace(row, machine=machine) for row in ROWS], make_points("secl+", 0, 60.0), tmp_path)
    assert asked == [True, True, False, False]


def test_a_panel_without_a_data_set_is_hidden() -> None:
    point = make_points("secl", 0, 60.0)[0]
    figure = accuracy_figure([replace(point, data=name) for name in ("heart", "liver", "brain")])
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]


def test_pseudo_labels_have_purity_and_coverage_of_every_structure() -> None:
    figure = pseudo_label_figure([*make_points("secl+", 0, 60.0), *make_points("secl+", 1, 70.0)])
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 1
    purity, coverage = (np.asarray(line.get_ydata()).tolist() for line in shown[0].lines)
    assert (purity, coverage) == ([65.0, 65.0], [90.0, 90.0])


def test_every_method_that_has_pseudo_labels_gets_a_panel() -> None:
    methods = ("supervised", "mean-teacher", "copy-paste", "secl", "secl+")
    points = [point for method in methods for point in make_points(method, 0, 60.0)]
    figure = pseudo_label_figure([*points, *make_points("supervised", 0, 60.0, "time")])
    assert figure is not None
    shown = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert shown == [f"heart, 3 labelled:\n{name}" for name in ("labels only", *methods[1:])]
    assert pseudo_label_figure([replace(point, purity="", coverage="") for point in points]) is None


def test_a_budget_that_has_not_run_says_so() -> None:
    figure = gain_figure([row for row in ROWS if row.budget == "steps"])
    assert figure is not None
    told = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert told == [["+4.5"], ["not run yet"]]


def test_files_are_pictures_and_options_tell_two_studies_of_one_data_set_apart(tmp_path: Path) -> None:
    others = [replace(row, options="q") for row in ROWS]
    written = draw_study([*ROWS, *others], make_points("secl+", 0, 60.0), tmp_path / "new")
    assert [file.name for file in written] == ["gain.png", "accuracy.png", "pseudo_labels.png"]
    assert all(np.ptp(imread(file)) > 0 for file in written)
    figure = gain_figure([*ROWS, *others])
    assert figure is not None
    assert {axes.get_title(loc="left") for axes in figure.axes} >= {
        "heart, 3 labelled, p: equal steps", "heart, 3 labelled, q: equal steps",
    }  # fmt: skip
    assert [file.name for file in draw_study(ROWS, [], tmp_path)] == ["gain.png"]


def test_cases_stand_side_by_side(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = tiny_run(tmp_path_factory)
    evaluate(run.folder, run.data, progress=False)
    written = draw_cases([run.folder, run.folder], run.data, tmp_path)
    assert [file.name for file in written] == ["overlays.png", "plane.png"]
    assert all(np.ptp(imread(file)) > 0 for file in written)
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    for file in other.glob("evaluation_test*"):
        if file.suffix == ".csv":
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if line.split(",")[:2] != lines[1].split(",")[:2]))
        else:
            file.unlink()
    with pytest.raises(InputError, match=r"a run evaluated on the cases of .*; got 1 cases that only one of them has"):
        draw_cases([other, run.folder], run.data, tmp_path)
    with pytest.raises(InputError, match="a finished run that was evaluated on test"):
        draw_cases([tmp_path / "none"], run.data, tmp_path)
