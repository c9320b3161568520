# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for sm_80, sm_90 and sm_100 without a GPU, spills nothing, and uses the tensor cores.

SECL_COMPILE=full compiles every configuration instead of the representative ones (minutes).
"""

from __future__ import annotations

import pytest

from secl_ops import tiles
from tests.triton_process import CONTRAST, Build, Built, cases, compile_apart

pytest.importorskip("triton")
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # 8.6 and 8.9 run the code of 8.0 and offer 99 KiB
CASES = cases()


@pytest.fixture(scope="module")
def built() -> dict[Build, Built]:
    return dict(zip(CASES, compile_apart(CASES), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_without_spills(case: Build, built: dict[Build, Built]) -> None:
    found = built[case]
    assert not found.failure, found.failure
    assert (found.stack, found.local) == (0, 0), found
    assert found.shared <= SHARED_BYTES[case.capability], found
    if case.kernel in CONTRAST and case.dtype == "bf16" and case.capability == 90:
        assert found.wgmma, "the products of a Hopper kernel run as wgmma"


def test_a_spill_and_a_failure_are_seen() -> None:
    crowded = tiles.Tile(128, 128, 128, 128, 4, 2)
    spilled, unknown = compile_apart([Build("running", "bf16", 128, 90), Build("running", "int7", 128, 90)], crowded)
    assert spilled.stack > 0
    assert unknown.failure
