# SPDX-License-Identifier: Apache-2.0
"""The whole pixel step, the memory claim, the training step and the figures of the benchmark harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    baseline,
    figures,
    gate,
    limits,
    load,
    memory,
    originals,
    pixel,
    plot,
    provenance,
    published,
    rivals,
    run,
    training,
)
from benchmarks.cases import Answer, Case, Problem
from benchmarks.contenders import BY_ROWS, NATIVE
from benchmarks.pixel import EAGER, LEAN, LOOP, PixelCase, PixelProblem, pixel_contender
from tests.conftest import skip_or_fail

FLAT = PixelCase("flat", "a title", 2, 8, (16, 16), 3, 5)
SOLID = PixelCase("solid", "a title", 2, 8, (6, 5, 8), 2, 4)
ORIGIN = (2, "a machine", "python 3; torch 2.13", "abc", "2026-01-01", "0.00")
GPU = (2, "NVIDIA H200, CUDA 13.0; a machine", "python 3; torch 2.13", "abc", "2026-01-01", "1.50")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "others", lambda _: 0.25)


@pytest.mark.parametrize("case", [FLAT, SOLID], ids=lambda case: case.name)
@pytest.mark.parametrize("name", [NATIVE, EAGER, LEAN, LOOP])
def test_every_pixel_step_is_right_about_its_own_pixels(name: str, case: PixelCase) -> None:
    if name == NATIVE:
        from secl_ops import backends

        if backends()["native"]:
            skip_or_fail("native", "the native backend is not built")
    pixel.agree(case, name, pixel_contender(case, name)())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda answer: answer._replace(loss=answer.loss * 1.001), "loss: error"),
        (lambda answer: answer._replace(gradient=answer.gradient.roll(1, 2)), "gradient of the anchors: error"),
        (lambda answer: answer._replace(label=answer.label.roll(1)), "under another label"),
        (lambda answer: answer._replace(pixel=answer.pixel[:1].expand_as(answer.pixel)), "drawn twice"),
        (lambda answer: answer._replace(pixel=answer.pixel[1:], label=answer.label[1:]), "not 5 pixels of each class"),
    ],
)
def test_a_wrong_pixel_step_is_seen(spoil: Callable[..., pixel.PixelAnswer], message: str) -> None:
    answer = pixel_contender(FLAT, LEAN)()
    with pytest.raises(AssertionError, match=message):
        pixel.agree(FLAT, LEAN, spoil(answer))


def test_a_draw_without_hard_pixels_is_seen() -> None:
    given = FLAT.problem()
    easy = baseline.pick(given.labels.flatten(1), given.labels.flatten(1), FLAT.anchors, FLAT.per_class)
    number = torch.cat([image * 256 + each for image, each in zip(easy.images, easy.pixels, strict=True)])
    answer = pixel_contender(FLAT, LEAN)()
    with pytest.raises(AssertionError, match="half of them hard"):
        pixel.agree(FLAT, LEAN, answer._replace(pixel=number, label=easy.labels))


def test_the_published_loop_takes_equally_many_of_each_class_and_skips_rare_ones() -> None:
    labels = torch.zeros(1, 40, dtype=torch.long)
    labels[0, :3], labels[0, 3:20], labels[0, 20:24] = 1, 2, -1
    draw = baseline.pick(labels, labels, most=10, most_views=4)
    assert draw.labels.tolist() == [0] * 4 + [2] * 4  # class 1 has no more than 4, -1 is ignored, 10 // 2 is above 4
    assert all(len(each.unique()) == 4 for each in draw.pixels)


def test_the_pixel_table_has_every_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: PixelCase, problem: PixelProblem, lean: bool) -> pixel.PixelStep:
        step = true(case, problem, lean)
        return (lambda: step()._replace(loss=torch.ones(()))) if lean else step

    true = pixel._loop
    monkeypatch.setattr(pixel, "_loop", broken)
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    run.run_pixel(run.Options(tmp_path / "pixel.csv", rounds=1, threads=1), cases=[FLAT])
    rows = {row["contender"]: row for row in provenance.read_rows(tmp_path / "pixel.csv")}
    assert tuple(sorted(rows)) == tuple(sorted(pixel.pixel_names(FLAT)))
    assert rows[LEAN]["note"].startswith("wrong: ")
    assert [provenance.fault(row) for row in rows.values()] == [None] * len(rows)
    monkeypatch.setattr(pixel, "_ours", lambda case, problem, backend: true(case, problem, True))
    monkeypatch.setattr(pixel, "_truth", lambda *_: Answer(torch.ones(()), (torch.ones(2, 8, 16, 16),)))
    with pytest.raises(SystemExit, match="nothing was timed"):
        pixel.admit(FLAT)


@pytest.mark.parametrize("budget", [3.0, 100.0, 1e4])
def test_the_search_finds_the_last_size_that_fits(budget: float) -> None:
    tried: list[int] = []

    def measure(rows: int) -> memory.Probe:
        tried.append(rows)
        return memory.Probe(rows**2 / 2**18) if rows < 50_000 else memory.Probe(None, "out of memory")

    search = memory.Search(measure, budget, patience=60)
    found = search.run()
    sizes = [search.size(place) for place in range(memory.LAST + 1)]
    fitting = [rows for rows in sizes if rows**2 / 2**18 <= budget and rows < 50_000]
    assert found.rows == fitting[-1]
    assert found.next_rows == sizes[len(fitting)]
    assert {found.rows, found.next_rows} <= set(tried)
    assert found.outside.why == ("" if budget < 1e4 else "out of memory")


def test_a_search_that_time_ends_says_at_least_and_one_that_finds_nothing_says_so() -> None:
    slow = memory.Search(lambda rows: memory.Probe(1.0), 3.0, patience=-1).run()
    assert memory._cells(slow) == (memory.FIRST, "1.0", "", "", "at least: a larger size takes too long")
    none = memory.Search(lambda rows: memory.Probe(None, "why"), 3.0, patience=60).run()
    assert memory._cells(none) == ("", "", memory.FIRST, "", f"not even {memory.FIRST} rows: why")


def test_the_memory_table_counts_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Case, name: str, threads: int, **_: object) -> float:
        if case.rows > 2048:
            raise RuntimeError("no more")
        return case.rows / 64

    monkeypatch.setattr(memory, "extra_mib", measured)
    monkeypatch.setattr(memory, "names", lambda case: (NATIVE, "eager torch", "memeff", BY_ROWS))
    memory.largest(tmp_path / "memory.csv", "cpu", 24.0, 60.0, 1)
    rows = {row["contender"]: row for row in provenance.read_rows(tmp_path / "memory.csv")}
    assert set(rows) == {NATIVE, "eager torch", "memeff"}
    assert int(rows["eager torch"]["rows"]) <= 24 * 64 < int(rows["eager torch"]["next_rows"])
    assert rows["memeff"]["rows"] == ""
    assert rows["memeff"]["note"]
    assert [provenance.fault(row) for row in rows.values()] == [None] * 3


def test_training_is_refused_where_the_two_steps_differ() -> None:
    training.refuse_difference("a setting", 1.0, 1.0 + 1e-6)
    with pytest.raises(SystemExit, match=r"loss is 1\.0 with secl_ops, 1\.001 eager"):
        training.refuse_difference("a setting", 1.0, 1.001)
    runs = [{"images": 12.0, "images_per_second": rate, "peak_mib": 10.0} for rate in (3.0, 6.0, 4.0)]
    assert training.cells(runs) == (12, "4.00", "3.00", "6.00", "3.0000", "10")


def test_a_training_run_that_fails_or_is_left_out_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(setting: str, backend: str, threads: int) -> dict[str, float]:
        if backend == broken:
            raise RuntimeError("out of memory")
        return {"loss": 1.0, "images": 12.0, "images_per_second": 6.0, "peak_mib": 10.0}

    monkeypatch.setattr(training, "_measured", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    broken = "reference"
    training.training(tmp_path / "training.csv", [], 2, 1)
    rows = provenance.read_rows(tmp_path / "training.csv")
    assert [row["note"] for row in rows[:2]] == ["", "out of memory"]
    assert rows[0]["images_per_second"] == "6.00"
    assert [row["note"].partition(":")[0] for row in rows[-2:]] == ["left out"] * 2
    broken = "auto"
    with pytest.raises(SystemExit, match="out of memory; nothing was timed"):
        training.training(tmp_path / "training.csv", ["acdc"], 2, 1)


def test_one_training_step_is_the_same_with_either_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nibabel", reason="nibabel, which secl_models reads images with, is not installed")
    small = ("data.size=[32,32]", "data.patch=[32,32]", "network.channels=[4,8,8]", "train.batch=2", "network.taps=[1]")
    monkeypatch.setitem(training.SETTINGS, "small", small)
    monkeypatch.setattr(training, "PHANTOM", {"cases": 6, "labeled": 5, "size": (32, 32, 4)})
    ours, eager = (training.measure("small", backend, 1, steps=20) for backend in training.BACKENDS.values())
    training.refuse_difference("small", ours["loss"], eager["loss"])
    assert ours["images"] == 10  # 2 labelled, 8 unlabelled
    assert min(ours["images_per_second"], ours["peak_mib"]) > 0


def _tables(folder: Path) -> None:
    timed, swept = [], []
    for device, name, origin in (("cpu", NATIVE, ORIGIN), ("cuda", "secl_ops triton", GPU)):
        for case in published.PUBLISHED[:4]:
            moved = case.on(device, "bfloat16" if device == "cuda" else "float32")
            floor = limits.floor_ms(moved, str(origin[1]))
            limit = ("", "", "") if floor is None else (floor[0], 0.5, floor[1])
            for time, who in ((10, name), (30, "eager torch")):
                timed.append((case.name, who, *run._shape(moved), 9, time, 32, 1, *limit, 30, 5, "", "", *origin))
            failed = (case.name, "memeff", *run._shape(moved), *run.UNTIMED, "ModuleNotFoundError: none", *origin)
            timed.append(failed)
        for rows in (1024, 2048):
            case = published.square(rows, 128, "self").on(device, "float32")
            for who in (name, "eager torch"):
                extra = rows if device == "cpu" else 0.0  # a logarithmic axis has no place for it
                swept.append((case.name, who, *run._shape(case), 9, rows, 12, 1, 1, 1, "", extra, 5, "", "", *origin))
    provenance.write_rows(folder / "cases.csv", run.FIELDS, timed, append=False)
    provenance.write_rows(folder / "growth.csv", run.FIELDS, swept, append=False)
    step = ("la-3d", NATIVE, "cpu", "float32", "pixel", "negatives", 1, 1, 1, 9, 10, 12, "", "", "", "", 3, 5, "", "")
    provenance.write_rows(folder / "pixel.csv", run.FIELDS, [(*step, *ORIGIN)], append=False)
    claim = (NATIVE, "cpu", "float32", "self", "all", 128, 128, 1024, 9, 2048, 140, "")
    absent = ("KeOps", "cpu", "float32", "self", "all", 128, 128, "", "", "", "", "not even 256 rows: x")
    provenance.write_rows(folder / "memory.csv", memory.FIELDS, [(*claim, *ORIGIN), (*absent, *ORIGIN)], append=False)


def test_each_figure_comes_from_its_table_and_device(tmp_path: Path) -> None:
    _tables(tmp_path)
    figures.draw(tmp_path, tmp_path / "out")
    drawn = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert drawn == [
        "growth-cpu.png", "growth-h200.png", "limit-h200.png", "memory-cpu.png", "pixel-cpu.png", "published-cpu.png",
        "published-h200.png",
    ]  # fmt: skip
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in drawn)
    with pytest.raises(SystemExit, match=r"must hold one of cases\.csv, growth\.csv, memory\.csv"):
        figures.draw(tmp_path / "nothing", tmp_path / "out")


def test_the_newest_row_is_drawn_and_a_wrong_answer_is_no_rival() -> None:
    row = {"case": "a", "contender": "eager torch", "dtype": "float32", "p50_ms": "1"}
    assert plot.newest([row, row | {"p50_ms": "2"}, row | {"contender": NATIVE}])[0]["p50_ms"] == "2"
    assert plot.is_rival(row)
    assert not plot.is_rival(row | {"p50_ms": ""})
    assert not plot.is_rival(row | {"contender": BY_ROWS})
    assert not plot.is_ours(row | {"contender": EAGER})


def test_a_failure_is_told_in_a_few_words() -> None:
    note = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 30773500 bytes"
    assert plot.failure(note) == "not timed: RuntimeError"
    assert plot.failure(note.replace("30773500", "30771550715904")) == "fails: asks for 30.8 TB"
    assert plot.failure("cannot express it: its softmax") == "cannot express it"


def test_small_cases_keep_the_kind() -> None:
    for case in published.CASES:
        assert replace(case.small(), rows=case.rows, keys=case.keys) == case
    for maps in pixel.CASES:
        grown = replace(maps.small(), batch=maps.batch, size=maps.size, classes=maps.classes)
        assert replace(grown, per_class=maps.per_class) == maps


def few_rows(case: originals.OriginalCase) -> originals.OriginalCase:
    """A case of its kind on which every contender is quick."""
    return replace(case, rows=64, keys=min(case.keys, 96), width=8, classes=min(case.classes, 32))


@pytest.mark.parametrize("case", list(map(few_rows, originals.ORIGINALS)), ids=lambda case: case.name)
@pytest.mark.parametrize("name", originals.CONTENDERS)
def test_a_loss_of_another_project_and_ours_are_right(name: str, case: originals.OriginalCase) -> None:
    try:
        step = originals.original_contender(case, name)
    except ModuleNotFoundError as error:
        if name == originals.OURS:
            raise
        pytest.skip(str(error))
    gate.agree(case, name, step())


def test_the_table_of_other_projects_has_every_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(problem: Problem) -> rivals.Loss:
        return lambda: rivals.dense(problem) * 1.001

    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    monkeypatch.setattr(rivals, "eager", wrong)
    case = next(case for case in originals.ORIGINALS if case.name == "supcontrast")
    run.run_originals(run.Options(tmp_path / "compat.csv", rounds=1, threads=1), cases=[few_rows(case)])
    rows = {row["contender"]: row for row in provenance.read_rows(tmp_path / "compat.csv")}
    assert set(rows) == set(originals.CONTENDERS)
    assert rows[originals.EAGER]["note"].startswith("wrong: ")
    assert rows[originals.THEIRS]["note"] == "ModuleNotFoundError: No module named 'losses'"
    assert float(rows[originals.OURS]["p50_ms"]) > 0
    assert [provenance.fault(row) for row in rows.values()] == [None] * 3
    monkeypatch.setattr(originals, "called", lambda case, problem, line: wrong(problem))
    with pytest.raises(SystemExit, match="nothing was timed"):
        run.run_originals(run.Options(tmp_path / "compat.csv", rounds=1, threads=1), cases=[few_rows(case)])
    with pytest.raises(SystemExit, match="--case must be part of one of metric-learning-supcon"):
        run.run_originals(run.Options(tmp_path / "compat.csv"), "no such case")
