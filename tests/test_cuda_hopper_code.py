# SPDX-License-Identifier: Apache-2.0
"""The machine code of Hopper's contrast kernels: products that are not serialised, copies, registers, exponentials.

Bounds say what the kernels' speed rests on; within them a compiler may choose.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY, skip_or_fail

FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
NAME = re.compile(r"ElementE(\d)ELi(\d+)ELNS1_7PurposeE(\d)")
BOTH, VALUES, SCAN = 4, 1, 0  # of enum Purpose
KERNELS = {"scan": 6, "value": 6, "gradient": 18}  # of each source


class Kernel(NamedTuple):
    """What a kernel was compiled for, and the plan that csrc/cuda/hopper/plan.h makes for that."""

    half: bool
    width: int
    purpose: int

    @property
    def plan(self) -> tuple[int, int, int]:
        """Strips of a consumer, columns in flight, exponentials in 16 that fused multiply-adds compute."""
        if self.purpose == SCAN:
            return {64: (2, 128, 5), 128: (2, 128, 4), 256: (2, 80, 0)}[self.width]
        if self.purpose == VALUES:
            return {64: (2, 96, 4), 128: (2, 64, 0), 256: (1, 64, 0)}[self.width]
        return {64: (2, 64, 4), 128: (2, 64, 0), 256: (1, 64, 0)}[self.width]

    def exponentials(self) -> tuple[float, float]:
        """Fewest and most MUFU.EX2 in one turn of the loop, over its bodies with and without masks."""
        strips, columns, polynomial = self.plan
        each = strips * columns // 2  # pairs of a thread
        if self.half and self.purpose == VALUES:  # one body for both, and what two rows shrink by
            return each, 1.05 * (each + 2 * strips)
        without = each * (16 - polynomial) / 16
        # Bodies may share code. A polynomial that is not used adds 9 % to 19 %, and binds the special unit again.
        return without, 1.05 * (without + each * (2 if self.purpose == BOTH else 1))


def faults(code: str, kernel: Kernel) -> list[str]:
    """What the disassembly of a kernel lacks, or has too much of."""
    strips, columns, _ = kernel.plan
    ending = "F32" if kernel.half else r"F32\.BF16"

    def found(pattern: str) -> int:
        return len(re.findall(pattern, code))

    least, most = kernel.exponentials()
    holds = {
        # Every strip against the columns in flight, 16 numbers of the rows' width at a time.
        "score products": found(rf"HGMMA\.64x{columns}x16\.{ending} R\d+, gdesc") >= strips * kernel.width // 16,
        # Every strip's weights, 16 columns at a time, from registers: shared memory is what scores are bound by.
        "value products": kernel.purpose == SCAN
        or found(rf"HGMMA\.64x{kernel.width}x16\.{ending} R\d+, R\d+") >= strips * columns // 16,
        "no products of a single warp": not found(r"\bHMMA\b"),  # they reach half the rate
        # By the copy engine, in boxes of 64 numbers: of the rows, and of the columns.
        "copies of tiles": found(r"UTMALDG\.2D") >= 2 * kernel.width // 64,
        "registers that change hands": found("USETMAXREG") >= 2,  # the producer's, to the consumers
        "no registers in memory": not found(r"\b(LDL|STL)\b"),  # the budget of registers is planned to the last
        "exponentials of the special unit": least <= found(r"MUFU\.EX2") <= most,
    }
    return [name for name, held in holds.items() if not held]


@pytest.mark.exhaustive
@pytest.mark.parametrize("source", KERNELS)
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
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills == [("0", "0", "0")] * KERNELS[source]
    disassembled = [knobs.nvidia.cuobjdump.path, "-sass", str(target)]
    code = subprocess.run(disassembled, capture_output=True, text=True, check=True).stdout.split("Function : ")[1:]
    assert len(code) == KERNELS[source]
    for each in code:
        named = NAME.search(each)
        assert named is not None
        assert faults(each, Kernel(named[1] == "1", int(named[2]), int(named[3]))) == [], named[0]


SOUND = """
    HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], !UPT
    HGMMA.64x128x16.F32.BF16 R56, R24, gdesc[UR8].tnspB, R56
    UTMALDG.2D [UR16], [UR4]
    USETMAXREG.DEALLOC 40
    MUFU.EX2 R4, R4
"""


@pytest.mark.parametrize(
    ("line", "instead", "fault"),
    [
        ("HGMMA.64x64x16", "", "score products"),
        ("HGMMA.64x64x16", "HGMMA.64x32x16", "score products"),
        ("R24, gdesc[UR8]", "gdesc[UR6], gdesc[UR8]", "value products"),
        ("USETMAXREG", "HMMA.16816.F32.BF16", "no products of a single warp"),
        ("UTMALDG.2D", "LDGSTS.E", "copies of tiles"),
        ("USETMAXREG", "NOP", "registers that change hands"),
        ("USETMAXREG", "STL [R1]", "no registers in memory"),
        ("MUFU.EX2 R4, R4", "", "exponentials of the special unit"),
        ("MUFU.EX2 R4, R4", "MUFU.EX2 R4, R4\n" * 2, "exponentials of the special unit"),
    ],
)
def test_each_fault_of_machine_code_is_seen(line: str, instead: str, fault: str) -> None:
    kernel, sound = Kernel(half=False, width=128, purpose=VALUES), SOUND * 128
    assert line in sound
    assert faults(sound, kernel) == []
    assert fault in faults(sound.replace(line, instead), kernel)
