# SPDX-License-Identifier: Apache-2.0
"""Runs the tests that draw examples over fresh ones, seed after seed, until the time is up or one fails.

python -m tests.fuzz --minutes 5
python -m tests.fuzz --seed 1234      # one seed again
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def run(seed: int) -> tuple[bool, int]:
    """Whether every test passes over the examples of a seed, and how many those are."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "drawn"]
    environment = {"SECL_REQUIRE": "native,triton,reference", **os.environ, "SECL_FUZZ": str(seed)}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "tests"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"^(\d+) examples", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        print(done.stdout, done.stderr, sep="\n")
    return done.returncode == 0, int(found[1]) if found else 0


def main(minutes: float, seed: int | None) -> int:
    """Draw until the minutes are over; with a seed, draw once."""
    end, total, seeds = time.monotonic() + 60 * minutes, 0, 0
    while True:
        chosen = secrets.randbelow(2**32) if seed is None else seed
        green, count = run(chosen)
        total, seeds = total + count, seeds + 1
        print(f"fuzz: seed {chosen}: {count} examples, {'green' if green else 'RED'}", flush=True)
        if not green:
            print(f"fuzz: to repeat it: make fuzz SEED={chosen}")
            return 1
        if seed is not None or time.monotonic() >= end:
            print(f"fuzz: {total} examples of {seeds} seeds, all green")
            return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.seed))
