# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for six chips without a GPU, spills nothing, fits, and its hot loops keep their budgets.

SECL_COMPILE=full compiles every configuration instead of those that sit closest to a spill (an hour).
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import pytest

from benchmarks.compile import CAPABILITIES, DTYPES, Build, Built, compile_apart, every, faults, tile_of
from benchmarks.kernel_table import COPIES, KERNELS
from benchmarks.model import CLASSES, passes_of, weighted
from benchmarks.sass import Loop
from secl_ops import library, tiles
from tests.hot_loops import HOT, WIDTHS, beyond, budget

pytest.importorskip("triton")
TUNED = (3, 6)  # the first release that the tiles were chosen under
TRITON = ".".join(metadata.version("triton").split(".")[:2])
# What the assembler of one release keeps in memory and that of 3.7 does not.
SPILLS = {
    ("3.6", "sample_stratified-bf16-128-sm90-all"): ["spills 16 bytes"],
    ("3.6", "sample_stratified-bf16-128-sm100-all"): ["spills 16 bytes"],
    ("3.8", "sample_hard-bf16-128-sm100-all"): ["spills 8 bytes"],
}
WEIGHTED = ("running_weighted", "positive_weighted", "class_mean_weighted")
FORWARD = ("scan", "mean", "running", "positive", "class_mean", "sigmoid", "sigmoid_loss", *WEIGHTED)
BACKWARD = ("keys", "anchors", "self", "keys_running", "self_running", "sigmoid_keys")


def closest() -> list[Build]:
    """The configurations that sit closest to a spill: under "negatives", with exclusions."""
    copies = [Build(kernel, dtype, 128, 90) for kernel in COPIES for dtype in ("bf16", "fp32")]
    copies += [
        Build(name, "bf16", 512 if kernel.whole_rows else 128, capability)
        for name, kernel in KERNELS.items() for capability in (80, 100) if kernel.whole_rows or kernel.warps > 4
    ]  # fmt: skip
    return copies + [
        Build(kernel, dtype, width, capability, not kernel.startswith("class_mean"))
        for dtype in DTYPES for width in WIDTHS for capability in CAPABILITIES for kernel in (*FORWARD, *BACKWARD)
        if dtype == "bf16" or capability not in (86, 89)  # whose tiles are those of 120
    ]  # fmt: skip


def every_width() -> list[Build]:
    """Of the hot loops what is not among those: under "all", rows of few and of odd columns; sigmoids without masks."""
    odd = [("mean", "fp32", 33), ("keys", "fp16", 32), ("self", "bf16", 100), ("self", "fp32", 192)]
    return [
        Build(kernel, dtype, width, capability, False, True)
        for capability in (80, 90, 100, 120)
        for dtype in DTYPES for width in WIDTHS for kernel in ("mean", "self") if (dtype, width) != ("bf16", 128)
    ] + [Build(*each, capability, True) for each in odd for capability in (80, 90)] + [
        Build(kernel, dtype, width, capability, False, True)
        for capability in (80, 90, 100, 120)
        for dtype in DTYPES for width in WIDTHS for kernel in ("sigmoid", "sigmoid_loss")
    ]  # fmt: skip


def few() -> list[Build]:
    """Each kernel once, each family of chips and each dtype: what is widest, or closest to a spill."""
    copies = [Build(kernel, "bf16", 128, 90) for kernel in COPIES]
    hopper = [Build(kernel, "bf16", 256, 90, kernel != "class_mean") for kernel in ("scan", "positive", "class_mean")]
    others = [Build("self", "fp32", 128, 80, True), Build("running", "fp16", 128, 90, True)]
    others += [Build(kernel, "bf16", 128, 90, not kernel.startswith("class_mean")) for kernel in WEIGHTED]
    others += [Build("sigmoid", "fp32", 64, 80), Build("sigmoid_keys", "fp16", 512, 120)]
    return [*copies, *hopper, *others, Build("keys", "fp32", 128, 100, True), Build("self", "bf16", 256, 120, True)]


def together(builds: list[Build]) -> list[Any]:
    """A dozen builds at a time: a process compiles them."""
    starts = range(0, len(builds), 12)
    return [pytest.param(builds[start : start + 12], id=str(builds[start])) for start in starts]


def check(builds: list[Build]) -> None:
    made = zip(builds, compile_apart(builds), strict=True)
    judged = faults_of_old if library.release(TRITON) < TUNED else every_fault
    found = {str(build): judged(build, built) for build, built in made}
    expected = {name: SPILLS.get((TRITON, name), []) for name in found}
    assert found == expected


def every_fault(build: Build, built: Built) -> list[str]:
    return faults(build, built) + beyond(build, built)


def faults_of_old(build: Build, built: Built) -> list[str]:
    """Of a release for which no tile was chosen: that it is built, fits and keeps the tensor cores."""
    return faults(build, built._replace(stack=0, local=0, unread=""))


@pytest.mark.parametrize("builds", together(few()))
def test_each_kernel_compiles_without_spills_and_keeps_the_tensor_cores(builds: list[Build]) -> None:
    check(builds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("builds", together(every() if os.environ.get("SECL_COMPILE") == "full" else closest()))
def test_the_configurations_compile_without_spills_and_keep_the_tensor_cores(builds: list[Build]) -> None:
    check(builds)


MOST_VISITS = 1.2  # tiles that the pass over the positives visits, times the number of classes, of all tiles


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_hot_loops_keep_their_budget(capability: int) -> None:
    check([Build(kernel, "bf16", 128, capability, side, True) for kernel in HOT for side in (False, True)])
    check([Build(kernel, "bf16", 128, capability, False, True) for kernel in ("sigmoid", "sigmoid_keys")])


@pytest.mark.exhaustive
@pytest.mark.parametrize("builds", together(every_width()))
def test_the_hot_loops_keep_their_budget_at_every_width(builds: list[Build]) -> None:
    check(builds)


def test_a_budget_that_is_exceeded_and_a_copy_that_is_awaited_are_seen() -> None:
    build = Build("keys", "bf16", 128, 90, False, True)
    tile = tile_of(build)
    pairs, most = tile.block_n * tile.block_m, budget(build)
    loop = Loop(pairs, tile.warps, int(most * pairs / 32 / tile.warps), 0, 0, 0, 0)
    kept = Built(far=loop, near=loop, waits=(2, 3))
    assert beyond(build, kept) == []
    slower = kept._replace(far=loop._replace(instructions=loop.instructions + 32))
    assert beyond(build, slower) == [f"takes {weighted(build, slower):.2f} instructions a pair of {most:.2f}"]
    assert beyond(build, kept._replace(waits=(2, 0))) == ["leaves 0 groups of copies in flight, a tile's rows are 1"]
    assert beyond(build, kept._replace(waits=())) == ["leaves 0 groups of copies in flight, a tile's rows are 1"]
    assert beyond(build._replace(kernel="running"), Built()) == []
    judged, costly = build._replace(kernel="sigmoid_keys"), loop._replace(instructions=3 * loop.instructions)
    assert "instructions a pair of 17.49" in beyond(judged, Built(far=costly, near=costly, waits=(1,)))[0]
    assert beyond(judged._replace(width=64), Built(far=costly, near=costly)) == []


def test_the_positives_are_visited_and_little_else() -> None:
    for capability in CAPABILITIES:
        build = Build("positive", "bf16", 128, capability, True)
        tile = tile_of(build)
        share = passes_of(build, tile, 65_536, 65_536).near * tile.block_n * tile.block_m / 65_536**2
        assert share <= MOST_VISITS / CLASSES


@pytest.mark.exhaustive
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiles_of_few_rows_spill_nothing_either(capability: int) -> None:
    for kernel in (*FORWARD, *BACKWARD):
        build = Build(kernel, "bf16", 128, capability, not kernel.startswith("class_mean"))
        tile = tiles.shrunk(tile_of(build), 912, 912, 132)
        assert faults(build, *compile_apart([build], tile)) == [], str(build)


def of_few_rows() -> list[Build]:
    """The kernels of few rows in every dtype, narrow and wide, on each family of chips."""
    kernels = [name for name in COPIES if name.startswith("few_") and name.endswith("_negatives")]
    return [
        Build(kernel, dtype, width, capability)
        for capability in (80, 90, 100, 120) for dtype in DTYPES for width in (64, 256, 512) for kernel in kernels
    ]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("builds", together(of_few_rows()))
def test_kernels_of_few_rows_spill_nothing_and_fit_every_chip(builds: list[Build]) -> None:
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
    assert "takes 102400 bytes" in faults(Build("scan", "bf16", 128, 86), built)[0]
