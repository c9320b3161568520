# SPDX-License-Identifier: Apache-2.0
"""The sanitizers of `make sanitize` watch the extension and would speak: each is given a fault that it must report."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests import sanitize

LANE = os.environ.get("SECL_SANITIZE", "")

FOREIGN_ROWS = """
import ctypes, torch, secl_ops
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def rows(bytes_held, shift):
    "Four rows of 64 floats over memory of our own, which torch cannot check."
    memory = (ctypes.c_float * 256).from_address(libc.malloc(bytes_held) + shift)
    return torch.frombuffer(memory, dtype=torch.float32).view(4, 64)
def normalised(given):
    torch.ops.secl_native.unit_rows(given, torch.zeros(4, dtype=torch.int32))
def reduced(given):
    torch.ops.secl_native.reduce(given[0], torch.ones(64), torch.ones(64, dtype=torch.int32), None, 0)
%s(rows(%d, %d))
"""
TWO_WRITERS = """
import threading, torch, secl_ops
grad, index, result = torch.ones(20_000, 4), torch.arange(20_000), torch.zeros(1, 4, 20_000)
start = threading.Barrier(2)
def write():
    start.wait()
    for _ in range(%d):
        torch.ops.secl_native.gather_backward(grad, None, None, index, None, None, True, result)
threads = [threading.Thread(target=write) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
FAULTS = [
    ("address", FOREIGN_ROWS % ("normalised", 512, 0), "AddressSanitizer: heap-buffer-overflow"),
    ("address", FOREIGN_ROWS % ("reduced", 1032, 1), "runtime error: load of misaligned address"),
    ("thread", TWO_WRITERS % 10, "ThreadSanitizer: data race"),
]
CLEAN = {"address": FOREIGN_ROWS % ("normalised", 1024, 0), "thread": TWO_WRITERS % 0}


def report(program: str) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=sanitize.environment(LANE), capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.skipif(not LANE, reason="no sanitizer; `make sanitize` runs this")
@pytest.mark.parametrize(("lane", "program", "message"), FAULTS, ids=["overflow", "undefined", "race"])
def test_a_fault_is_reported(lane: str, program: str, message: str) -> None:
    if lane != LANE:
        pytest.skip(f"it is for the lane {lane}")
    found = report(program)
    assert message in found
    assert "csrc/cpu" in found
    assert report(CLEAN[lane]) == ""


@pytest.mark.skipif(not LANE, reason="no sanitizer; `make sanitize` runs this")
def test_the_checked_extension_is_the_one_that_runs() -> None:
    import secl_ops

    assert not secl_ops.backends()["native"]
    assert {str(path) for path in torch.ops.loaded_libraries if "secl_ops" in str(path)} == {
        str(sanitize.folder(LANE) / "lib" / "secl_ops" / "_C.abi3.so")
    }


@pytest.mark.parametrize("lanes", [[], ["memory"], ["address", "memory"]])
def test_an_unknown_sanitizer_is_refused(lanes: list[str]) -> None:
    with pytest.raises(SystemExit, match="name one or more of address, thread; got"):
        sanitize.main(lanes)


def test_setup_refuses_an_unknown_sanitizer() -> None:
    program = [sys.executable, "setup.py", "--name"]
    variables = {**os.environ, "SECL_BUILD": "cpu", "SECL_SANITIZE": "memory"}
    done = subprocess.run(program, cwd=sanitize.REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == "SECL_SANITIZE must be one of address, thread; got 'memory'"
