# SPDX-License-Identifier: Apache-2.0
"""The sanitizer stage of the GPU call, with a program in the place of compute-sanitizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import build, memcheck
from benchmarks.memcheck import TOOLS, WAYS, WRONG, check, sanitizer, watch, ways_here


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Says what it was given; finds a race in Triton's kernels, and fails on fp32."""
    file = tmp_path / "bin" / "compute-sanitizer"
    file.parent.mkdir()
    file.write_text(
        f"""#!/bin/sh
echo "$@ path=$SECL_CUDA_PATH cache=$PYTORCH_NO_CUDA_MEMORY_CACHING"
case "$@" in
  *slow*) sleep 30;;
  *racecheck*triton*bfloat16) echo "a race"; exit {WRONG};;
  *float32) echo "no such kernel" >&2; exit 1;;
esac
"""
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return str(file)


def test_every_tool_looks_at_every_path(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitizer() == program
    assert watch(program) == 4
    told = capsys.readouterr().out
    for tool in TOOLS:
        for way in WAYS:
            state = "faults found" if (tool, way.name) == ("racecheck", "triton") else "clean"
            assert f"{tool} {way.name}: {'failed: exit code 1' if way.dtype == 'float32' else state}\n" in told
    assert "a race" in told
    assert "no such kernel" in told


def test_a_check_has_its_path_and_no_cache(program: str) -> None:
    (hopper,) = [way for way in WAYS if way.environment]
    state, printed = check(program, "memcheck", hopper)
    assert state == "clean"
    assert printed.startswith(f"--tool memcheck --error-exitcode {WRONG} --target-processes all ")
    assert "-m benchmarks.build native float16 path=hopper cache=1" in printed


def test_a_check_that_hangs_is_said(program: str) -> None:
    state, _ = check(program, "memcheck", memcheck.Way("slow", "slow", "bfloat16"), seconds=0.5)
    assert state == "not finished in 0 s"


def test_without_the_program_that_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert watch(sanitizer()) == 1
    assert "comes with the CUDA toolkit" in capsys.readouterr().out


def test_the_hopper_kernels_are_for_that_chip() -> None:
    assert ways_here((9, 0)) == list(WAYS)
    assert [way.name for way in ways_here((8, 0))] == ["native", "triton", "triton-fp32"]


@pytest.mark.parametrize(("state", "status"), [("right", 0), ("error 1 above its budget 0", 1)])
def test_one_backend_can_be_asked_for(
    state: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def small(*given: str) -> str:
        asked.append(given)
        return state

    monkeypatch.setattr(build, "small", small)
    assert build.main(["triton", "float16"]) == status
    assert asked == [("triton", "cuda", "float16")]
    assert capsys.readouterr().out == f"{state}\n"
