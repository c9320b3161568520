# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for sm_80, sm_90 and sm_100 without a GPU, spills nothing, and uses the tensor cores.

SECL_COMPILE=full compiles every configuration instead of the representative ones (minutes).
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import pytest

from benchmarks.compile import COPIES, KERNELS, Build, Built, compile_apart, every, faults
from secl_ops import tiles

pytest.importorskip("triton")
POSITIVE = ("positive_mean", "positive_by_rank")
TRITON = ".".join(metadata.version("triton").split(".")[:2])
# What the assembler of one release keeps in memory and that of 3.7 does not.
SPILLS = {
    ("3.6", "sample_stratified-bf16-128-sm90-all"): ["spills 16 bytes"],
    ("3.6", "sample_stratified-bf16-128-sm100-all"): ["spills 16 bytes"],
    ("3.8", "sample_hard-bf16-128-sm100-all"): ["spills 8 bytes"],
    ("3.8", "keys-bf16-256-sm100-negatives"): ["spills 16 bytes"],
    ("3.8", "running-fp32-128-sm100-negatives"): ["spills 16 bytes"],
}
USED = ("scan", "running", *POSITIVE, "keys", "self")


def representative() -> list[Build]:
    """The configurations that sit closest to a spill, with groups and exclusions."""
    both = (True, False)
    copies = [Build(kernel, dtype, 128, 90) for kernel in COPIES for dtype in ("bf16", "fp32")]
    copies += [
        Build(name, "bf16", 512 if kernel.whole_rows else 128, capability)
        for name, kernel in KERNELS.items() for capability in (80, 100) if kernel.whole_rows or kernel.warps > 4
    ]  # fmt: skip
    hopper = [Build(kernel, "bf16", width, 90, side) for width in (64, 128, 256) for kernel in USED for side in both]
    others = [
        Build(kernel, "bf16", width, capability, True)
        for capability in (80, 100) for width in (128, 256) for kernel in ("running", *POSITIVE, "keys")
    ]  # fmt: skip
    full = [Build(kernel, "fp32", 128, capability, True) for capability in (80, 100) for kernel in USED]
    return copies + hopper + others + full + [Build(kernel, "fp16", 128, 90, True) for kernel in ("running", "keys")]


def few() -> list[Build]:
    """Each kernel of a step once, each architecture and each dtype: what is widest, or closest to a spill."""
    copies = [Build(kernel, "bf16", 128, 90) for kernel in COPIES]
    hopper = [Build(kernel, "bf16", 256, 90, True) for kernel in USED]
    others = [Build("running", "bf16", 256, 80, True), Build("keys", "fp32", 128, 80, True)]
    others += [Build("keys", "bf16", 256, 100, True), Build("running", "fp32", 128, 100, True)]
    return [*copies, *hopper, Build("running", "fp16", 128, 90, True), *others]


def together(builds: list[Build]) -> list[Any]:
    """A dozen builds at a time: a process compiles them."""
    starts = range(0, len(builds), 12)
    return [pytest.param(builds[start : start + 12], id=str(builds[start])) for start in starts]


def check(builds: list[Build]) -> None:
    found = dict(zip(map(str, builds), map(faults, builds, compile_apart(builds)), strict=True))
    expected = {name: SPILLS.get((TRITON, name), []) for name in found}
    assert found == expected


@pytest.mark.parametrize("builds", together(few()))
def test_each_kernel_compiles_without_spills_and_keeps_the_tensor_cores(builds: list[Build]) -> None:
    check(builds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("builds", together(every() if os.environ.get("SECL_COMPILE") == "full" else representative()))
def test_the_configurations_compile_without_spills_and_keep_the_tensor_cores(builds: list[Build]) -> None:
    check(builds)


@pytest.mark.exhaustive
def test_a_spill_and_a_failure_are_seen() -> None:
    crowded = tiles.Tile(128, 128, 128, 128, 4, 2)
    spill, unknown = Build("running", "bf16", 128, 90), Build("running", "int7", 128, 90)
    spilled, failed = compile_apart([spill, unknown], crowded)
    assert [fault.split()[0] for fault in faults(spill, spilled)] == ["spills"]
    assert faults(unknown, failed) == [failed.failure]
    assert failed.failure


@pytest.mark.exhaustive
def test_lost_tensor_cores_of_hopper_are_seen() -> None:
    case = Build("scan", "bf16", 64, 90)
    narrow = tiles.Tile(32, 32, 64, 64, 4, 2)  # wgmma takes 64 rows
    assert faults(case, *compile_apart([case], narrow)) == ["its products do not run as wgmma"]


def test_shared_memory_beyond_the_card_is_seen() -> None:
    built = Built(registers=128, shared=100 * 1024)
    assert faults(Build("scan", "bf16", 128, 100), built) == []
    assert "takes 102400 bytes" in faults(Build("scan", "bf16", 128, 80), built)[0]
