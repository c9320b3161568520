# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser: nothing on the console, nothing wider than a phone, everything drawn, read by all."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import torch

from secl_models.inference.calibrate import calibrate
from secl_models.inference.evaluate import evaluate
from secl_models.inference.suggest import Committee, suggest
from secl_models.report.comparison import write_comparison
from secl_models.report.page import write_report
from secl_models.report.suggestions import write_suggestions
from tests.conftest import skip_or_fail
from tests.models.browser import AXE, UNAUDITED, Browser, browser, missing
from tests.models.runs import tiny_run
from tests.models.written_runs import write_run

KINDS = ("report", "comparison", "suggestions")
CPU = torch.device("cpu")
WIDTHS = {"phone": 360, "desktop": 1280}
A4 = b"/MediaBox [0 0 594.95996 841.91998]"
# The page is cut off where something reaches further to the right than the screen.
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNDRAWN = """return [...document.querySelectorAll('img, svg')]
    .filter(e => e.getBoundingClientRect().width < 100 || (e.tagName === 'IMG' && !e.naturalWidth)).length"""
SMALLEST = """return Math.min(...[...document.querySelectorAll('p, td, th, dd, dt, li, h1, h2, h3')]
    .map(e => parseFloat(getComputedStyle(e).fontSize)))"""


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := missing():
        skip_or_fail("chromium", reason)
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run = tiny_run(tmp_path_factory)
    folder = tmp_path_factory.mktemp("report")
    runs = [folder / "run", folder / "baseline"]
    for copy in runs:
        shutil.copytree(run.folder, copy)
        evaluate(copy, run.data, progress=False)
    longer = write_run(folder / "longer", "secl+", seed=1, options=["train.lr=0.1"])
    calibrate(runs[0], run.data, device=CPU)
    committee = Committee.of(runs[0], CPU)
    suggested = suggest(runs[0], run.data, 2, committee=committee)
    return {
        "report": write_report(runs, run.data, folder / "report.html"),
        "comparison": write_comparison([*runs, longer], folder / "comparison.html", data=run.data)[0],
        "suggestions": write_suggestions(suggested, committee, run.data, folder / "suggest")[1],
    }


@pytest.fixture
def page(pages: dict[str, Path]) -> Path:
    return pages["report"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(open_browser: Browser, pages: dict[str, Path], kind: str, dark: bool) -> None:
    if not AXE.is_file():
        skip_or_fail("axe", UNAUDITED)
    for width in WIDTHS.values():
        open_browser.open(pages[kind], width, dark=dark)
        assert open_browser.audit() == []


def test_axe_sees_what_is_wrong(open_browser: Browser, tmp_path: Path) -> None:
    if not AXE.is_file():
        skip_or_fail("axe", UNAUDITED)
    bad = tmp_path / "bad.html"
    bad.write_text("<html><body><h3>x</h3><img src='data:,'><p style='color:#bbb;background:#fff'>pale</p>")
    open_browser.open(bad, WIDTHS["phone"])
    found = {line.partition(" ")[0] for line in open_browser.audit()}
    assert {"color-contrast", "image-alt", "html-has-lang", "document-title", "landmark-one-main"} <= found


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_fits_phone_and_paper(
    open_browser: Browser, pages: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    open_browser.open(pages[kind], WIDTHS["phone"])
    assert open_browser.messages() == []
    assert open_browser.run(OVERFLOW) == 0
    printed = open_browser.printed(tmp_path / "page.pdf")
    assert printed.count(A4) == printed.count(b"/MediaBox") > (kind != "suggestions")  # two suggestions fit one sheet


def _pixels(png: bytes) -> npt.NDArray[np.float32]:
    return np.asarray(matplotlib.image.imread(io.BytesIO(png)))[..., :3]


@pytest.mark.parametrize("screen", WIDTHS)
def test_the_page_is_readable_and_silent(open_browser: Browser, page: Path, screen: str, tmp_path: Path) -> None:
    brightness = {}
    for dark in (False, True):
        open_browser.open(page, WIDTHS[screen], dark=dark)
        assert open_browser.messages() == []
        assert open_browser.run(OVERFLOW) == 0
        assert open_browser.run(UNDRAWN) == 0
        assert open_browser.run(SMALLEST) >= 12
        assert open_browser.run("return document.querySelectorAll('img').length") >= 2
        assert open_browser.run("return document.querySelectorAll('svg').length") >= 6
        shot = _pixels(open_browser.screenshot(tmp_path / f"{screen}_{dark}.png"))
        assert shot.shape[1] == WIDTHS[screen]
        assert shot.shape[0] > 1000  # the whole page, not the first screen
        assert shot.std() > 0.05
        brightness[dark] = float(shot[:, :8].mean())  # the margin shows the page's own colour
    assert brightness[True] < 0.2 < 0.8 < brightness[False]


def test_the_browser_reports_what_a_page_must_not_do(open_browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a page with a missing picture, an error and a wide box."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><img src=gone.png><p style='width:900px'>x</p>"
        "<script>console.error('complaint')</script>"
    )
    open_browser.open(bad, WIDTHS["phone"])
    messages = " ".join(open_browser.messages())
    assert "complaint" in messages
    assert "gone.png" in messages
    assert open_browser.run(OVERFLOW) > 0
    assert open_browser.run(UNDRAWN) == 1
