# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels for GPUs this machine need not have, in a process of its own.

Triton reads TRITON_INTERPRET once, when imported, and tests without a GPU import it interpreting.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from secl_ops import tiles

REPOSITORY = Path(__file__).resolve().parent.parent
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ONE_ROLE = {"ROWS_ARE_ANCHORS": False, "ROWS_ARE_KEYS": True, "SELF": False}
CONTRAST: dict[str, tuple[str, str, dict[str, bool]]] = {
    "scan": ("denominator_kernel", "scan", {"VALUE": False, "BOUNDED": True, "SELF": False}),
    "mean": ("denominator_kernel", "value", {"VALUE": True, "BOUNDED": True, "SELF": False}),
    "running": ("denominator_kernel", "value", {"VALUE": True, "BOUNDED": False, "SELF": True}),
    "positive": ("positive_kernel", "positive", {"VALUE": False, "SELF": False}),
    "positive_mean": ("positive_kernel", "positive", {"VALUE": True, "SELF": False}),
    "keys": ("gradient_kernel", "gradient", ONE_ROLE),
    "anchors": ("gradient_kernel", "gradient", {"ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": False, "SELF": False}),
    "self": ("gradient_kernel", "gradient", {"ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": True, "SELF": True}),
}
SAMPLE = {"BLOCK": tiles.SAMPLE_PIXELS, "HARD": False, "CELLS_Z": 1, "CELLS_Y": 1, "CELLS_X": 1}
COPIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "unit_rows": ("rows", "unit_rows_kernel", {}),
    "unit_rows_backward": ("rows", "unit_rows_backward_kernel", {}),
    "reduce": ("rows", "reduce_kernel", {"MEAN": True, "NONE": False, "BLOCK_N": tiles.REDUCE_ROWS}),
    "gather": ("pixels", "gather_kernel", {}),
    "gather_unit": ("pixels", "gather_unit_kernel", {}),
    "scatter": ("pixels", "scatter_kernel", {}),
    "gather_backward": ("pixels", "gather_backward_kernel", {}),
    "sample": ("sampling", "sample_kernel", SAMPLE),
    "sample_stratified": ("sampling", "sample_kernel", SAMPLE | {"CELLS_Z": 4, "CELLS_Y": 4, "CELLS_X": 4}),
    "sample_hard": ("sampling", "sample_kernel", SAMPLE | {"HARD": True}),
}
WHOLE_ROWS = ("gather_unit", "scatter")
EIGHT_WARPS = ("reduce", "sample", "sample_stratified", "sample_hard")


class Build(NamedTuple):
    """One configuration to compile."""

    kernel: str
    dtype: str
    width: int
    capability: int
    negatives: bool = False
    plain: bool = False  # without groups and exclusions

    def __str__(self) -> str:
        denominator = "negatives" if self.negatives else "all"
        return f"{self.kernel}-{self.dtype}-{self.width}-sm{self.capability}-{denominator}" + "-plain" * self.plain


class Built(NamedTuple):
    """What the compiler made of it."""

    registers: int
    stack: int
    local: int
    shared: int
    wgmma: bool
    failure: str = ""


def cases() -> list[Build]:
    """The configurations to compile: representative ones, or every one under SECL_COMPILE=full."""
    both = (True, False)
    copies = [Build(kernel, dtype, 128, 90) for kernel in COPIES for dtype in ("bf16", "fp32")]
    copies += [Build(kernel, "bf16", 512, capability) for kernel in WHOLE_ROWS for capability in (80, 100)]
    copies += [Build(kernel, "bf16", 128, capability) for kernel in EIGHT_WARPS for capability in (80, 100)]
    if os.environ.get("SECL_COMPILE") == "full":
        return copies + [
            Build(kernel, dtype, width, capability, negatives, plain)
            for dtype in DTYPES for width in (64, 128, 256, 512) for capability in (80, 90, 100)
            for kernel in CONTRAST for negatives in both for plain in both
        ]  # fmt: skip
    used = ("scan", "running", "positive_mean", "keys", "self")
    hopper = [Build(kernel, "bf16", width, 90, side) for width in (64, 128, 256) for kernel in used for side in both]
    others = [
        Build(kernel, "bf16", width, capability, True)
        for capability in (80, 100) for width in (128, 256) for kernel in ("running", "positive_mean", "keys")
    ]  # fmt: skip
    full = [Build(kernel, "fp32", 128, capability, True) for capability in (80, 100) for kernel in used]
    return copies + hopper + others + full + [Build(kernel, "fp16", 128, 90, True) for kernel in ("running", "keys")]


def _type(name: str, case: Build) -> str:
    """Triton's type of a kernel argument, by the naming of the kernels."""
    rows = {"p_anchors", "p_keys", "p_rows", "p_columns", "p_unit", "p_map", "p_out"}
    if name in rows:
        return f"*{case.dtype}"
    if name == "p_exclude" or "groups" in name:
        whole = "*i64" if name == "p_exclude" else "*i32"
        return "constexpr" if case.plain else whole
    if name in ("p_index", "p_order", "p_labels", "p_seed") and (name != "p_labels" or "sample" in case.kernel):
        return "*i64"
    if name == "p_eligible":
        return "*i1"
    if name.startswith("p_"):
        return "*i32" if "label" in name or name == "p_count" else "*fp32"
    if name.isupper():
        return "constexpr"
    return "fp32" if name in ("scale", "scale2", "bound2") else "i32"


def _kernel(case: Build, tile: tiles.Tile | None) -> tuple[Any, dict[str, object], dict[str, int]]:
    """The jitted function, its compile-time values and its launch options."""
    if case.kernel in COPIES:
        module, name, extra = COPIES[case.kernel]
        block = tiles.pick_rows(case.width) if case.kernel in WHOLE_ROWS else (tiles.COPY_ROWS, tiles.COPY_COLUMNS)
        values: dict[str, object] = {"WIDTH": case.width, "BLOCK_N": block[0], "BLOCK_D": block[1], **extra}
        options = {"num_warps": 8 if case.kernel in EIGHT_WARPS else 4, "num_stages": 3}
    else:
        module = "contrast"
        name, purpose, switches = CONTRAST[case.kernel]
        tile = tile or tiles.pick(case.width, DTYPES[case.dtype], purpose)
        blocks = dict(zip(("BLOCK_N", "BLOCK_M", "BLOCK_D", "BLOCK_OUT"), tile[:4], strict=True))
        values = {"WIDTH": case.width, "NEGATIVES": case.negatives, **switches, **blocks}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return getattr(importlib.import_module(f"secl_ops.backends.triton.{module}"), name), values, options


def _build(case: Build, tile: tiles.Tile | None) -> Built:
    """Compile one configuration and read its resources out of the machine code."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel, values, options = _kernel(case, tile)
    signature = {name: _type(name, case) for name in kernel.arg_names}
    constants = {name: values.get(name) for name, kind in signature.items() if kind == "constexpr"}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }  # fmt: skip
    source = ASTSource(kernel, signature, constants, aligned)
    found = compile(source, target=GPUTarget("cuda", case.capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage)
    if match is None:
        raise ValueError(f"no resource usage in cuobjdump's output: {usage}")
    registers, stack, local = map(int, match.groups())
    return Built(registers, stack, local, found.metadata.shared, "wgmma.mma_async" in found.asm["ptx"])


def compile_apart(wanted: Sequence[Build], tile: tiles.Tile | None = None) -> list[Built]:
    """Compile each configuration, with the table's tile or with this one, in one process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton_process", json.dumps([list(wanted), tile])]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the compiling process exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return [Built(*values) for values in json.loads(done.stdout.splitlines()[-1])]


def _main() -> None:
    wanted, tile = json.loads(sys.argv[1])
    chosen = None if tile is None else tiles.Tile(*tile)
    sys.stdout.write(json.dumps([_attempt(Build(*case), chosen) for case in wanted]) + "\n")


def _attempt(case: Build, tile: tiles.Tile | None) -> Built:
    try:
        return _build(case, tile)
    except Exception as error:  # one refused configuration must not hide the others
        return Built(0, 0, 0, 0, False, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _main()
