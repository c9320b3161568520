# SPDX-License-Identifier: Apache-2.0
"""Memory is a contract: O((N + M) D), measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY, skip_or_fail

MEASURE = """
import re, sys, torch, secl_ops
from pathlib import Path
def peak():  # of this process alone: ru_maxrss still holds the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(2)
n, backend = int(sys.argv[1]), sys.argv[2]
def step(rows):
    rows = rows.requires_grad_()
    labels = torch.arange(len(rows)) % 8
    secl_ops.info_nce(rows, anchor_labels=labels, denominator=sys.argv[3], backend=backend).backward()
step(torch.randn(256, 64))
before = peak()
step(torch.randn(n, 64))
print(peak() - before)
"""


def extra_mib(rows: int, backend: str, denominator: str) -> float:
    """Growth of the process's peak over one forward and backward pass."""
    command = [sys.executable, "-c", MEASURE, str(rows), backend, denominator]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return int(finished.stdout) / 1024


def test_native_memory_is_a_few_copies_of_the_rows() -> None:
    import secl_ops

    if secl_ops.backends()["native"]:
        skip_or_fail("native", "the native backend is not built")
    rows = 4096
    copy = rows * 64 * 4 / 2**20
    for denominator in ("negatives", "all"):
        # The dense matrix would be 64 MiB; rows, gradients, packed copies and panels are a dozen times 1 MiB.
        assert extra_mib(rows, "native", denominator) < 12 * copy + 8
    assert extra_mib(rows, "reference", "all") > rows * rows * 4 / 2**20
