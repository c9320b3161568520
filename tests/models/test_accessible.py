# SPDX-License-Identifier: Apache-2.0
"""What a page needs to be read by everybody, seen without a browser: structure, names, contrast in every mode."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
import torch

from secl_models.inference.calibrate import calibrate
from secl_models.inference.evaluate import evaluate
from secl_models.inference.palette import COLOURS, GREY
from secl_models.inference.suggest import Committee, suggest
from secl_models.report.comparison import write_comparison
from secl_models.report.elements import TEMPLATES
from secl_models.report.page import write_report
from secl_models.report.suggestions import write_suggestions
from tests.models.runs import tiny_run
from tests.models.written_runs import write_run

CPU = torch.device("cpu")
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, level AA: text below 24 px
LEAST_OF_MARKS = 3.0  # WCAG 2.2, 1.4.11, level AA: lines of charts
TEXT = ("ink", "soft", "mark")
GROUNDS = ("page", "card", "tint")
MODES = {"light": 0, "dark": 1, "print": 2}  # places of the palettes in the style sheet


@dataclass
class Found:
    """What stands on a page."""

    language: str | None = None
    titles: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    landmarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class _Page(HTMLParser):
    """Collects faults of structure."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Found()
        self.labelled: set[str] = set()
        self.inputs: list[str | None] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        found = self.found
        if tag == "html":
            found.language = has.get("lang")
        self._in_title = tag == "title"
        if re.fullmatch(r"h[1-6]", tag):
            found.headings.append(int(tag[1]))
        if tag in ("main", "nav", "header", "footer"):
            found.landmarks.append(tag)
        if tag == "label" and has.get("for"):
            self.labelled.add(str(has["for"]))
        if tag in ("input", "select", "textarea") and not has.get("aria-label"):
            self.inputs.append(has.get("id"))
        found.faults += _faults(tag, has)

    def handle_data(self, data: str) -> None:
        if self._in_title and data.strip():
            self.found.titles.append(data.strip())

    def close(self) -> None:
        super().close()
        self.found.faults += [f"input {name} without a label" for name in self.inputs if name not in self.labelled]


def _faults(tag: str, has: dict[str, str | None]) -> list[str]:
    named = has.get("aria-label") or has.get("aria-labelledby")
    rules = {
        "img without alt": tag == "img" and not has.get("alt"),
        "svg without a name": tag == "svg" and not (has.get("role") == "img" and named),
        "th without scope": tag == "th" and has.get("scope") not in ("col", "row", "colgroup", "rowgroup"),
        "region without a name": has.get("role") == "region" and not named,
        "what scrolls is not reached by keys": has.get("class") == "scroll" and has.get("tabindex") != "0",
    }
    return [rule for rule, broken in rules.items() if broken]


def read(text: str) -> Found:
    """The structure of a page and its faults."""
    page = _Page()
    page.feed(text)
    page.close()
    found = page.found
    found.faults += ["no language"] * (not found.language) + ["not one title"] * (len(found.titles) != 1)
    found.faults += ["not one h1"] * (found.headings.count(1) != 1)
    steps = zip([0, *found.headings], found.headings, strict=False)
    found.faults += [f"h{after} after h{before}" for before, after in steps if after > before + 1]
    found.faults += ["not one main"] * (found.landmarks.count("main") != 1)
    return found


def palettes() -> list[dict[str, str]]:
    """The colours of the pages by name: light, dark, print; what a later one leaves out is that of the first."""
    style = (TEMPLATES / "page.html.j2").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    return [blocks[0] | block for block in blocks]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours by WCAG 2.2: (L1 + 0.05) / (L2 + 0.05), of relative luminance L."""
    light, dark = sorted(map(_luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = tiny_run(tmp_path_factory)
    folder = tmp_path_factory.mktemp("accessible")
    shutil.copytree(run.folder, folder / "run")
    evaluate(folder / "run", run.data, progress=False)
    calibrate(folder / "run", run.data, device=CPU)
    other = write_run(folder / "other", "secl+", seed=1)
    report = write_report([folder / "run"], run.data, folder / "report.html")
    comparison = write_comparison([folder / "run", other], folder / "comparison.html", data=run.data)[0]
    committee = Committee.of(folder / "run", CPU)
    suggested = suggest(folder / "run", run.data, 2, committee=committee)
    suggestions = write_suggestions(suggested, committee, run.data, folder / "suggest")[1]
    files = {"report": report, "comparison": comparison, "suggestions": suggestions}
    return {kind: file.read_text() for kind, file in files.items()}


@pytest.mark.parametrize("kind", ["report", "comparison", "suggestions"])
def test_a_page_has_names_headings_and_landmarks_in_order(pages: dict[str, str], kind: str) -> None:
    found = read(pages[kind])
    assert found.faults == []
    assert len(found.headings) > 3
    assert "{{" not in pages[kind]
    drawn = {"suggestions": "contours of student and teacher, and how far the networks are apart"}
    assert drawn.get(kind, "contours of prediction and truth on three slices") in pages[kind]


def test_every_fault_of_structure_is_seen() -> None:
    bad = (
        "<html><h2>a</h2><h4>b</h4><img src='x'><svg></svg><table><th>c</th></table><div class='scroll'></div>"
        "<div role='region'></div><input id='d'></html>"
    )
    assert set(read(bad).faults) == {
        "no language", "not one title", "not one h1", "not one main", "h2 after h0", "h4 after h2", "img without alt",
        "svg without a name", "th without scope", "what scrolls is not reached by keys", "region without a name",
        "input d without a label",
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_text_stands_out_from_every_ground(mode: str) -> None:
    colours = palettes()[MODES[mode]]
    pale = {(t, g): contrast(colours[t], colours[g]) for t in TEXT for g in GROUNDS}
    assert {pair: ratio for pair, ratio in pale.items() if ratio < LEAST_CONTRAST} == {}


@pytest.mark.parametrize("mode", MODES)
def test_lines_and_marks_stand_out_from_their_card(mode: str) -> None:
    card = palettes()[MODES[mode]]["card"]
    pale = {shade: contrast(shade, card) for shade in (*COLOURS, GREY)}
    assert {shade: ratio for shade, ratio in pale.items() if ratio < LEAST_OF_MARKS} == {}


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000", "#ffffff") == 21.0
    assert contrast("#fff", "#fff") == 1.0
    assert contrast("#777777", "#ffffff") < LEAST_CONTRAST < contrast("#767676", "#ffffff")  # the known border


def test_dark_and_print_are_told_apart_in_the_style() -> None:
    light, dark, paper = palettes()
    assert _luminance(dark["page"]) < _luminance(dark["ink"])
    assert all(_luminance(each["page"]) > _luminance(each["ink"]) for each in (light, paper))
    style = (TEMPLATES / "page.html.j2").read_text()
    assert style.index("prefers-color-scheme: dark") < style.index("@media print")  # the last one wins on paper
    assert "size:A4" in style
