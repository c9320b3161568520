# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test: real data, devices, poisoned memory, and skips that may be forbidden.

`SECL_REQUIRE=cuda,native,triton` turns the skip of a lane that cannot run into a failure.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from _pytest.terminal import TerminalReporter

from secl_ops.autograd import COMPILES
from tests import draws, interpreting, lanes, sweeps

REPOSITORY = Path(__file__).resolve().parent.parent
ISAS = ("portable", "neon") if platform.machine() == "aarch64" else ("portable", "avx2", "avx512")
REQUIRED = set(filter(None, os.environ.get("SECL_REQUIRE", "").split(",")))
# The tests' tensors are small: waiting for a second thread costs more than it gives; ThreadSanitizer needs some.
torch.set_num_threads(int(os.environ.get("SECL_TEST_THREADS", "1")))
if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when Triton is first imported
    interpreting.quicken()


def pytest_sessionstart() -> None:
    """The GPU lane is the same tests on another device: without one it must not pass."""
    if "cuda" in REQUIRED and not torch.cuda.is_available():
        raise pytest.UsageError("SECL_REQUIRE=cuda, and torch sees no CUDA device")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the rest of each sweep before `-m` selects, and take away the parts of it that are not asked for."""
    sweeps.thin(items)
    if part := os.environ.get("SECL_PART"):
        items[:], left = sweeps.of_part(items, part)
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note beside each result how many examples the test drew; from a worker process it travels with the result."""
    before = draws.Examples.drawn
    try:
        return (yield)
    finally:
        if draws.Examples.drawn > before:
            item.user_properties.append(("examples", draws.Examples.drawn - before))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say how many examples were drawn, where they were drawn afresh."""
    if draws.SEED is not None:
        reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
        total = sum(value for report in reports for name, value in report.user_properties if name == "examples")
        terminalreporter.write_line(f"{total} examples of seed {draws.SEED}")


def skip_or_fail(lane: str, reason: str) -> NoReturn:
    """Skip a test whose lane cannot run here, or fail it where SECL_REQUIRE names the lane."""
    if lane in REQUIRED:
        pytest.fail(f"SECL_REQUIRE={lane}, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled images named by SECL_DATA, by default `../shared/data`."""
    folder = Path(os.environ.get("SECL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        skip_or_fail("data", f"no real images: SECL_DATA={folder} is not a folder")
    return folder


@pytest.fixture(autouse=not COMPILES)
def _graphs_of_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled whole or exported is a skip by name where torch cannot; what is compiled around a loss runs."""
    compile_around = torch.compile

    def refuse(*given: Any, **options: Any) -> NoReturn:
        skip_or_fail("compile", f"torch {torch.__version__} takes the losses into no graph")

    def compile_(*given: Any, fullgraph: bool = False, **options: Any) -> Any:
        return refuse() if fullgraph else compile_around(*given, **options)

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.export, "export", refuse)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN, and an operation without a deterministic form raises."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The backends of a test that leaves them to the fixture; and the native CUDA kernels, wherever they are."""
    chosen = any("backend" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not chosen:
        kernels = lanes.here() if metafunc.definition.get_closest_marker("cuda_kernels") else []
        metafunc.parametrize("backend", [*lanes.BACKENDS, *kernels], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on this machine, by name."""
    import secl_ops

    if request.param in lanes.PATHS:
        lanes.enter(request.param, request)
        return "native"
    name = lanes.MANY.get(request.param, str(request.param))
    reasons = secl_ops.backends()[name]
    if reasons:
        skip_or_fail(name, f"backend {name} cannot run: {'; '.join(reasons)}")
    if request.param in lanes.MANY:
        request.getfixturevalue("many_rows")
    return name


@pytest.fixture
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations for many rows, which a traced graph holds, whatever the number of rows."""
    from secl_ops import small

    monkeypatch.setattr(small, "serves", lambda *_: False)


def _lane(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params.get("backend", ""))


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest) -> str:
    """Where this backend's tensors live in the tests."""
    on_the_gpu = _lane(request) in lanes.ON_THE_GPU or (backend != "native" and torch.cuda.is_available())
    return "cuda" if on_the_gpu else "cpu"


@pytest.fixture
def fitted(backend: str, request: pytest.FixtureRequest) -> lanes.Fit:
    """Makes of a call one that these kernels take."""
    return functools.partial(lanes.fit, _lane(request))


@pytest.fixture
def built() -> None:
    """Skip where the C++ extension is not built."""
    from secl_ops import library

    if library.ABSENCE:
        skip_or_fail("native", library.ABSENCE)


@pytest.fixture
def emulated() -> Iterator[Any]:
    """The CUDA operations on the emulated GPU, for CPU tensors."""
    from tests import emulate

    if reason := emulate.absence():
        skip_or_fail("native", reason)
    emulate.load()
    yield torch.ops.secl_emulated
    torch.ops.secl_emulated.set_reversed(False)
    torch.ops.secl_emulated.set_multiprocessors(4)
    torch.ops.secl_emulated.set_capability(80)
    torch.ops.secl_emulated.set_shared_memory_limit(227 << 10)


@pytest.fixture
def gpu(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serves the native backend by the emulated CUDA kernels."""
    from secl_ops.engines import native

    monkeypatch.setattr(native, "_operations", lambda: emulated)
    monkeypatch.setattr(native, "serves_cuda", lambda tensor: True)
    return emulated


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, built: None) -> Iterator[str]:
    """Each instruction set that this machine runs, forced for one test."""
    try:
        torch.ops.secl_native.set_isa(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield str(request.param)
    torch.ops.secl_native.set_isa("auto")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
