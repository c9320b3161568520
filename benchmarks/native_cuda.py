# SPDX-License-Identifier: Apache-2.0
"""The native CUDA kernels on this GPU: held against the truth, then timed beside Triton's, a row at a time.

The table is what `python -m benchmarks verified` reads: `auto` takes a CUDA kernel only where it says right and faster.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

import secl_ops
from benchmarks import gate
from benchmarks.budget import assert_within_budget
from benchmarks.cases import SIGMOID, Case
from benchmarks.contenders import NATIVE, TRITON, contender
from benchmarks.gpu import demand_gpu
from benchmarks.load import Watch
from benchmarks.measure import Clock, Work, milliseconds, percentiles
from benchmarks.provenance import commit, today, write_rows
from benchmarks.verified import FIELDS
from secl_ops.engines.select import MODULES

ROUNDS, PATIENCE = 20, 2.0
SIDES = ("native", "triton")
WIDTHS = (128, 64, 256, 32, 96, 192, 512)  # in order of worth, as the dtypes are: what comes late may be lost
DTYPES = ("bfloat16", "float16", "float32")
ROWS = 4096
MAPS = (8, 64)  # maps of a batch, and their side
LABELS, VOLUMES = (8, 128, 128), (2, 128, 128, 128)  # of 19 classes and of 4
LANE = "native-cuda"  # of the shared tests: see tests/lanes.py


@dataclass(frozen=True)
class Trial:
    """One case of one operation, on either backend."""

    operation: str
    dtype: str
    width: int
    case: str
    step: Callable[[str], Work]  # by backend
    check: Callable[[], None]  # raises where the native backend is wrong


def trials(device: str) -> Iterator[Trial]:
    """Every case that a row of the table stands for."""
    yield sampling(device, LABELS)
    yield sampling(device, VOLUMES, classes=4)
    yield sampling(device, VOLUMES, classes=4, strategy="hard")
    for dtype in DTYPES:
        for width in WIDTHS:
            yield gathering(device, dtype, width, *MAPS)
            for kind in () if dtype == "float32" else ("self", "frozen", "both"):  # which they multiply in half alone
                keys = 0 if kind == "self" else ROWS
                case = Case(f"{kind}-N{ROWS}-D{width}", ROWS, width, keys, both=kind == "both").on(device, dtype)
                yield contrasting(case)
                if case.both:  # all that it has
                    yield contrasting(replace(case, name=f"sigmoid-{case.name}", denominator=SIGMOID))


def contrasting(case: Case) -> Trial:
    """Loss and gradients."""
    names = {"native": NATIVE, "triton": TRITON}
    operation = "sigmoid_contrast" if case.denominator == SIGMOID else "info_nce"
    return Trial(
        operation, case.dtype, case.width, case.name, lambda side: contender(case, names[side]),
        lambda: gate.agree(case, NATIVE, contender(case, NATIVE)()),
    )  # fmt: skip


def gathering(device: str, dtype: str, width: int, maps: int, side: int) -> Trial:
    """Unit rows of a map, and the gradient of the map."""
    count = 2 * side**2

    @functools.cache
    def given() -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        features = torch.randn(maps, width, side, side, generator=random).to(device, getattr(torch, dtype))
        index = torch.randperm(maps * side**2, generator=random)[:count].to(device)
        return features, index, torch.randn(count, width, generator=random).to(device)

    def passes(backend: str, wide: bool = False) -> tuple[Tensor, Tensor]:
        features, index, upstream = given()
        leaf = (features.double() if wide else features.clone()).requires_grad_()
        rows = secl_ops.gather_pixels(leaf, index, normalize=True, unique=True, backend=backend)
        (gradient,) = torch.autograd.grad(rows, leaf, upstream.to(rows.dtype))
        return rows.detach(), gradient

    def check() -> None:
        found, truth, plain = passes("native"), passes("reference", wide=True), passes("reference")
        for name, actual, exact, usual in zip(("rows", "gradient"), found, truth, plain, strict=True):
            assert_within_budget(name, actual, exact, usual, magnitude=1.0)

    case = f"{maps} maps {side} x {side}, {count} pixels"
    return Trial("gather_pixels", dtype, width, case, lambda backend: lambda: passes(backend), check)


def sampling(device: str, shape: tuple[int, ...], classes: int = 19, strategy: str = "uniform") -> Trial:
    """A draw; each backend may take its pixels in another order, not other pixels."""

    @functools.cache
    def maps() -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(0, classes, shape, generator=random)
        return labels.to(device), torch.rand(shape, generator=random).to(device)

    def draw(side: str) -> Tensor:
        labels, chance = maps()
        given: dict[str, Any] = {"num_classes": classes, "seed": 5, "strategy": strategy, "backend": side}
        scores = chance if strategy == "hard" else None
        return secl_ops.sample_pixels(labels, 64, scores=scores, **given).index.view(-1, 64)

    def check() -> None:
        if not torch.equal(draw("native").sort(dim=1).values, draw("reference").sort(dim=1).values):
            raise AssertionError("native draws other pixels than the reference")

    case = f"{strategy}, {classes} classes, {' x '.join(map(str, shape))}"
    return Trial("sample_pixels", "int64", 0, case, lambda side: lambda: draw(side), check)


def lane(report: Path) -> str:
    """What the shared tests said of these kernels in a report of pytest: "green", "red", or "not run" at all."""
    if not report.exists():
        return "not run"
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except ElementTree.ParseError:  # the stage was ended while it wrote
        return "not run"
    own = [case for case in cases if f"[{LANE}" in case.get("name", "")]
    if any(case.find(fault) is not None for case in cases for fault in ("failure", "error")):
        return "red"
    return "green" if any(case.find("skipped") is None for case in own) else "not run"


def row(trial: Trial, clock: Clock, tests: str) -> tuple[object, ...]:
    """The first columns of a trial's row after its identity: verified, lane, native_ms, triton_ms.

    Raises:
        Exception: A side does not run at all.
    """
    steps = {side: trial.step(side) for side in SIDES}
    verified = "yes"
    try:
        trial.check()
    except AssertionError as error:
        verified = "no"
        print(f"{trial.operation} {trial.dtype} {trial.width} {trial.case}: wrong: {error}", flush=True)
    times = milliseconds(steps, ROUNDS, clock, PATIENCE)
    return (verified, tests, *(f"{percentiles(times[side])[1]:.4g}" for side in SIDES))


def measure(out: Path, device: str, wanted: Iterator[Trial], tests: str) -> int:
    """Append a row per trial; the number of those without one, each of which is printed.

    Args:
        out: The table.
        device: Where the trials run.
        wanted: The trials.
        tests: What `lane` said.

    Raises:
        SystemExit: The native backend serves no operation on this device.
    """
    capability = "".join(map(str, torch.cuda.get_device_capability())) if device == "cuda" else ""
    gpu = torch.cuda.get_device_name() if device == "cuda" else device
    origin = (gpu, torch.__version__, commit(), today())
    clock, watch, missing, refused = Clock(device), Watch(device), 0, set()
    for trial in wanted:
        reasons = MODULES["native"].objections(device, getattr(torch, trial.dtype), trial.operation)
        if reasons:
            if trial.operation not in refused:
                print(f"{trial.operation}: native does not run on {device}: {'; '.join(reasons)}", flush=True)
            refused.add(trial.operation)
            missing += 1
            continue
        load = watch.before(trial.case)
        try:
            values = row(trial, clock, tests)
        except Exception as error:  # a kernel that does not launch must not hide the others
            missing += 1
            print(f"{trial.operation} {trial.dtype} {trial.width} {trial.case}: {gate.reason(error)}", flush=True)
            continue
        found = (trial.operation, capability, trial.dtype, trial.width, trial.case, *values, *origin, load.cell)
        write_rows(out, FIELDS, [found], append=True)
        print(*found[:9], flush=True)
    return missing


def main(arguments: Sequence[str]) -> int:
    """Measure all, with what the stage `lane` left beside the table; 1 where a trial has no row."""
    out = Path(arguments[0])
    return measure(out, "cuda", trials("cuda"), lane(out.with_name("lane.xml"))) > 0


if __name__ == "__main__":
    demand_gpu("native")
    sys.exit(main(sys.argv[1:]))
