# SPDX-License-Identifier: Apache-2.0
"""`make docs` writes a page of every public name without a warning, and takes no formula for mark-up."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import secl_ops
from tests.conftest import REPOSITORY
from tests.test_floors import SOURCES, module_name

pytest.importorskip("pdoc", reason="pdoc is not installed")
pytestmark = pytest.mark.exhaustive
TAGS = {
    "dd", "dl", "dt",  # what a class inherits
    "a", "blockquote", "body", "br", "code", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr",
    "html", "img", "input", "label", "li", "link", "main", "meta", "nav", "ol", "p", "path", "pre", "script", "section",
    "span", "strong", "style", "svg", "title", "ul", "wbr",
}  # fmt: skip


class Page(HTMLParser):
    """Which tags and ids a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids |= {value for name, value in attrs if name == "id" and value}


def test_every_public_name_has_its_place_and_nothing_is_warned_of(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    assert set(secl_ops.__all__) - {"__version__"} <= Page(pages[Path("secl_ops.html")]).ids
    rooms = ("secl_models", "secl_ops/compat")
    modules = {module_name(path) for path in SOURCES if any(path.is_relative_to(REPOSITORY / room) for room in rooms)}
    wanted = {Path(*name.split(".")).with_suffix(".html") for name in modules if not name.endswith("__main__")}
    assert wanted <= set(pages)
    for place, text in pages.items():
        assert Page(text).tags <= TAGS, place
        assert "ForwardRef" not in text, place
