# SPDX-License-Identifier: Apache-2.0
"""Memory is a contract: O((N + M) D), measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


IN_USE = """
import ctypes, sys, torch, secl_ops
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
count = getattr(ctypes.CDLL(None), "mallinfo2", None)
if count is None:
    sys.exit("this C library has no mallinfo2")
count.restype = Info
torch.set_num_threads(1)
maps, labels, rows = torch.randn(2, 8, 8, 8), torch.randint(0, 4, (2, 8, 8)), torch.randn(9, 8)
few, many, index = torch.arange(6) % 2, torch.arange(9) % 2, torch.tensor([1, 1, 5])
draw = {"per_class": 3, "num_classes": 4, "backend": "native"}
hard = {"strategy": "hard", "scores": labels.float(), "eligible": labels > 0}
def step(seed):
    z, k, w = (value.clone().requires_grad_() for value in (maps, rows, torch.ones(6)))
    losses = [secl_ops.pixel_contrast(z, labels, **draw, seed=seed),
              secl_ops.pixel_contrast(z, labels, z, **draw, seed=seed, **hard),
              secl_ops.gather_pixels(z, index, normalize=True, backend="native").sum()]
    for denominator in ("all", "negatives"):
        call = {"anchor_labels": few, "denominator": denominator, "backend": "native"}
        losses += [secl_ops.info_nce(k[:6], k, **call, key_labels=many, weights=w, anchor_groups=few, key_groups=many,
                                     exclude=few),
                   secl_ops.info_nce(k[:6], [k, rows], **call, key_labels=[many, many], reduction="none").sum()]
    sum(losses).backward()
for seed in range(100):
    step(seed)
def grown():
    before = count().uordblks
    for seed in range(200):
        step(seed)
    return count().uordblks - before
print(sorted(grown() for _ in range(3))[1])
"""


@pytest.mark.usefixtures("built")
def test_no_operation_keeps_a_number_of_a_step() -> None:
    """The middle of three stretches: what a step keeps is in each, what the process takes once in one of them."""
    finished = subprocess.run(
        [sys.executable, "-c", IN_USE], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if "no mallinfo2" in finished.stderr:
        skip_or_fail("native", finished.stderr.strip())
    assert not finished.returncode, finished.stderr
    assert int(finished.stdout) < 8 * 200


FRESH_LEAVES = """
import sys, torch, secl_ops
from pathlib import Path
torch.set_num_threads(1)
maps, labels = torch.randn(2, 32, 64, 64), torch.randint(0, 4, (2, 64, 64))
def native(z, seed):
    return secl_ops.pixel_contrast(z, labels, per_class=32, num_classes=4, seed=seed, backend="native")
def plain(z, seed):
    pixel = torch.randint(0, 8192, (256,))
    rows = torch.nn.functional.normalize(z.flatten(2).mT.flatten(0, 1)[pixel])
    same = labels.flatten()[pixel, None] == labels.flatten()[pixel]
    scores = rows @ rows.T / 0.1
    return (scores.logsumexp(1) - (scores * same).sum(1) / same.sum(1)).mean()
for seed in range(3000):
    z = maps.clone().requires_grad_()
    globals()[sys.argv[1]](z, seed).backward()
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""


@pytest.mark.exhaustive
@pytest.mark.usefixtures("built")
def test_a_loop_with_fresh_leaves_stays_as_small_as_plain_torch() -> None:
    """Where anything stays behind between the large blocks of a step, the heap grows by chance of the run."""

    def resident(loss: str) -> int:
        command = [sys.executable, "-c", FRESH_LEAVES, loss]
        return int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)

    bound = 1.5 * resident("plain")
    assert [size for size in (resident("native") for _ in range(5)) if size > bound] == []
