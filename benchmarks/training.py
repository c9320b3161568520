# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks training`: one SECL training step with secl_ops, and the same step with the eager loss."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.load import Watch
from benchmarks.provenance import ORIGIN, origin, shown, write_rows

FIELDS = (
    "setting", "loss", "images", "images_per_second", "lowest", "highest", "seconds_per_step", "peak_mib", "rounds",
    "note", *ORIGIN,
)  # fmt: skip
OURS = "secl_ops"
BACKENDS = {OURS: "auto", "eager": "reference"}
STEPS = 30  # the first ten warm up
LOOK = 10  # steps between two entries of history.csv
PHANTOM: dict[str, Any] = {"cases": 16, "labeled": 8}
COMMON = (
    "train.warm_start=0", "train.ramp=0",  # the teacher is listened to from the first step
    "train.method=secl", "train.unlabeled_batch=8",  # both contrastive terms
    "contrast.confidence=0",  # a teacher that knows nothing yet would let no pixel through
    "train.validate_every=1000000", "train.checkpoint_every=1000000",
)  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {
    "acdc": (),
    "acdc, 64 pixels a class": ("contrast.per_class=64", "contrast.queue=1024"),
    "acdc at 256 x 256, 256 pixels a class": (
        "data.size=[256,256]", "data.patch=[256,256]", "train.batch=12", "train.unlabeled_batch=12",
        "contrast.per_class=256", "contrast.queue=4096",
    ),
}  # fmt: skip
GPU_SIZED = ("acdc at 256 x 256, 256 pixels a class",)
NAME_IT = "--setting names it all the same"
RATE = FIELDS.index("images_per_second")
UNTIMED = ("",) * (FIELDS.index("rounds") - FIELDS.index("images"))


def training(out: Path, settings: Sequence[str], rounds: int, threads: int, busy: bool = False) -> None:
    """Train a few steps of each setting with either loss, in turn, each in a process of its own; append the rows.

    Raises:
        SystemExit: The two losses of the first step differ, our own run failed, or others keep the machine busy.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source, watch = origin(threads, device), Watch(device, busy)
    for setting in settings or SETTINGS:
        load = watch.before(setting)
        if not settings and device == "cpu" and setting in GPU_SIZED:
            rows = [(setting, loss, *UNTIMED, 0, f"left out: sized for a GPU; {NAME_IT}") for loss in BACKENDS]
        else:
            rows = _rows(setting, rounds, threads)
        for row in rows:
            print(f"{row[0]:40}{row[1]:10}{row[3]:>8} images/s{row[7]:>9} MiB  {row[-1]}", flush=True)
        write_rows(out, FIELDS, [load.stamp(row, source, timed=row[RATE]) for row in rows], append=True)
    print(f"written to {shown(out)}")


def _rows(setting: str, rounds: int, threads: int) -> list[tuple[object, ...]]:
    found: dict[str, list[dict[str, float]]] = {loss: [] for loss in BACKENDS}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for loss, backend in BACKENDS.items():
            if loss not in failed:
                try:
                    found[loss].append(_measured(setting, backend, threads))
                except RuntimeError as error:
                    if loss == OURS:
                        raise SystemExit(f"{error}; nothing was timed") from error
                    failed[loss] = str(error)
    if not failed:
        refuse_difference(setting, *(runs[0]["loss"] for runs in found.values()))
    return [
        (setting, loss, *UNTIMED, 0, failed[loss]) if loss in failed else (setting, loss, *cells(runs), rounds, "")
        for loss, runs in found.items()
    ]


def refuse_difference(setting: str, ours: float, eager: float) -> None:
    """No number where the two steps are not the same step.

    Raises:
        SystemExit: The losses of the first step are further apart than rounding takes them.
    """
    if not abs(ours - eager) <= 64 * torch.finfo(torch.float32).eps * abs(eager):
        raise SystemExit(f"{setting}: the first step's loss is {ours} with secl_ops, {eager} eager; nothing was timed")


def cells(runs: Sequence[dict[str, float]]) -> tuple[object, ...]:
    """Images of a step, images per second with lowest and highest, seconds of a step, memory: medians over the runs."""
    rates = [run["images_per_second"] for run in runs]
    images, rate = int(runs[0]["images"]), statistics.median(rates)
    memory = statistics.median(run["peak_mib"] for run in runs)
    spread = (f"{rate:.2f}", f"{min(rates):.2f}", f"{max(rates):.2f}")
    return (images, *spread, f"{images / rate:.4f}", f"{memory:.0f}")


def _measured(setting: str, backend: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training", setting, backend, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        raise RuntimeError(f"training {setting} with backend={backend} failed: {last[-160:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(setting: str, backend: str, threads: int, steps: int = STEPS) -> dict[str, float]:
    """Loss of one first step, then pace and memory of a short run on a phantom heart."""
    from secl_models.data.phantom import write_phantom
    from secl_models.data.splits import Split, make_split
    from secl_models.options.schema import load_preset, override
    from secl_models.train.run import train

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = write_phantom(place / "phantom", **PHANTOM)
        split = make_split(data, 3, 0)
        split = Split(split.labeled, split.unlabeled, (), ())  # nothing is validated: the steps alone are timed
        chosen = [*COMMON, *SETTINGS[setting], f"contrast.backend={backend}", f"train.threads={threads}"]
        rows = []
        for count in (1, steps):
            config = override(load_preset("acdc"), [*chosen, f"train.steps={count}"])
            train(config, data, split, place / str(count), progress=False)
            with (place / str(count) / "history.csv").open(newline="") as file:
                rows.append(list(csv.DictReader(file)))
    rates = [float(row["images_per_second"]) for row in rows[1] if int(row["step"]) > LOOK]
    return {
        "loss": float(rows[0][0]["loss"]),
        "images": config.train.batch + config.train.unlabeled_batch,
        "images_per_second": statistics.median(rates),
        "peak_mib": float(rows[1][-1]["memory_mib"]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))) + "\n")
