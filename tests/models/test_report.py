# SPDX-License-Identifier: Apache-2.0
"""The report is one well-formed page that needs nothing else, and its numbers are those of the evaluation."""

from __future__ import annotations

import base64
import csv
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from secl_models.data.splits import load_split
from secl_models.data.volumes import load_volume
from secl_models.inference.evaluate import evaluate
from secl_models.inference.metrics import DEFINITIONS, CaseScores, StructureScore
from secl_models.method.checkpoint import load_model
from secl_models.options.errors import InputError
from secl_models.report.features import feature_rows, principal_plane
from secl_models.report.page import write_report
from secl_models.report.pictures import line_chart, overlay, patient_chart, plane_chart
from tests.models.runs import TinyRun, tiny_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """Collects ids and references, and complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.alternatives: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [v for name, v in attrs if name in ("src", "href", "xlink:href", "srcset") and v]
        if tag == "img":
            self.alternatives.append(values.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


@pytest.fixture
def scored(run: TinyRun, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    evaluate(folder, run.data, progress=False)
    return folder


def test_the_page_is_whole_and_refers_to_nothing_outside(run: TinyRun, scored: Path, tmp_path: Path) -> None:
    text = write_report([scored], run.data, tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [ref for ref in page.references if not ref.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert page.alternatives
    assert all(page.alternatives)
    assert str(tmp_path) not in text


def test_the_table_shows_the_evaluation_and_the_baseline(run: TinyRun, scored: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline"
    shutil.copytree(scored, baseline)
    summary = baseline / "summary.json"
    summary.write_text(summary.read_text().replace('"method": "secl+"', '"method": "plain"'))
    text = write_report([scored, baseline], run.data, tmp_path / "report.html").read_text()
    expected = evaluate(scored / "last.pt", run.data, out=tmp_path / "again", progress=False)[0].summary
    for row in expected:
        assert text.count(f">{100 * row.dice[0]:.1f}") >= 2
        assert f">{row.hd95[0]:.1f}" in text
    for title in ("plain", "secl+, last", "secl+, best"):  # the baseline with its last checkpoint only
        assert text.count(f'<th scope="row" class="name">{title}</th>') == len(expected)
    best = evaluate(scored / "best.pt", run.data, out=tmp_path / "again", progress=False)[0].summary
    assert f">{100 * best[-1].dice[0]:.1f}" in text
    assert all(definition.split("|")[0][:20] in text for definition in DEFINITIONS.values())


def test_pseudo_label_quality_and_what_the_contrast_found_are_shown(run: TinyRun, scored: Path, tmp_path: Path) -> None:
    with (scored / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = run.data.classes.values()
    for row in (rows[0], rows[-1]):  # steps that were validated
        for kind in ("dice", "coverage"):
            assert all(0 <= float(row[f"{kind} {name}"]) <= 1 for name in names)
    assert 0 <= float(rows[-1]["positives"]) <= 1
    assert 0 <= float(rows[-1]["skipped"]) <= 4
    text = write_report([scored], run.data, tmp_path / "report.html").read_text()
    assert "Pseudo-label coverage" in text
    assert f"On average {float(rows[-1]['skipped']):.1f} classes a step found no positive." in text


def test_overlays_show_best_median_and_worst(run: TinyRun, scored: Path, tmp_path: Path) -> None:
    names = {case.name for case in load_split(scored / "split.json", run.data).test}
    text = write_report([scored], run.data, tmp_path / "report.html").read_text()
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == min(3, len(names))
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert set(re.findall(r"<span>(phantom_\d+)</span>", text)) <= names


def test_a_run_that_was_not_evaluated_has_curves_only(run: TinyRun, tmp_path: Path) -> None:
    text = write_report([run.folder], run.data, tmp_path / "report.html", split="val").read_text()
    assert "Scores per structure" not in text
    assert "<svg" in text


def test_an_unfinished_run_is_refused(run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a finished run; got no summary\.json"):
        write_report([tmp_path], run.data, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def _charts() -> list[str]:
    scores = (StructureScore("<a & b>", 0.5, 1.0, 1.0, "mm", "both"),)
    points = np.random.default_rng(0).normal(size=(20, 2))
    return [
        line_chart({"loss": [(0, 1.0), (1, 0.5)], "empty": []}, x="step", y="loss"),
        patient_chart([CaseScores("p", "c", scores)], ["<a & b>"]),
        patient_chart([CaseScores("p", "c", (replace(scores[0], structure="T $_$ x"),))], ["T $_$ x"]),
        plane_chart(points, np.arange(20) % 2, ["a"]),
    ]


@pytest.mark.parametrize("number", range(4))
def test_charts_are_well_formed_follow_the_page_and_repeat(number: int) -> None:
    svg = _charts()[number]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("width") is None
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "matplotlib.org" not in svg
    assert svg == _charts()[number]


def test_overlay_of_nothing_and_of_a_plane() -> None:
    image = np.zeros((20, 24), np.float32)
    empty = np.zeros((20, 24), np.int64)
    assert base64.b64decode(overlay(image, empty, empty, (1.0, 1.0))).startswith(b"\x89PNG")


def test_feature_rows_carry_their_true_class(run: TinyRun) -> None:
    model = load_model(run.folder)
    case = next(case for case in run.data.cases if case.label is not None)
    volume = load_volume(case, run.data)
    found = feature_rows(model, volume)
    assert found is not None
    rows, index = found
    assert len(rows) == len(index)
    assert set(index.tolist()) <= set(range(len(run.data.classes) + 1))
    assert (index > 0).any()
    plane = principal_plane(model, [volume], len(run.data.classes))
    assert plane is not None
    points, classes = plane
    assert points.shape == (len(classes), 2)
    # the first component is the one of the larger spread, and both are centred
    assert points[:, 0].var() >= points[:, 1].var()
    assert np.abs(points.mean(0)).max() < 2.0**-40


def test_an_unlabelled_volume_has_no_rows_to_colour(run: TinyRun) -> None:
    case = next(case for case in run.data.cases if case.label is not None)
    volume = load_volume(case, run.data)
    assert volume.label is not None
    volume.label[:] = 0
    assert principal_plane(load_model(run.folder), [volume], 3) is None
