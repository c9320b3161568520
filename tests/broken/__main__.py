# SPDX-License-Identifier: Apache-2.0
"""Runs the commands, in this process, over folders that are broken in drawn ways; nothing may end in a traceback.

python -m tests.broken --cases 10000
python -m tests.broken --seed 1234 --first 77 --cases 1     # one case again
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from typer.testing import CliRunner

from secl_models.command import cli
from tests.broken.mutations import mutate
from tests.broken.whole import OPTIONS, make_whole

SECONDS, MEMORY = 60, 16 << 30  # that a case may take
EVERY = 250  # cases
SETTINGS = (
    "train.lr=0", "data.patch=[15,16]", "data.size=[16,16]", "data.spacing=[3,3]", "data.normalize=slice", "labeled=0",
    "data.window=[0,1]", "network.channels=[4]", "x=1", "train.method=magic", "data.dims=3", "data.spacing_from=affine",
    "data.spacing_from=pixdim", "contrast.queue=-1", "train.steps=1e3", "augment.flip=[0,0]", "=", "train", "seed=null",
)  # fmt: skip


def commands(draw: random.Random) -> tuple[list[str], list[str]]:
    """Arguments of a command, and the files and folders that it reads."""
    data = draw.choice(("data", "data", "data", "data/tables/table.csv"))
    options = [part for option in OPTIONS for part in ("--set", option)]
    if draw.random() < 0.1:
        options += ["--set", draw.choice(SETTINGS)]
    train = ["train", "--data", data, "--preset", "demo", *options, "--labeled", "2", "--out"]
    again = [*train[:2], "data", *train[3:], "run"]
    score = ["evaluate", "--checkpoint", "run", "--data", "data"]
    segment = ["predict", "--checkpoint", "run", "--input"]
    kinds: tuple[tuple[int, list[str], list[str]], ...] = (
        (34, ["check", "--data", data], ["data"]),
        (14, [*train, "new"], ["data"]),
        (4, [*again, "--overwrite"], ["run"]),
        (8, [*again, "--resume", "--steps", "3"], ["run"]),
        (8, [*again, "--resume"], ["run", "data"]),
        (6, [*score, "--no-report"], ["run", "data"]),
        (4, score, ["run", "data"]),
        (3, [*score, "--out", "scores", "--no-report"], ["run", "data"]),
        (8, [*segment, "scans", "--out", "seg"], ["scans", "run/last.pt"]),
        (4, [*segment, "scans/new_1.nii.gz", "--out", "seg.nii.gz", "--probabilities"], ["scans"]),
        (2, [*segment, "scans", "--out", draw.choice(("scans", "run", "data/imagesTr")), "--overwrite"], ["scans"]),
        (2, ["study", "table", "study.csv"], ["study.csv"]),
        (2, ["study", "figure", "study.csv", "--out", "pictures"], ["study.csv", "study_curves.csv"]),
        (1, ["study", "cases", "run", "run", "--data", "data"], ["run", "data"]),
    )
    _, arguments, read = draw.choices(kinds, [weight for weight, *_ in kinds])[0]
    return arguments, read


def files_of(folder: Path, names: list[str]) -> list[Path]:
    """The files that may be changed."""
    places = [folder / name for name in names]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [file for file in files if file.is_file() and "tensorboard" not in file.parts]


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file that is not written by the commands."""
    found = {}
    for name in ("data", "scans"):
        for place, _, files in os.walk(os.fsencode(folder / name)):
            for file in files:
                path = os.path.join(place, file)
                if os.path.isfile(path):
                    with open(path, "rb") as stream:
                        found[os.fsdecode(path)] = hashlib.file_digest(stream, "md5").hexdigest()
    return found


@contextmanager
def at(folder: Path) -> Iterator[None]:
    """Within it the folder is the current one, and a case that hangs is stopped."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{SECONDS} seconds")

    before = Path.cwd()
    os.chdir(folder)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        os.chdir(before)


def faults_of(folder: Path, arguments: list[str]) -> tuple[str, list[str]]:
    """How a command ends in a folder, and what is wrong with that."""
    before = contents(folder)
    with at(folder), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = CliRunner().invoke(cli.app, arguments)
    faults = []
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        faults.append("".join(traceback.format_exception(result.exception)))
    if result.exit_code not in (0, 2) or "Traceback" in result.output:
        faults.append(f"exit status {result.exit_code}: {result.output[-2000:]}")
    if result.exit_code == 2 and "Cure: " not in result.stderr:
        faults.append(f"no cure: {result.output[-2000:]}")
    faults += [f"warning: {item.category.__name__}: {item.message} ({item.filename}:{item.lineno})" for item in caught]
    if before.items() - contents(folder).items():
        faults.append("an input was changed")
    if left := [path.name for path in folder.rglob(".*.partial")]:
        faults.append(f"left behind: {', '.join(left)}")
    return f"{arguments[0]}{' ' + arguments[1] if arguments[0] == 'study' else ''} {result.exit_code}", faults


def run_case(whole: Path, seed: int, number: int) -> tuple[str, str, list[str]]:
    """One command in a broken copy of a folder: how it ends, what was done, and what is wrong."""
    draw = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(dir=whole.parent) as place:
        folder = Path(shutil.copytree(whole, Path(place) / "w"))
        arguments, read = commands(draw)
        done = []
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            if files := files_of(folder, read):
                done.append(mutate(draw.choice(files), draw))
        kind, faults = faults_of(folder, arguments)
    return kind, f"secl {' '.join(arguments)}\n  after {'; '.join(done) or 'nothing'}", faults


def main(cases: int, seed: int, first: int) -> int:
    """Run cases until all are done; name each that is at fault."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    ends: Counter[str] = Counter()
    bad = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        whole = Path(place) / "whole"
        make_whole(whole)
        for number in range(first, first + cases):
            kind, what, faults = run_case(whole, seed, number)
            ends[kind] += 1
            for fault in faults:
                print(f"broken: seed {seed}, case {number}: {what}\n{fault}", flush=True)
            bad += bool(faults)
            if (number + 1) % EVERY == 0:
                print(f"broken: {number + 1 - first} of {cases} cases, {bad} at fault", flush=True)
    print(f"broken: seed {seed}: {cases} cases, {bad} at fault; by command and exit status:")
    print("  " + ", ".join(f"{kind}: {count}" for kind, count in sorted(ends.items())))
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.cases, secrets.randbelow(2**32) if given.seed is None else given.seed, given.first))
