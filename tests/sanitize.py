# SPDX-License-Identifier: Apache-2.0
"""Builds the extension under a sanitizer, beside the usual one, and runs every test of the native backend on it.

    python -m tests.sanitize address thread

`address` is AddressSanitizer with UndefinedBehaviorSanitizer, `thread` is ThreadSanitizer; both are those of GCC.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = (
    "sanitizers",
    "native",
    "backends",
    "sample",
    "properties",
    "wrong_arguments",
    "native_bounds",
    "traps",
    "small",
)
# The other backends are not checked, and a checked build is slow.
NOT_HERE = "not reference and not triton and not faster and not more_pairs and not costs_little"


class Lane(NamedTuple):
    """One sanitizer: its runtime, the variable that holds its options, and the options."""

    runtime: str
    variable: str
    options: Sequence[str]
    threads: int


LANES = {
    # Python and torch free nothing at exit: every leak that could be reported is theirs.
    "address": Lane("libasan.so", "ASAN_OPTIONS", ("detect_leaks=0",), threads=1),
    # torch and Python are not instrumented: how their own threads synchronise is unknown here, so that what they do
    # themselves is not judged. What the extension does is, on any thread.
    "thread": Lane("libtsan.so", "TSAN_OPTIONS", ("ignore_noninstrumented_modules=1",), threads=3),
}


def folder(lane: str) -> Path:
    """Where this lane builds and reports."""
    return REPOSITORY / "build" / "sanitize" / lane


def build(lane: str) -> None:
    """Compile the extension into the lane's folder."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(folder(lane))]
    environment = {**os.environ, "SECL_BUILD": "cpu", "SECL_SANITIZE": lane}
    done = subprocess.run(
        [*command, "--build-lib", str(folder(lane) / "lib")],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"sanitize: the {lane} build failed\n{done.stdout}{done.stderr}")


def environment(lane: str, *options: str) -> dict[str, str]:
    """Variables under which a child process runs the checked extension and nothing else of this repository's folder."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    libraries = []
    for library in (LANES[lane].runtime, "libstdc++.so.6"):  # the runtime looks for C++ exceptions when it starts
        found = subprocess.run(
            [compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            raise SystemExit(f"sanitize: {compiler} has no {library}; install g++ with its sanitizers, or set CXX")
        libraries.append(found)
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(libraries),
        LANES[lane].variable: ":".join((*LANES[lane].options, *options)),
        "SECL_SANITIZE": lane,
        "SECL_REQUIRE": "native",
        "SECL_TEST_THREADS": str(LANES[lane].threads),
        "PYTHONSAFEPATH": "1",  # else the folder it starts in, with the usual extension, would come first
        "PYTHONPATH": f"{folder(lane) / 'lib'}{os.pathsep}{REPOSITORY}",
    }


def run(lane: str) -> bool:
    """Whether the native tests pass under the lane without a report."""
    for old in folder(lane).glob("report.*"):
        old.unlink()
    tests = [f"tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=append", "-p", "no:cacheprovider", "-k", NOT_HERE]
    log = f"log_path={folder(lane) / 'report'}"
    done = subprocess.run([*command, "-m", "", *tests], cwd=REPOSITORY, env=environment(lane, log), check=False)
    reports = sorted(folder(lane).glob("report.*"))
    for report in reports:
        print(report.read_text())
    print(f"sanitize: {lane}: {'clean' if done.returncode == 0 and not reports else 'NOT clean'}")
    return done.returncode == 0 and not reports


def main(lanes: Sequence[str]) -> int:
    """Build and run each lane.

    Raises:
        SystemExit: A lane is unknown, or cannot be built.
    """
    unknown = set(lanes) - set(LANES)
    if unknown or not lanes:
        raise SystemExit(f"sanitize: name one or more of {', '.join(LANES)}; got {', '.join(lanes) or 'none'}")
    clean = True
    for lane in lanes:
        print(f"sanitize: {lane}: building", flush=True)
        build(lane)
        clean &= run(lane)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
