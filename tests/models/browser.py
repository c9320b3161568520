# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium driven over the WebDriver protocol, which is plain JSON over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-quic", "--disable-component-update", "--disable-sync",
)  # fmt: skip
AXE = REPOSITORY / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
UNAUDITED = f"no {AXE.relative_to(REPOSITORY)}; npm install --prefix build/axe axe-core"
# Every rule that axe has, best practices too; closed details are opened, as a reader would. What stands on an image it
# cannot judge: the letters of a chart have the colour of the page's text, on the page's own ground.
AUDIT = """
document.querySelectorAll('details').forEach(each => each.open = true);
return axe.run(document).then(found => found.violations.concat(found.incomplete).flatMap(rule =>
    rule.nodes.filter(node => !(rule.id === 'color-contrast' && node.html.startsWith('<text ')))
        .map(node => `${rule.id} (${rule.impact}): ${node.html.slice(0, 160)}: ${node.failureSummary}`)));
"""
ABSENT = "no chromium with chromedriver here; on Debian: apt-get install chromium chromium-driver"
PATIENCE = 60  # seconds: a busy machine starts a browser slowly


def missing() -> str | None:
    """Why no browser can be opened, or None."""
    return None if shutil.which("chromium") and shutil.which("chromedriver") else ABSENT


class Browser:
    """One open page."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show a file as a screen of `width` CSS pixels does."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._chrome("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._chrome("Emulation.setEmulatedMedia", {"features": [scheme]})
        _request(f"{self._session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a script of the page returns."""
        return _request(f"{self._session}/execute/sync", {"script": script, "args": []})

    def messages(self) -> list[str]:
        """Warnings and errors on the console since the last call, failed requests among them."""
        return [entry["message"] for entry in _request(f"{self._session}/se/log", {"type": "browser"})]

    def audit(self) -> list[str]:
        """What axe-core finds against the accessibility rules of the open page: rule, elements, and why."""
        self.run(AXE.read_text(encoding="utf-8") + ";")
        return list(self.run(AUDIT))

    def printed(self, file: Path) -> bytes:
        """The page as a PDF file on A4."""
        file.write_bytes(base64.b64decode(self._chrome("Page.printToPDF", {"preferCSSPageSize": True})["data"]))
        return file.read_bytes()

    def screenshot(self, file: Path) -> bytes:
        """The whole page as a PNG file."""
        picture = self._chrome("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
        file.write_bytes(base64.b64decode(picture))
        return file.read_bytes()

    def _chrome(self, command: str, parameters: dict[str, Any]) -> Any:
        return _request(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a driver and a browser with a profile of its own; both end with the block."""
    profile.mkdir(parents=True, exist_ok=True)
    log = profile / "driver.log"
    with log.open("w") as stream:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=stream, stderr=subprocess.STDOUT)
    try:
        server = f"http://127.0.0.1:{_port(driver, log)}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile / 'data'}"], "binary": shutil.which("chromium")}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = _request(f"{server}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = f"{server}/session/{found['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _request(session, None, "DELETE")
    finally:
        driver.terminate()
        driver.wait(PATIENCE)


def _port(driver: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the driver says it listens on."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and driver.poll() is None:
        for line in log.read_text().splitlines():
            if "started successfully on port" in line:
                return int(line.rstrip(".").rpartition(" ")[2])
        time.sleep(0.1)
    raise RuntimeError(f"chromedriver did not start: {log.read_text()}")


def _request(url: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        # No proxy: the driver is on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
