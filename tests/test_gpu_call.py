# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks gpu`: stages fail, hang and are killed, and the report still says how far each came."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import parser
from benchmarks.gpu import GRACE, STAGES, TOTAL, Outcome, Stage, conduct

SLEEP = "import time; print('begun', flush=True); time.sleep(120)"
GOOD = Stage(
    "good", 5, ("-c", "import sys; open(sys.argv[1] + '/good.csv', 'w').write('x')", "{out}"), "writes a table"
)
FAILING = Stage("failing", 5, ("-c", "print('half a result', flush=True); raise SystemExit(3)"), "fails")
SLOW = Stage("slow", 1, ("-c", SLEEP), "hangs")
LAST = Stage("last", 5, ("-c", "print('still here')"), "comes last")


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {each.stage.name: each.state for each in outcomes}


def test_a_failing_stage_is_a_line_and_the_next_one_runs(tmp_path: Path) -> None:
    found = states(conduct([FAILING, GOOD], tmp_path, total=60))
    assert found == {"failing": "failed: exit code 3", "good": "done"}
    assert (tmp_path / "good.csv").read_text() == "x"
    assert (tmp_path / "failing.log").read_text() == "half a result\n"
    report = (tmp_path / "report.md").read_text()
    assert "Not done: failing." in report
    assert "| failing | failed: exit code 3 |" in report


def test_a_hanging_stage_ends_and_the_later_ones_keep_their_promise(tmp_path: Path) -> None:
    start = time.monotonic()
    found = states(conduct([SLOW, LAST], tmp_path, total=LAST.seconds + GRACE + 2))
    assert found["slow"].startswith("timed out after 2 s")
    assert found["last"] == "done"
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert time.monotonic() - start < LAST.seconds + 2 * GRACE + 2


def test_what_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    begin = f"import subprocess, sys; begun = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); "
    nested = begin + "print(begun.pid, flush=True); begun.wait()"
    conduct([Stage("nested", 1, ("-c", nested), "starts another process")], tmp_path, total=GRACE + 2)
    assert gone(int((tmp_path / "nested.log").read_text().split()[0]))


def test_a_stage_that_will_not_end_is_made_to(tmp_path: Path) -> None:
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    found = states(conduct([Stage("stubborn", 1, ("-c", stubborn), "ignores SIGTERM")], tmp_path, total=GRACE + 2))
    assert found["stubborn"].startswith("timed out")


def test_without_time_a_stage_is_not_begun(tmp_path: Path) -> None:
    assert states(conduct([GOOD], tmp_path, total=GRACE / 2)) == {"good": "not run: no time was left"}
    assert not (tmp_path / "good.csv").exists()


def test_a_stage_gets_its_environment_and_the_folder(tmp_path: Path) -> None:
    show = Stage(
        "show", 5, ("-c", "import os, sys; print(os.environ['LANE'], sys.argv[1])", "{out}/x"), "", {"LANE": "a"}
    )
    conduct([show], tmp_path, total=60)
    assert (tmp_path / "show.log").read_text() == f"a {tmp_path}/x\n"


def test_the_verdict_of_this_call_stands_in_the_report(tmp_path: Path) -> None:
    (tmp_path / gpu.VERDICT).write_text("of an earlier call")
    write = Stage("verdict", 5, ("-c", "import sys; open(sys.argv[1], 'w').write('met: all')", "{out}/verdict.md"), "")
    conduct([GOOD], tmp_path, total=60)
    assert "earlier" not in (tmp_path / "report.md").read_text()
    conduct([write], tmp_path, total=60)
    assert "met: all" in (tmp_path / "report.md").read_text()


def test_the_archive_grows_with_the_report(tmp_path: Path) -> None:
    found, look = tmp_path / "found", "import sys, tarfile; print(tarfile.open(sys.argv[1]).getnames())"
    archive = tmp_path / "found.tar.gz"
    inside = Stage("inside", 5, ("-c", look, str(archive)), "")
    assert states(conduct([GOOD, inside], found, total=60, archive=archive)) == {"good": "done", "inside": "done"}
    assert "found/good.csv" in (found / "inside.log").read_text()
    with tarfile.open(archive) as packed:
        assert {"found/report.md", "found/good.csv", "found/inside.log"} <= set(packed.getnames())
        report = packed.extractfile("found/report.md")
        assert report is not None
        assert b"All done." in report.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found", "found.tar.gz"]


def test_a_report_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.report(tmp_path, [Outcome(GOOD, "done")], "first")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        gpu.report(tmp_path, [Outcome(GOOD, "failed")], "second")
    assert "first" in (tmp_path / "report.md").read_text()


def gone(process: int) -> bool:
    """Whether a process has ended; the kernel may take a moment."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


HALF_WAY = """
import sys
from pathlib import Path
from benchmarks.gpu import conduct
from tests.test_gpu_call import GOOD, LAST, SAYS_ITS_NUMBER
conduct([GOOD, SAYS_ITS_NUMBER, LAST], Path(sys.argv[1]), total=300)
"""
SAYS_ITS_NUMBER = Stage(
    "long", 5, ("-c", f"import os; print(os.getpid(), flush=True); {SLEEP}"), "is running when the call ends"
)


@pytest.fixture
def half_way(tmp_path: Path) -> Callable[[signal.Signals], tuple[int, int, str]]:
    """Sends a signal to a call whose second stage runs: exit code, that stage's process, and the report."""

    def stop(number: signal.Signals) -> tuple[int, int, str]:
        call = subprocess.Popen([sys.executable, "-c", HALF_WAY, str(tmp_path)], cwd=gpu.REPOSITORY)
        log, end = tmp_path / "long.log", time.monotonic() + 120
        while not (log.exists() and "begun" in log.read_text()):
            assert call.poll() is None, "the call ended by itself"
            assert time.monotonic() < end, "the second stage never began"
            time.sleep(0.05)
        call.send_signal(number)
        code = call.wait(timeout=60)
        return code, int(log.read_text().split()[0]), (tmp_path / "report.md").read_text()

    return stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_call_says_what_it_has(
    number: signal.Signals, half_way: Callable[[signal.Signals], tuple[int, int, str]], tmp_path: Path
) -> None:
    code, stage, report = half_way(number)
    assert code == 128 + number
    assert gone(stage)
    assert f"Stopped by {number.name} during long" in report
    assert "| good | done |" in report
    assert f"| long | stopped by {number.name} |" in report
    assert "| last | not run |" in report
    assert (tmp_path / "good.csv").read_text() == "x"


def test_a_killed_call_has_said_what_it_had(half_way: Callable[[signal.Signals], tuple[int, int, str]]) -> None:
    code, stage, report = half_way(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert gone(stage)
    assert "Not finished" in report
    assert "| good | done |" in report
    assert "| long | running: where nothing runs any more, the call was killed here |" in report
    assert "| last | not run |" in report


def test_the_promises_fit_and_what_closes_comes_last() -> None:
    assert sum(stage.seconds for stage in STAGES) <= TOTAL == 480
    assert [stage.name for stage in STAGES[-2:]] == ["pictures", "verdict"]
    assert len({stage.name for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_exists(stage: Stage) -> None:
    assert stage.command[0] == "-m"
    module, *arguments = stage.command[1:]
    assert importlib.util.find_spec(module) is not None
    if module == "benchmarks":
        parser().parse_args(arguments)
    if module == "pytest":
        files = [name for name in arguments if name.startswith("tests")]
        assert files
        assert all((gpu.REPOSITORY / name).is_file() for name in files)  # a folder would undo the order of the files


def test_every_file_that_asks_for_a_device_is_among_the_tests() -> None:
    asks = re.compile(r"^DEVICE = |[(,] ?device: str", re.MULTILINE)
    found = {path.name for path in (gpu.REPOSITORY / "tests").glob("test_*.py") if asks.search(path.read_text())}
    run = {Path(part).name for stage in STAGES for part in stage.command}
    later = {Path(part).name for part in gpu.LATER}
    assert found <= run | later
    assert later <= found - run


@pytest.mark.parametrize("module", sorted({stage.command[1] for stage in STAGES}))
def test_no_stage_needs_the_packages_of_secl_models(module: str) -> None:
    refuse = "import sys, importlib; sys.modules |= dict.fromkeys(['nibabel', 'monai', 'lightning_fabric', 'pdoc']); "
    names = [f"tests.{name[6:-3]}" for stage in STAGES for name in stage.command if name.startswith("tests/test_")]
    programs = {"secl_models": ["secl_models.command.doctor"], "benchmarks": ["benchmarks.__main__"]}
    wanted = {"pytest": sorted(set(names)), **programs}.get(module, [module])
    code = f"{refuse}[importlib.import_module(name) for name in {wanted}]"
    subprocess.run([sys.executable, "-c", code], cwd=gpu.REPOSITORY, check=True)


def test_the_pictures_find_the_tables_that_the_stages_write() -> None:
    from benchmarks.figures import FIGURES

    written = {Path(part).name for stage in STAGES for part in stage.command if part.endswith(".csv")}
    assert {table for table, _ in FIGURES.values()} - written == {"memory.csv"}  # minutes: a command of its own


@pytest.mark.parametrize("module", ["targets", "native_cuda", "build"])
def test_a_stage_alone_refuses_without_a_gpu(module: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", f"benchmarks.{module}", str(tmp_path / "table.csv")]
    done = subprocess.run(command, cwd=gpu.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("command", ["gpu", "tune"])
def test_without_a_gpu_the_command_refuses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = parser().parse_args([command, "--out", str(tmp_path / "found")])
    with pytest.raises(SystemExit, match=f"benchmarks {command} needs a CUDA device; torch .* sees none"):
        given.call(given)
    assert not (tmp_path / "found").exists()
