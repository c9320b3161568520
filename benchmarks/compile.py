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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kernel_table import CONTRAST, COPIES, KERNELS, LEFT_OUT, TYPES
from benchmarks.sass import Loop, Shape, product_loops
from secl_ops import tiles

REPOSITORY = Path(__file__).resolve().parent.parent
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = (80, 86, 89, 90, 100, 120)
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


class Build(NamedTuple):
    """One configuration to compile."""

    kernel: str
    dtype: str
    width: int
    capability: int
    negatives: bool = False
    plain: bool = False  # without groups and exclusions

    @property
    def denominator(self) -> str:
        """The public option it serves."""
        return "negatives" if self.negatives else "all"

    def __str__(self) -> str:
        return f"{self.kernel}-{self.dtype}-{self.width}-sm{self.capability}-{self.denominator}" + "-plain" * self.plain


class Built(NamedTuple):
    """What the compiler made of it."""

    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    wgmma: bool = False
    failure: str = ""
    unread: str = ""  # why the loops are not known
    far: Loop | None = None  # over tiles of which every pair counts
    near: Loop | None = None  # over those that are looked at pair by pair
    waits: tuple[int, ...] = ()  # groups of copies that stay in flight at each wait of the loops


def every() -> list[Build]:
    """Every configuration that the backend can launch at the widths of the tile table (minutes)."""
    copies = [Build(kernel, dtype, 128, 90) for kernel in COPIES for dtype in ("bf16", "fp32")]
    return copies + [
        Build(kernel, dtype, width, capability, negatives, plain)
        for dtype in DTYPES for width in (64, 128, 256, 512) for capability in CAPABILITIES
        for kernel in CONTRAST for negatives in (True, False) for plain in (True, False)
    ]  # fmt: skip


def common() -> list[Build]:
    """What training in bf16 launches, without groups or exclusions."""
    copies = [Build(kernel, "bf16", 128, capability) for kernel in COPIES for capability in CAPABILITIES]
    return [
        Build(kernel, "bf16", width, capability, negatives, True)
        for kernel in CONTRAST for negatives in (False, True) for width in (64, 128, 256) for capability in CAPABILITIES
    ] + copies  # fmt: skip


def faults(build: Build, built: Built) -> list[str]:
    """What is wrong with a compiled configuration: it failed, spills, does not fit, lost the tensor cores or its loop.

    Example:
        >>> faults(Build("scan", "bf16", 128, 90), Built(registers=255, stack=8, wgmma=True))
        ['spills 8 bytes']
    """
    if built.failure:
        return [built.failure]
    found = []
    if built.stack or built.local:
        found.append(f"spills {built.stack + built.local} bytes")
    if built.shared > SHARED_BYTES[build.capability]:
        found.append(f"takes {built.shared} bytes of shared memory of {SHARED_BYTES[build.capability]}")
    if build.kernel in CONTRAST and build.dtype != "fp32" and build.capability == 90 and not built.wgmma:
        found.append("its products do not run as wgmma")
    return found + [built.unread] * bool(built.unread)


def tile_of(build: Build) -> tiles.Tile:
    """The pinned tile of a contrast kernel."""
    return tiles.pick(build.width, DTYPES[build.dtype], KERNELS[build.kernel].purpose, build.capability)


def outputs(build: Build, tile: tiles.Tile) -> int:
    """Programs that share a row's output, each of which repeats its similarities."""
    return -(-build.width // tile.block_out) if KERNELS[build.kernel].products > 1 else 1


def compile_apart(wanted: Sequence[Build], tile: tiles.Tile | None = None) -> list[Built]:
    """Compile each configuration, with the table's tile or with this one, in one process that compiles.

    Raises:
        RuntimeError: That process died; its output is in the message.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile"]
    task = json.dumps([list(wanted), tile])
    done = subprocess.run(
        command, input=task, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the compiling process exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return [_built(values) for values in json.loads(done.stdout.splitlines()[-1])]


def _built(values: list[Any]) -> Built:
    built = Built(*values)
    far, near = (None if loop is None else Loop(*loop) for loop in (built.far, built.near))
    return built._replace(far=far, near=near, waits=tuple(built.waits))


def _type(name: str, build: Build) -> str:
    if (build.plain and LEFT_OUT.fullmatch(name)) or (name == "p_hole" and not build.negatives):
        return "constexpr"
    if name in KERNELS[build.kernel].overrides:
        return KERNELS[build.kernel].overrides[name]
    return next(kind for pattern, kind in TYPES if re.fullmatch(pattern, name)).format(dtype=build.dtype)


def _launch(build: Build, tile: tiles.Tile | None) -> tuple[dict[str, object], dict[str, int]]:
    """Compile-time values and launch options."""
    kernel = KERNELS[build.kernel]
    if kernel.few:
        tile = tiles.pick_few(build.width)
        found: dict[str, object] = {"WIDTH": build.width, **kernel.switches, **tile.blocks()}
        return found, {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tiles.MOST_REGISTERS}
    if not kernel.purpose:
        rows, columns = tiles.pick_rows(build.width) if kernel.whole_rows else (tiles.COPY_ROWS, tiles.COPY_COLUMNS)
        values: dict[str, object] = {
            "WIDTH": build.width, "OUT": build.width, "BLOCK_N": rows, "BLOCK_D": columns, **kernel.switches,
        }  # fmt: skip
        return values, {"num_warps": kernel.warps, "num_stages": 3}
    tile = tile or tile_of(build)
    widths = {"WIDTH": tiles.padded_width(build.width), "OUT": build.width}
    values = {**widths, "NEGATIVES": build.negatives, **kernel.switches, **tile.blocks()}
    return values, {"num_warps": tile.warps, "num_stages": tile.stages}


def _build(build: Build, tile: tiles.Tile | None) -> Built:
    """Compile one configuration and read its resources and its main loop out of the machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    module = importlib.import_module(f"secl_ops.engines.triton.{KERNELS[build.kernel].module}")
    kernel = getattr(module, KERNELS[build.kernel].function)
    values, options = _launch(build, tile)
    signature = {name: _type(name, build) for name in kernel.arg_names}
    constants = {name: values.get(name) for name, kind in signature.items() if kind == "constexpr"}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }  # fmt: skip
    source = ASTSource(kernel, signature, constants, aligned)
    found = compile(source, target=GPUTarget("cuda", build.capability, 32), options=options)
    usage = _disassemble(found.asm["cubin"], "-res-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage)
    if match is None:
        raise ValueError(f"no resource usage in cuobjdump's output: {usage}")
    registers, stack, local = map(int, match.groups())
    wgmma = "wgmma.mma_async" in found.asm["ptx"]
    result = Built(registers, stack, local, found.metadata.shared, wgmma)
    if not KERNELS[build.kernel].products:
        return result
    try:
        loops = product_loops(_disassemble(found.asm["cubin"], "-sass"), shape_of(build, tile or tile_of(build)))
    except ValueError as error:  # it hides no spill
        return result._replace(unread=str(error))
    if not loops:
        return result._replace(unread="no loop holds a product")
    return result._replace(far=loops[0], near=loops[-1], waits=waits_of(found.asm["ttgir"]))


def waits_of(intermediate: str) -> tuple[int, ...]:
    r"""How many groups of copies each wait inside a loop of Triton's GPU code leaves in flight.

    Example:
        >>> waits_of("scf.for %i = %a to %b {\n  %w = ttg.async_wait %c {num = 1 : i32}\n}")
        (1,)
    """
    found: list[int] = []
    depth: list[bool] = []
    for line in intermediate.splitlines():
        text = line.strip()
        wait = re.search(r"async_wait.*num = (\d+)", text)
        if wait and any(depth):
            found.append(int(wait[1]))
        opened, closed = text.count("{"), text.count("}")
        loop = " scf.for " in f" {text}" or "scf.while" in text
        for _ in range(max(0, opened - closed)):
            depth.append(loop)
        for _ in range(max(0, closed - opened)):
            if depth:
                depth.pop()
    return tuple(found)


def shape_of(build: Build, tile: tiles.Tile) -> Shape:
    """What the products of one tile come to.

    Example:
        >>> shape_of(Build("scan", "bf16", 128, 90), tiles.Tile(128, 64, 128, 128, 8, 3)).pair_flop
        256
    """
    summed = KERNELS[build.kernel].products > 1
    products = 3 if build.dtype == "fp32" and not tiles.EXACT_FP32 else 1
    depth = 8 if build.dtype == "fp32" else 16
    weight_depth = 16 if build.dtype == "bf16" else 8  # fp16 rows are summed up in tf32; see primitives.value_product
    return Shape(
        warps=tile.warps,
        pairs=tile.block_n * tile.block_m,
        pair_flop=2 * products * (tiles.padded_width(build.width) + (tile.block_out if summed else 0)),
        chunks=tiles.padded_width(build.width) // tile.block_d,
        steps=products * (tiles.padded_width(build.width) // depth + (tile.block_m // weight_depth if summed else 0)),
    )


def _disassemble(cubin: bytes, option: str) -> str:
    """What the cuobjdump in Triton's wheel prints about a compiled kernel."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _attempt(build: Build, tile: tiles.Tile | None) -> Built:
    try:
        return _build(build, tile)
    except Exception as error:  # one refused configuration must not hide the others
        return Built(failure=f"{type(error).__name__}: {error}")


def _attempts(wanted: Iterable[Build], tile: tiles.Tile | None) -> list[Built]:
    return [_attempt(build, tile) for build in wanted]


if __name__ == "__main__":
    asked, shape = json.load(sys.stdin)
    chosen = None if shape is None else tiles.Tile(*shape)
    sys.stdout.write(json.dumps(_attempts((Build(*each) for each in asked), chosen)) + "\n")
