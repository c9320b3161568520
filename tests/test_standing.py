# SPDX-License-Identifier: Apache-2.0
"""Where ours stands in a case is told after its table, small cases first, and told as well where ours is slower."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from benchmarks import figures, gate, load, plot, provenance, published, run
from benchmarks.cases import Case
from benchmarks.contenders import BY_KEYS, BY_ROWS, NATIVE, TRITON
from benchmarks.pixel import EAGER, LEAN, PixelCase
from benchmarks.standing import standing
from tests.conftest import REPOSITORY

RIVAL = "torch.compile"
COLORS = {plot.BLUE: "dark", plot.SKY: "light", plot.VERMILLION: "red"}


@pytest.mark.parametrize(
    ("rows", "own", "rival", "products", "met"),
    [
        (1023, 1.0, 1.2, None, True), (1023, 1.0, 1.19, None, False), (1024, 1.0, 1.99, None, False),
        (1024, 1.0, 2.0, None, True), (1024, 0.8, 0.9, 1.0, True), (1024, 0.81, 0.9, 1.0, False),
        (1023, 0.8, 0.9, 1.0, False),  # few rows have the rival to beat
    ],
)  # fmt: skip
def test_what_is_wanted_depends_on_the_rows(
    rows: int, own: float, rival: float, products: float | None, met: bool
) -> None:
    medians = {NATIVE: own, RIVAL: rival} | ({} if products is None else {BY_ROWS: products})
    found = standing(rows, medians)
    assert found is not None
    assert found.met == met
    assert (": met, " in found.judged, ": MISSED, " in found.judged) == (met, not met)
    assert ("2 x the rival is wanted, or 0.8 x the products" in found.judged) == (rows >= 1024)


def test_the_best_of_ours_stands_beside_the_fastest_that_is_an_answer() -> None:
    medians = {NATIVE: 4.0, TRITON: 2.0, EAGER: 0.1, RIVAL: 1.0, "eager torch": 3.0, BY_ROWS: 0.5, BY_KEYS: 0.25}
    wanted = "0.50 x the speed of the fastest rival (torch.compile), 8.00 x the time of the bare products"
    assert str(standing(64, medians)) == wanted
    assert str(standing(64, {NATIVE: 4.0})) == "no rival ran"
    assert standing(64, {RIVAL: 1.0, BY_ROWS: 0.5}) is None


@pytest.mark.parametrize("cases", [published.PUBLISHED, published.CASES])
def test_small_cases_come_first(cases: tuple[Case, ...]) -> None:
    assert [case.pairs for case in cases] == sorted(case.pairs for case in cases)


def test_the_last_line_of_a_case_is_where_ours_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice_as_fast(steps: dict[str, object], *_: object) -> dict[str, list[float]]:
        return {name: [1.0 if name == "eager torch" else 2.0] for name in steps}

    monkeypatch.setattr(load, "others", lambda _: 0.0)
    monkeypatch.setattr(run, "extra_mib", lambda case, name, threads: 1.0)
    monkeypatch.setattr(run, "cap_memory", lambda: None)
    monkeypatch.setattr(run, "milliseconds", twice_as_fast)
    monkeypatch.setattr(gate, "names", lambda case: (NATIVE, "eager torch", "memeff", BY_ROWS))
    options = run.Options(tmp_path / "cases.csv", rounds=1, threads=1)
    run.run(options, cases=[Case("a case", 48, 16, 65)])
    run.run_pixel(options, cases=[PixelCase("a map", "a title", 1, 8, (16, 16), 2, 2)])
    blocks = capsys.readouterr().out.split("\n\n")
    rows, pixels = (block.splitlines()[-2] for block in blocks if block.strip())
    beside = "0.50 x the speed of the fastest rival (eager torch), 1.00 x the time of the bare products"
    assert rows == f"  {beside}: MISSED, 1.2 x the rival is wanted"
    assert pixels == f"  1.00 x the speed of the fastest rival ({LEAN})"


def drawn_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bars of the published figure from the top down: name, colour, and what stands beside them."""
    found: list[str] = []

    def read(figure: Any, out: Path) -> None:
        (axis,) = figure.axes
        bars = [COLORS[to_hex(bar.get_facecolor()).upper()] for bar in axis.patches]
        texts = [text.get_text().replace("\n", ", ").replace(figures.TIMES, "x") for text in axis.texts]
        names = [label.get_text().partition("\n")[0] for label in axis.get_yticklabels()]
        top, bottom = axis.get_ylim()[::-1]
        assert top < bottom
        for place, name in enumerate(names):
            found.append(f"{name}: {bars[place]}, {texts[2 * place]} {texts[2 * place + 1]}")

    monkeypatch.setattr(figures, "save", read)
    figures.published(provenance.read_rows(folder / "cases.csv"), folder / "published.png")
    return found


def test_the_figure_shows_small_sizes_first_with_what_they_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = (2, "a machine", "python 3; torch 2.13", "abc", "2026-01-01")
    by_name = {case.name: case for case in published.PUBLISHED}
    times = {"mona": (2, 1, 4), "u2pl": (1, 3, 2), "caml": (3, 4, 3)}  # ours, the rival, the products
    rows = [
        (name, who, *run._shape(by_name[name]), time, time, time, *[""] * 4, 1, 5, "", "", *origin)
        for name, values in times.items() for who, time in zip((NATIVE, RIVAL, BY_ROWS), values, strict=True)
    ]  # fmt: skip
    old = run.FIELDS[: -len(("load",))]  # a table from before there was that column
    provenance.write_rows(tmp_path / "cases.csv", old, rows, append=False)
    assert drawn_names(tmp_path, monkeypatch) == [
        "U2PL, a class: dark, 3.00x 1 ms, torch.compile 3 ms, 0.50x the products",
        "MONA, a class: red, 0.50x 2 ms, torch.compile 1 ms, 0.50x the products",
        "CAML: light, 1.33x 3 ms, torch.compile 4 ms, 1.00x the products",
    ]


def test_make_bench_shows_the_small_sizes_first_and_where_they_stand() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    few = "(mona or u2pl) and (eager or products or native)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-W",
        "default",
        "benchmarks/test_loss.py",
        "--benchmark-only",
        "-k",
        few,
    ]
    # A worker of xdist says that it is one, and nothing is timed beside others.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert re.search(r"^(BUSY: )?others kept \d+\.\d\d cores busy before the start$", done.stdout, re.MULTILINE)
    assert re.findall(r"benchmark '(\w+) float32'", done.stdout) == ["u2pl", "mona"]
    lines = [line for line in done.stdout.splitlines() if "the fastest rival (" in line]
    assert [line.partition(" float32: ")[0] for line in lines] == ["u2pl", "mona"]
    assert all(line.endswith(" x the time of the bare products") for line in lines)  # torch.compile may be faster
    assert "torch.compile is not timed here" in done.stdout
