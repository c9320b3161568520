# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what is paired with what, how sure a difference is, and what is said of the rest."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.data import files
from secl_models.data.cases import DataSet
from secl_models.inference.evaluations import Evaluation
from secl_models.inference.metrics import CaseScores, StructureScore
from secl_models.options.errors import InputError
from secl_models.report.comparison import write_comparison
from secl_models.report.extremes import extreme_cases
from secl_models.report.groups import group_runs, read_members
from secl_models.report.pairing import Scored, Side, pair, pair_all
from secl_models.report.runs import read_run
from secl_models.report.spread import LEAST, Spread, bootstrap
from tests.budget import rounding_band
from tests.models.written_runs import Scores, write_run

PATIENTS = 8


def _drawn(seed: int, cases: int = 1, gain: float = 0.0) -> Scores:
    rng = np.random.default_rng(seed)
    return {
        (f"p{patient}", f"p{patient}_{case}"): tuple(np.clip(rng.normal(0.6 + gain, 0.1, 2), 0.01, 0.99))
        for patient in range(PATIENTS)
        for case in range(cases)
    }


def _sides(*folders: Path) -> list[Side]:
    return [group.side() for group in group_runs(read_members(folders, "test", "last"))]


def _column(scores: Scores, place: int) -> list[float]:
    return [100 * float(dice[place] or 0) for dice in scores.values()]


def _assert_near(found: Sequence[float] | None, truth: Sequence[float]) -> None:
    assert found is not None
    band = rounding_band(torch.float64, max(map(abs, truth)), 1.0, magnitude=100.0 * PATIENTS)
    assert max(abs(one - other) for one, other in zip(found, truth, strict=True)) <= band


def test_the_interval_is_that_of_the_paired_t_test(tmp_path: Path) -> None:
    ours, theirs = _drawn(1, gain=0.05), _drawn(2)
    found = pair(*_sides(write_run(tmp_path / "a", scores=ours), write_run(tmp_path / "b", "secl+", scores=theirs)))
    for place, structure in enumerate(("ring", "core")):
        truth = stats.ttest_rel(_column(ours, place), _column(theirs, place)).confidence_interval()
        difference = found.of("dice", structure)
        assert difference is not None
        _assert_near(difference.patients.interval(), truth)
    means = [np.mean([_column(scores, place) for place in (0, 1)], axis=0) for scores in (ours, theirs)]
    overall = found.of("dice")
    assert overall is not None
    _assert_near(overall.patients.interval(), stats.ttest_rel(*means).confidence_interval())


def test_cases_of_one_patient_are_no_patients_of_their_own(tmp_path: Path) -> None:
    """Ten equal cases of each patient say as much as one."""
    once = [_drawn(seed) for seed in (1, 2)]
    often = [{(p, f"{c}_{n}"): dice for (p, c), dice in scores.items() for n in range(10)} for scores in once]
    found = []
    for name, pairs in (("once", once), ("often", often)):
        folders = [
            write_run(tmp_path / name / method, method, scores=scores)
            for method, scores in zip(("supervised", "secl+"), pairs, strict=True)
        ]
        found.append(pair(*_sides(*folders)))
    assert [each.cases for each in found] == [PATIENTS, 10 * PATIENTS]
    assert [each.patients for each in found] == [PATIENTS, PATIENTS]
    one, ten = (each.of("dice", "ring") for each in found)
    assert one is not None
    assert ten is not None
    _assert_near(ten.patients.interval(), one.patients.interval() or ())
    _assert_near(ten.resampled, one.resampled or ())


def test_the_bootstrap_repeats_and_needs_some_values() -> None:
    values = list(np.random.default_rng(0).normal(1.0, 1.0, 30))
    low, high = bootstrap(values) or (0.0, 0.0)
    assert bootstrap(values) == (low, high)
    assert low < float(np.mean(values)) < high
    student = Spread.of(values)
    assert student is not None
    a, b = student.interval() or (0.0, 0.0)
    assert 0.7 < (high - low) / (b - a) < 1.1
    assert bootstrap([1.0] * (LEAST - 1)) is None
    assert bootstrap([2.5] * 5) == (2.5, 2.5)
    next_to_it = math.nextafter(50.0, 51.0)
    for equal in ([50.0, 50.0, 50.0, 50.0, next_to_it], [next_to_it, *[50.0] * 30], [-50.0] * 4 + [-next_to_it]):
        assert bootstrap(equal) == (min(equal), max(equal))
    assert Spread(1.0, None, 1).interval() is None
    assert Spread(1.0, 0.0, 4).interval() == (1.0, 1.0)


def test_seeds_of_one_method_are_one_group_and_paired_by_seed(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{method}-{seed}", method, seed, _drawn(10 * seed, gain=gain + 0.01 * seed * gain))
        for method, gain in (("secl+", 0.1), ("supervised", 0.0))
        for seed in (0, 1, 2)
    ]
    groups = _sides(*folders)
    assert [group.title for group in groups] == ["supervised", "secl+"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1, 2]] * 2
    (found,) = pair_all(groups)
    assert (found.first.title, found.second.title, found.seeds) == ("secl+", "supervised", (0, 1, 2))
    difference = found.of("dice", "ring")
    assert difference is not None
    assert difference.seeds is not None
    assert difference.seeds.count == 3
    _assert_near([difference.seeds.mean], [difference.patients.mean])


def test_a_seed_that_only_one_has_is_left_out(tmp_path: Path) -> None:
    same = _drawn(0)
    worse = dict.fromkeys(same, (0.1, 0.1))
    folders = [
        write_run(tmp_path / "a0", seed=0, scores=same), write_run(tmp_path / "a1", seed=1, scores=worse),
        write_run(tmp_path / "b0", "secl+", 0, same),
    ]  # fmt: skip
    found = pair(*_sides(*folders))
    difference = found.of("dice")
    assert difference is not None
    assert (found.seeds, difference.patients.mean, difference.seeds) == ((0,), 0.0, None)


def test_options_tell_methods_apart_but_not_what_is_read_off_the_labelled_cases(tmp_path: Path) -> None:
    def titles(*runs: tuple[str, int, Sequence[str]]) -> list[str]:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return [
            group.title
            for group in _sides(
                *(write_run(place / name, "secl+", seed, options=options) for name, seed, options in runs)
            )
        ]

    assert titles(("a", 0, ["data.spacing=[1,1]"]), ("b", 1, ["data.spacing=[1,2]"])) == ["secl+"]
    assert titles(("a", 0, ["data.spacing=[1,1]"]), ("b", 0, ["data.spacing=[1,2]"])) == [
        "secl+, data.spacing=[1.0, 1.0]", "secl+, data.spacing=[1.0, 2.0]",
    ]  # fmt: skip
    assert titles(("a", 0, ["labeled=2"]), ("b", 0, ["labeled=3", "train.lr=0.5"]), ("c", 0, ["train.device=cpu"])) == [
        "secl+, 2 labelled, train.lr=0.005", "secl+, 3 labelled, train.lr=0.5", "secl+, 3 labelled, train.lr=0.005",
    ]  # fmt: skip


def test_other_cases_are_left_out_and_counted(tmp_path: Path) -> None:
    ours, theirs = dict(_drawn(1)), dict(_drawn(2))
    ours.pop(("p0", "p0_0"))
    theirs.pop(("p1", "p1_0"))
    theirs.pop(("p2", "p2_0"))
    page = tmp_path / "page.html"
    folders = [write_run(tmp_path / "a", scores=ours), write_run(tmp_path / "b", "secl+", scores=theirs)]
    found = pair(*_sides(*folders))
    assert (found.cases, found.alone) == (PATIENTS - 3, (2, 1))
    write_comparison(folders, page)
    assert (
        f"Paired on {PATIENTS - 3} cases of {PATIENTS - 3} patients. Left out: 1 case of the first alone, 2 cases of "
        "the second. Seed 0, which both have." in page.read_text()
    )


def test_what_one_invented_is_in_no_pair_and_said(tmp_path: Path) -> None:
    ours, theirs = dict(_drawn(1)), dict(_drawn(2))
    ours["p0", "p0_0"], theirs["p0", "p0_0"] = (0.5, None), (0.5, 0.0)
    folders = [write_run(tmp_path / "a", scores=ours), write_run(tmp_path / "b", "secl+", scores=theirs)]
    found = pair(*_sides(*folders))
    ring, core = (found.of("dice", name) for name in ("ring", "core"))
    assert ring is not None
    assert core is not None
    assert (ring.patients.count, core.patients.count, found.unmatched) == (PATIENTS, PATIENTS - 1, 1)
    write_comparison(folders, tmp_path / "page.html")
    assert "1 score in no pair: invented by one, rightly absent in the other." in (tmp_path / "page.html").read_text()


def test_what_cannot_be_paired_is_listed_and_said(tmp_path: Path) -> None:
    elsewhere = {("q", "q_0"): (0.5, 0.5)}
    folders = [
        write_run(tmp_path / "a", scores=_drawn(1)),
        write_run(tmp_path / "b", "mean-teacher"),
        write_run(tmp_path / "c", "secl", scores=_drawn(2), data="livers"),
        write_run(tmp_path / "d", "secl+", scores=elsewhere),
        write_run(tmp_path / "e", "copy-paste", steps=10, finished=False),
    ]
    page = tmp_path / "page.html"
    write_comparison(folders, page)
    text = re.sub(r"\s+", " ", page.read_text())
    for sentence in (
        "mean-teacher on hearts minus supervised on hearts: mean-teacher on hearts was not evaluated.",
        "secl on livers minus supervised on hearts: they are of different data sets, livers and hearts.",
        "secl+ on hearts minus supervised on hearts: they were scored on no case in common.",
        "stopped at 10 of 20 steps; not evaluated",
        "5 runs on 2 data sets",
    ):
        assert sentence in text
    assert all(f">{name}<" in text for name in "abcd")


def test_a_distance_in_another_unit_is_not_compared(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", scores=_drawn(1)), write_run(tmp_path / "b", "secl+", scores=_drawn(2), unit="voxel")
    ]  # fmt: skip
    found = pair(*_sides(*folders))
    assert found.of("dice") is not None
    assert found.of("hd95") is None
    write_comparison(folders, tmp_path / "page.html")


def test_a_run_that_does_not_know_its_data_has_that_of_the_same_cases(tmp_path: Path) -> None:
    scores = _drawn(1)
    write_run(tmp_path / "a", scores=scores)
    write_run(tmp_path / "b", "secl+", scores=scores, finished=False)
    assert [member.data for member in read_members([tmp_path / "a", tmp_path / "b"], "test", "last")] == ["hearts"] * 2


def test_what_has_no_scores_is_told_and_another_checkpoint_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [write_run(tmp_path / "a", scores=_drawn(1)), write_run(tmp_path / "b", "secl+")]
    write_comparison(folders, tmp_path / "page.html")
    assert caplog.messages == ["Without scores on test, and listed only: b. `secl evaluate` makes them."]
    with pytest.raises(InputError, match="--checkpoint: one of last, best, last-largest, best-largest; got newest"):
        write_comparison(folders, tmp_path / "page.html", checkpoint="newest")


def test_scores_of_a_run_that_went_on_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_run(tmp_path / "a", scores=_drawn(1), steps=20)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "steps": 60}))
    assert read_run(folder, "test").evaluation is None
    told = "the scores of last are of step 20, and the run is at step 60: they are left out"
    assert told in caplog.messages[0]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert read_run(folder, "test").evaluation is not None


def test_what_training_settled_is_in_a_title_only_where_nothing_else_tells(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", seed=0, scores=_drawn(1), options=["data.window=[-100.0,100.0]"]),
        write_run(tmp_path / "b", seed=0, scores=_drawn(2), options=["data.window=[-90.0,90.0]", "train.lr=0.5"]),
    ]
    assert [group.title for group in group_runs(read_members(folders, "test", "last"))] == [
        "supervised, train.lr=0.005",
        "supervised, train.lr=0.5",
    ]


def test_a_contrast_that_suits_its_method_is_in_no_title(tmp_path: Path) -> None:
    settled = {"supervised": ("auto", "null"), "secl": ("uniform", "0.02"), "secl+": ("hard", "0.1")}
    folders = [
        write_run(tmp_path / name, name, options=[f"contrast.strategy={strategy}", f"contrast.weight={weight}"])
        for name, (strategy, weight) in settled.items()
    ]
    assert [group.title for group in group_runs(read_members(folders, "test", "last"))] == [*settled]
    folders.append(write_run(tmp_path / "other", "secl+", options=["contrast.strategy=uniform", "contrast.weight=0.1"]))
    folders.append(write_run(tmp_path / "unheard", options=["contrast.strategy=hard", "contrast.weight=0.1"], seed=1))
    titles = [group.title for group in group_runs(read_members(folders, "test", "last"))]
    assert titles == ["supervised", "secl", "secl+", "secl+, contrast.strategy=uniform"]


def test_pictures_need_the_data_of_runs_that_have_scores(tmp_path: Path) -> None:
    livers = DataSet(tmp_path / "livers", "decathlon", {1: "ring", 2: "core"}, ("CT",), ())
    with pytest.raises(InputError) as refusal:
        write_comparison([write_run(tmp_path / "a", scores=_drawn(1))], tmp_path / "page.html", data=livers)
    assert str(refusal.value) == (
        "--data: the data set of runs that have scores: hearts; got livers. Cure: name the folder that they were "
        "trained on."
    )
    assert not (tmp_path / "page.html").exists()


def test_of_two_cases_none_is_shown_twice() -> None:
    tables = {
        count: extreme_cases([Side("a", "d", (Scored(0, Evaluation("last", "test", _few(count), 0.0)),))])
        for count in (1, 2, 3)
    }
    ranks = {count: [row["rank"] for row in table["rows"]] for count, (table,) in tables.items()}
    assert ranks == {1: ["Worst"], 2: ["Worst", "Best"], 3: ["Worst", "Median", "Best"]}


def _few(count: int) -> tuple[CaseScores, ...]:
    scores = [StructureScore("ring", 0.1 + 0.1 * place, 1.0, 1.0, "mm", "both") for place in range(count)]
    return tuple(CaseScores(f"p{place}", f"c{place}", (score,)) for place, score in enumerate(scores))


def test_a_folder_named_twice_counts_once_and_names_tell_folders_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "run", seed=seed) for seed, part in enumerate(("x", "y"))]
    members = read_members([*folders, tmp_path / "x" / ".." / "x" / "run"], "test", "last")
    assert [member.name for member in members] == ["x/run", "y/run"]


def test_the_tables_hold_the_numbers_of_the_page(tmp_path: Path) -> None:
    ours, theirs = _drawn(1), _drawn(2)
    folders = [write_run(tmp_path / "a", scores=ours), write_run(tmp_path / "b", "secl+", scores=theirs)]
    written = write_comparison(folders, tmp_path / "page.html", csv=tmp_path / "table.csv")
    assert [file.name for file in written] == ["page.html", "table.csv", "table_pairs.csv"]
    scores, pairs = (list(csv.DictReader(file.read_text().splitlines())) for file in written[1:])
    assert [(row["run"], row["structure"]) for row in scores] == [
        (run, name) for run in "ab" for name in ("ring", "core", "mean")
    ]
    _assert_near([float(scores[0]["dice"])], [float(np.mean(_column(ours, 0)))])
    (ring,) = (row for row in pairs if (row["structure"], row["measure"]) == ("ring", "dice"))
    truth = np.mean(_column(theirs, 0)) - np.mean(_column(ours, 0))
    _assert_near([float(ring["difference"])], [float(truth)])
    assert f"{truth:+.1f}" in written[0].read_text()


def test_the_worst_and_the_best_case_are_named(tmp_path: Path) -> None:
    scores = {**_drawn(1), ("bad", "bad_0"): (0.01, 0.01), ("good", "good_0"): (0.99, 0.99)}
    write_comparison([write_run(tmp_path / "a", scores=scores)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Worst: bad_0" in text
    assert "Best: good_0" in text
    assert "there is nothing to compare it with" in text


@pytest.mark.parametrize("kind", ["nothing there", "a file", "a folder without config.yaml"])
def test_what_is_no_run_is_refused(kind: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    if kind == "a file":
        bad.write_text("x")
    elif kind.startswith("a folder"):
        bad.mkdir()
    with pytest.raises(InputError) as refusal:
        write_comparison([write_run(tmp_path / "a"), bad], tmp_path / "page.html")
    assert str(refusal.value) == (f"{bad}: a run folder; got {kind}. Cure: name folders that `secl train --out` wrote.")
    assert not (tmp_path / "page.html").exists()


def test_only_an_earlier_comparison_is_replaced(tmp_path: Path) -> None:
    run, page = write_run(tmp_path / "a", scores=_drawn(1)), tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(InputError, match=r"only files on the folder's own list are replaced.*page\.html"):
        write_comparison([run], page)
    assert page.read_text() == "mine"
    page.unlink()
    write_comparison([run], page)
    write_comparison([run], page, csv=tmp_path / "t.csv")
    with pytest.raises(InputError, match="a file to write; got a folder"):
        write_comparison([run], tmp_path / "a")


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, page = write_run(tmp_path / "a", scores=_drawn(1)), tmp_path / "page.html"
    other = write_run(tmp_path / "b", "secl+")
    write_comparison([run], page)
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="compare the runs again"):
        write_comparison([run, other], page)
    assert page.read_bytes() == before
    assert list(tmp_path.glob(f".{files.UNFINISHED}")) == []


def test_the_command_compares_and_refuses(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", scores=_drawn(1)), write_run(tmp_path / "b", "secl+", scores=_drawn(2))
    ]  # fmt: skip
    page = tmp_path / "page.html"
    found = CliRunner().invoke(cli.app, ["report", *map(str, folders), "--out", str(page)])
    assert found.exit_code == 0, found.output
    assert f"Wrote {page}" in found.stdout.replace("\n", "")
    assert "secl+ minus supervised" in page.read_text()
    refused = CliRunner().invoke(cli.app, ["report", str(tmp_path / "none"), "--out", str(page), "--split", "train"])
    assert refused.exit_code == 2
    assert "--split: test or val; got train" in refused.stderr
