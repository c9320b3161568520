# SPDX-License-Identifier: Apache-2.0
"""The machine code of Hopper's contrast kernels: products that are not serialised, copies, registers, exponentials."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, skip_or_fail

FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
NAME = re.compile(r"ElementE(\d)ELi(\d+)ELNS1_7PurposeE(\d)")
# (strips of a consumer, columns in flight, exponentials in 16 that fused multiply-adds compute) by width.
SCAN = {64: (2, 128, 5), 128: (2, 128, 4), 256: (2, 80, 0)}
VALUE = {64: (2, 96, 4), 128: (2, 64, 0), 256: (1, 64, 0)}
GRADIENT = {64: (2, 64, 4), 128: (2, 64, 0), 256: (1, 64, 0)}
BOTH, VALUES = 4, 1  # the last and the second of enum Purpose
SOURCES = {"scan": (SCAN, 6), "value": (VALUE, 6), "gradient": (GRADIENT, 18)}


def exponentials(plan: tuple[int, int, int], half: bool, purpose: int) -> int:
    """MUFU.EX2 in one turn of the loop: of the tiles without masks, and of those with masks."""
    strips, columns, polynomial = plan
    each = strips * columns // 2  # pairs of a thread
    if half and purpose == VALUES:  # one body for both, and what two rows shrink by
        return each + 2 * strips
    return each * (16 - polynomial) // 16 + each * (2 if purpose == BOTH else 1)


@pytest.mark.parametrize("source", SOURCES)
def test_machine_code(source: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        skip_or_fail("nvcc", "nvcc was not found; install the CUDA toolkit")
    knobs = pytest.importorskip("triton.knobs", reason="Triton's wheel carries the disassembler")
    file, target = REPOSITORY / "csrc" / "cuda" / "hopper" / f"{source}_sm90a.cu", tmp_path / "kernels.cubin"
    command = [nvcc, *FLAGS, "-cubin", "-o", str(target), str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # C7508: setmaxnreg is ignored; C7510 to C7518: products are serialised.
    assert not re.findall(r"C7508.*|C751[0-8].*|.*serialized.*", said)
    plans, count = SOURCES[source]
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills == [("0", "0", "0")] * count
    disassembled = [knobs.nvidia.cuobjdump.path, "-sass", str(target)]
    code = subprocess.run(disassembled, capture_output=True, text=True, check=True).stdout.split("Function : ")[1:]
    assert len(code) == count
    for kernel in code:
        found = NAME.search(kernel)
        assert found is not None
        half, width, purpose = found[1] == "1", int(found[2]), int(found[3])
        ending = "F32" if half else r"F32\.BF16"
        assert re.search(rf"HGMMA\.64x{plans[width][1]}x16\.{ending} R\d+, gdesc", kernel), found[0]
        if source != "scan":  # the weights come from registers
            assert re.search(rf"HGMMA\.64x{width}x16\.{ending} R\d+, R\d+, gdesc\[UR\d+\]\.tnspB", kernel), found[0]
        assert kernel.count("USETMAXREG") == 2, found[0]
        assert "UTMALDG.2D" in kernel, found[0]
        assert kernel.count("MUFU.EX2") == exponentials(plans[width], half, purpose), found[0]
