# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks gpu --out DIR`: all that a GPU's owner is asked for, in one call of at most eight minutes.

Each stage is a process of its own and keeps the time promised to it whatever came before; a stage that fails or takes
too long is a line of the report. The report is rewritten before and after each stage, so that a call that is stopped,
even by SIGKILL, leaves what it has so far and says where it was.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from benchmarks.provenance import commit, today

REPOSITORY = Path(__file__).resolve().parent.parent
TOTAL = 480.0  # seconds
PATIENT = 1200.0  # of a rehearsal
REHEARSED = "Rehearsal: no device, every figure meaningless. "
GRACE = 3.0  # seconds between asking a stage to end and ending it
POLL = 0.05
VERDICT = "verdict.md"


@dataclass(frozen=True)
class Stage:
    """One process; `{out}` in its command stands for the folder of this call."""

    name: str
    seconds: float  # promised to it; it also gets what no later stage was promised
    command: tuple[str, ...]  # arguments of this Python
    purpose: str
    environment: Mapping[str, str] = field(default_factory=dict)
    rehearsed: tuple[str, ...] = ()  # arguments more where the call is rehearsed without a GPU


# Processes that share the GPU, each of which compiles what its tests launch; `load` keeps the tests in their order.
PARALLEL = ("-n", str(min(12, os.cpu_count() or 1)), "--dist", "load") if find_spec("xdist") else ()
# Those that ask for a device, in order of worth. Files by name: a folder beside them would undo the order.
_TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "triton", "triton_order", "triton_numbers", "backends", "device_step", "sample", "sample_lists", "shards",
        "key_weights", "traps", "heads", "properties", "refusals", "tune", "few_launches", "few_parts", "sigmoid",
    )
)  # fmt: skip
LATER = tuple(
    f"tests/test_{name}.py"
    for name in (
        "compat_contrastiveseg", "compat_metric_learning", "compat_published", "compat_views", "first_order",
        "sigmoid_rules", "surroundings",
    )
)  # fmt: skip
"""Tests that also take a device, of thin layers over what the stages run: `make test-gpu` has them."""
_PLUGINS = ("-p", "no:cacheprovider", "-p", "no:benchmark")
_PYTEST = ("-m", "pytest", "-v", "-W", "default", *_PLUGINS, "--color", "no", *PARALLEL)
_REQUIRED = {"SECL_REQUIRE": "cuda,triton"}
_LANE = "native-cuda or native-hopper"
_SHARED = tuple(f"tests/test_{name}.py" for name in ("backends", "gpu_lane", "key_weights", "sigmoid"))
_ON_CUDA = ("--device", "cuda", "--patience", "4")
_BRIEF = ("--rounds", "1", "--threads", "1")

# In order of worth: what comes late is lost first where time runs out. The last two are promised theirs all the same.
# The smoke tests and `precompile` fill Triton's cache from several processes: those after them find their kernels.
STAGES = (
    Stage("environment", 12, ("-m", "secl_models", "doctor"), "processor, memory, versions, packages"),
    Stage("build", 25, ("-m", "benchmarks.build"), "card, driver, what is built, and whether each backend is right"),
    Stage(
        "smoke", 50, (*_PYTEST, "-m", "", "tests/test_gpu_smoke.py"), "every Triton kernel and switch once, and right",
        _REQUIRED, ("-k", "learns"),
    ),
    Stage("precompile", 30, ("-m", "benchmarks.precompile"), "what the tables time, compiled by several processes"),
    Stage("targets", 65, ("-m", "benchmarks.targets", "{out}/targets.csv"), "the sizes that have a target"),
    Stage(
        "lane", 30,
        (*_PYTEST, "-m", "", "-k", _LANE, "--junitxml", "{out}/lane.xml", *_SHARED),
        "the shared cases on the native CUDA kernels", _REQUIRED, ("-k", f"temperature_tensor and ({_LANE})"),
    ),
    Stage("native", 40, ("-m", "benchmarks.native_cuda", "{out}/cuda.csv"), "CUDA kernels: right, and beside Triton's"),
    Stage(
        "tests", 65, (*_PYTEST, *_TESTS), "the tests on this device, none skipped for want of one", _REQUIRED,
        ("-k", "test_positive_without_negative and (triton or reference)"),
    ),
    Stage("memcheck", 35, ("-m", "benchmarks.memcheck"), "compute-sanitizer: bounds, races, barriers"),
    Stage(
        "pixel", 25, ("-m", "benchmarks", "pixel", *_ON_CUDA, "--out", "{out}/pixel.csv"), "the whole pixel step",
        rehearsed=_BRIEF,
    ),
    Stage(
        "rivals", 40, ("-m", "benchmarks", "run", *_ON_CUDA, "--out", "{out}/cases.csv"), "published sizes, rivals",
        rehearsed=(*_BRIEF, "--case", "contrastiveseg"),
    ),
    Stage(
        "sweep", 20, ("-m", "benchmarks", "sweep", *_ON_CUDA, "--width", "128", "--out", "{out}/growth.csv"),
        "time and memory against N", rehearsed=(*_BRIEF, "--largest", "2048"),
    ),
    Stage(
        "tune", 15,
        ("-m", "benchmarks", "tune", "--dtype", "bf16", "--width", "128", "--seconds", "8", "--out", "{out}/tune.csv"),
        "tiles beside those of the table, as far as they come; alone, the command times them all",
        rehearsed=("--rounds", "1"),
    ),
    Stage("pictures", 18, ("-m", "benchmarks", "plot", "--results", "{out}", "--out", "{out}"), "figures"),
    Stage("verdict", 10, ("-m", "benchmarks.verdict", "{out}"), "each target: met, or missed and what to try next"),
)  # fmt: skip
FAKE = "tests.fake_gpu"


def rehearsal(stages: Sequence[Stage] = STAGES) -> list[Stage]:
    """The same stages on a GPU that is not there."""

    def on_the_fake(stage: Stage) -> Stage:
        _, module, *arguments = stage.command
        fake = ("-m", "pytest", "-p", FAKE) if module == "pytest" else ("-m", FAKE, module)
        return replace(stage, command=(*fake, *arguments, *stage.rehearsed))

    return list(map(on_the_fake, stages))


@dataclass(frozen=True)
class Outcome:
    """How far a stage came."""

    stage: Stage
    state: str = "not run"
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the stage ended by itself, and well."""
        return self.state == "done"


class StoppedError(BaseException):
    """This call was asked to end; nothing may catch it on its way."""


def write_whole(file: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    partial = file.with_suffix(file.suffix + ".part")
    partial.write_text(text)
    os.replace(partial, file)


def report(out: Path, outcomes: Sequence[Outcome], headline: str) -> None:
    """Write the state of the call, and the verdict where there is one."""
    lines = [
        "# GPU report", "", headline, "",
        "| stage | state | seconds | log | what it is for |", "|---|---|---|---|---|",
        *(
            f"| {each.stage.name} | {each.state} | {each.seconds:.1f} | {_log(out, each)} | {each.stage.purpose} |"
            for each in outcomes
        ),
    ]  # fmt: skip
    verdict = out / VERDICT
    if verdict.exists():
        lines += ["", verdict.read_text().rstrip()]
    write_whole(out / "report.md", "\n".join(lines) + "\n")


def pack(out: Path, archive: Path) -> None:
    """Write the folder of a call into one .tar.gz, which takes the place of the one before when it is whole."""
    partial = archive.with_suffix(archive.suffix + ".part")
    with tarfile.open(partial, "w:gz") as packed:
        packed.add(out, arcname=out.resolve().name)
    os.replace(partial, archive)


def _log(out: Path, outcome: Outcome) -> str:
    name = f"{outcome.stage.name}.log"
    return f"`{name}`" if (out / name).exists() else ""


def conduct(
    stages: Sequence[Stage], out: Path, total: float = TOTAL, archive: Path | None = None, note: str = ""
) -> list[Outcome]:
    """Run every stage in order, each within its promise and what nobody else was promised.

    Args:
        stages: What is run.
        out: The folder of the report, the logs and the tables.
        total: Seconds for all of them.
        archive: A .tar.gz of that folder, written anew with each report.
        note: What the report begins with.

    Raises:
        SystemExit: The call was stopped by SIGTERM or SIGINT; the report says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / VERDICT).unlink(missing_ok=True)  # of an earlier call into this folder
    outcomes = [Outcome(stage) for stage in stages]
    origin = f"commit {commit()}, {today()}"

    def tell(headline: str) -> None:
        report(out, outcomes, note + headline)
        if archive is not None:
            pack(out, archive)

    end = time.monotonic() + total
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    place = 0
    try:
        for place, stage in enumerate(stages):
            limit = end - time.monotonic() - sum(later.seconds for later in stages[place + 1 :])
            outcomes[place] = Outcome(stage, "running: where nothing runs any more, the call was killed here")
            tell(f"Not finished, {origin}.")
            outcomes[place] = run_stage(stage, out, limit)
            tell(f"Not finished, {origin}.")
    except StoppedError as stopped:
        outcomes[place] = replace(outcomes[place], state=f"stopped by {stopped}")
        tell(f"Stopped by {stopped} during {stages[place].name}, {origin}; the rest was not run.")
        raise SystemExit(128 + signal.Signals[str(stopped)]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    wrong = [each.stage.name for each in outcomes if not each.good]
    tell(f"Finished, {origin}. " + (f"Not done: {', '.join(wrong)}." if wrong else "All done."))
    return outcomes


def _stop(number: int, _: FrameType | None) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGINT):  # what is left to do now is short
        signal.signal(each, signal.SIG_IGN)
    raise StoppedError(signal.Signals(number).name)


def run_stage(stage: Stage, out: Path, limit: float) -> Outcome:
    """Run one stage for at most `limit` seconds, all it prints going into its log as it comes."""
    start = time.monotonic()
    if limit <= GRACE:
        return Outcome(stage, "not run: no time was left")
    command = [sys.executable, *(part.replace("{out}", str(out.resolve())) for part in stage.command)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
    with (out / f"{stage.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            state = _wait(process, start + limit - GRACE)
        finally:
            _end(process)
    return Outcome(stage, state, time.monotonic() - start)


def _wait(process: subprocess.Popen[bytes], end: float) -> str:
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() > end:
            return f"timed out after {end - start:.0f} s: its log and tables hold what it had"
        time.sleep(POLL)
    if process.returncode < 0:
        return f"failed: {signal.Signals(-process.returncode).name}"
    return "done" if process.returncode == 0 else f"failed: exit code {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a stage and whatever it started: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE if number == signal.SIGTERM else None)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


_LIBC = ctypes.CDLL(None)
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG


def _end_with_parent() -> None:
    """A stage does not outlive a call that was killed: the GPU is free again."""
    _LIBC.prctl(_PARENT_DEATH, signal.SIGKILL)


def gpu(out: Path, archive: Path | None = None, *, rehearse: bool = False) -> None:
    """Run all stages on this machine's GPU, or rehearse them without one.

    Raises:
        SystemExit: There is no GPU, the call was stopped, or a stage is not done; the report says which.
    """
    if rehearse:
        outcomes = conduct(rehearsal(), out, PATIENT, archive, REHEARSED)
    else:
        demand_gpu("gpu")
        outcomes = conduct(STAGES, out, archive=archive)
    print((out / "report.md").read_text())
    if not all(each.good for each in outcomes):
        raise SystemExit(1)


def demand_gpu(command: str) -> None:
    """Refuse to go on without a CUDA device.

    Raises:
        SystemExit: torch sees none.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            f"python -m benchmarks {command} needs a CUDA device; torch {torch.__version__} sees none "
            f"(built for CUDA: {torch.version.cuda or 'no'}); run it on a machine with an NVIDIA GPU and a CUDA build "
            "of torch; `python -m benchmarks static` tells what can be known without one"
        )
