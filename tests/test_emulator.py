# SPDX-License-Identifier: Apache-2.0
"""The emulated GPU: it runs what is right, in any order, and finds what a GPU would hang on or get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SOUND = ("careful", "unset memory", "patient copy", "named barriers", "collectives")
FAULTS = {
    "careless": "a neighbour's number is wrong",
    "half a barrier": "deadlock in block .*: 32 threads have returned, 32 threads wait at sync_block",
    "parted warp": "lanes of one warp part: .*(ballot|sync_warp) here",
    "lost lane": "sync_warp: waits for a lane that has returned",
    "past the end": r"an access at byte \d+ of 16384 bytes of shared memory \(block \(., 0, 0\), thread",
    "before the start": r"an access at byte -\d+ of 16384 bytes of shared memory",
    "into the padding": "a write beyond shared memory in block",
    "impatient copy": "the copy has not arrived",
    "forgotten copy": "a thread returned before its copies arrived",
    "crooked copy": "copy_async needs a place on a multiple of 16 bytes",
    "quarrelling barriers": "deadlock|barrier 1 for 32 threads here, 64 there",
    "too many threads": "a block must have 1 to 1024 threads; got 2048",
    "too much memory": "a block can have at most 227 KiB of shared memory",
}


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def ordered(request: pytest.FixtureRequest, emulated: Any) -> Any:
    """The emulated operations, blocks and threads in either order."""
    emulated.set_reversed(request.param)
    return emulated


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_kernel_runs(name: str, ordered: Any) -> None:
    before = ordered.launches()
    ordered.probe(name)
    assert ordered.launches() == before + 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_the_next_launch_is_sound(name: str, ordered: Any) -> None:
    with pytest.raises(RuntimeError, match=FAULTS[name]):
        ordered.probe(name)
    ordered.probe("careful")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_matrix_product_puts_every_number_in_its_place(dtype: torch.dtype, transposed: bool, emulated: Any) -> None:
    # Small whole numbers: every product and sum is exact, in tf32 too.
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-30, 31, (16, 16), generator=generator).to(dtype)
    right = torch.randint(-30, 31, (16, 8), generator=generator).to(dtype)
    found = emulated.product(left, right.T.contiguous() if transposed else right, transposed)
    assert torch.equal(found, left.float() @ right.float())
