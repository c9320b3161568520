# SPDX-License-Identifier: Apache-2.0
"""The GPU call rehearsed without a GPU: every stage's own code runs to its end on the fake one."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.__main__ import parser
from benchmarks.gpu import REHEARSED, STAGES, Stage, conduct, rehearsal
from benchmarks.provenance import NO_GPU, read_rows
from tests import emulate, fake_gpu
from tests.conftest import skip_or_fail


@pytest.fixture(autouse=True)
def _emulates() -> None:
    if reason := emulate.absence():
        skip_or_fail("native", reason)


def states(out: Path, stages: list[Stage]) -> dict[str, str]:
    """How each stage ended; what it printed where it did not end well."""
    outcomes = conduct(stages, out, gpu.PATIENT, out.with_suffix(".tar.gz"), REHEARSED)
    for each in outcomes:
        if not each.good:
            print((out / f"{each.stage.name}.log").read_text()[-4000:])
    return {each.stage.name: each.state for each in outcomes}


@pytest.mark.exhaustive
def test_every_stage_ends_by_itself_and_well(tmp_path: Path) -> None:
    out = tmp_path / "found"
    assert states(out, rehearsal()) == {stage.name: "done" for stage in STAGES}
    report = (out / "report.md").read_text()
    assert "Rehearsal: no device, every figure meaningless. Finished" in report
    for table in ("targets", "cases", "growth", "pixel", "tune"):
        rows = read_rows(out / f"{table}.csv")
        assert rows, table
        assert all(NO_GPU in row["machine"] for row in rows), table
    assert {row["lane"] for row in read_rows(out / "cuda.csv")} == {"green"}
    assert {row["gpu"] for row in read_rows(out / "cuda.csv")} == {NO_GPU}
    with tarfile.open(tmp_path / "found.tar.gz") as packed:
        assert {f"found/{stage.name}.log" for stage in STAGES} <= set(packed.getnames())


def test_two_stages_and_their_report(tmp_path: Path) -> None:
    chosen = [stage for stage in rehearsal() if stage.name in ("build", "verdict")]
    assert states(tmp_path / "found", chosen) == {"build": "done", "verdict": "done"}
    log = (tmp_path / "found" / "build.log").read_text()
    assert NO_GPU in log
    assert log.count(": right") == 8  # three backends by three dtypes, but for native fp32
    assert "every figure meaningless" in (tmp_path / "found" / "report.md").read_text()


def test_a_stage_that_dies_of_its_own_is_seen(tmp_path: Path) -> None:
    broken = Stage("broken", 5, ("-m", "benchmarks.native_cuda", "{out}/absent/\0.csv"), "dies of its own")
    with pytest.raises(ValueError, match="null byte"):
        conduct(rehearsal([broken]), tmp_path)
    dying = Stage("dying", 30, ("-m", "benchmarks.verdict"), "is given no folder")
    (outcome,) = conduct(rehearsal([dying]), tmp_path)
    assert outcome.state == "failed: exit code 1"
    assert "IndexError" in (tmp_path / "dying.log").read_text()


def test_a_rehearsal_is_hidden_and_runs_the_same_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["gpu", "--help"])
    assert "rehearse" not in capsys.readouterr().out
    for stage, fake in zip(STAGES, rehearsal(), strict=True):
        module, *arguments = stage.command[1:]
        head = ["-m", "pytest", "-p", fake_gpu.__name__] if module == "pytest" else ["-m", fake_gpu.__name__, module]
        assert list(fake.command) == [*head, *arguments, *stage.rehearsed]
        assert fake.environment == stage.environment


ASKED_FOR = """
import pytest
import torch
from tests import fake_gpu

fake_gpu.install()
assert torch.cuda.is_available() and torch.cuda.get_device_name() == fake_gpu.NO_GPU
first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
first.record(); second.record()
assert first.elapsed_time(second) >= 0
here = torch.ones(3)
for place in ("cuda", "cuda:0", torch.device("cuda", 0)):
    for there in (torch.zeros(3, device=place), here.to(place), here.cuda()):
        assert there.is_cuda and there.device == torch.device("cuda", 0) and there.data_ptr()
        assert all(each.is_cuda for each in (there + 1, there * torch.tensor(2.0), torch.zeros_like(there)))
        assert not there.cpu().is_cuda and not here.is_cuda
leaf = torch.ones(3, device="cuda", requires_grad=True)
assert torch.autograd.grad((2 * leaf).sum(), leaf)[0].is_cuda
module = torch.nn.Linear(3, 2).to("cuda")
assert module.weight.is_cuda and module(there).is_cuda
for mixed in (
    lambda: there + here, lambda: torch.equal(there, here), lambda: here[there.long()], lambda: module(here),
    lambda: torch.stack([there, here]),
):
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        mixed()
assert there[torch.tensor([0, 2])].is_cuda and there.copy_(here).is_cuda
"""


def test_what_is_asked_for_on_cuda_meets_nothing_of_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED_FOR], cwd=gpu.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
