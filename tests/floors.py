# SPDX-License-Identifier: Apache-2.0
"""The floors of the code: which module stands where; an import may only point to a lower number.

In `secl_models` the rooms are the floors: a room uses itself and the rooms before it.
"""

from __future__ import annotations

FLOORS: dict[str, int] = {
    # secl_ops: what is refused, what is true, what is fast, what it means
    "secl_ops.version": 0,
    "secl_ops.spec": 0,
    "secl_ops.library": 0,
    "secl_ops.verified": 0,
    "secl_ops.tile_table": 0,
    "secl_ops.tiles": 1,
    "secl_ops.replay": 0,
    "secl_ops.engines": 0,
    "secl_ops.inputs": 1,
    "secl_ops.engines.draws": 1,
    "secl_ops.engines.reference": 2,
    "secl_ops.engines.ordering": 3,
    "secl_ops.engines.native": 4,
    "secl_ops.engines.triton.primitives": 2,
    "secl_ops.engines.triton.grids": 2,
    "secl_ops.engines.triton.chances": 2,
    "secl_ops.engines.triton.listing": 3,
    "secl_ops.engines.triton.sampling": 3,
    "secl_ops.engines.triton.order": 2,
    "secl_ops.engines.triton.plan": 3,
    "secl_ops.engines.triton.arrange": 3,
    "secl_ops.engines.triton.rows": 3,
    "secl_ops.engines.triton.pixels": 3,
    "secl_ops.engines.triton.gradient": 4,
    "secl_ops.engines.triton.sides": 4,
    "secl_ops.engines.triton.contrast": 5,
    "secl_ops.engines.triton.launch": 6,
    "secl_ops.engines.triton.launch_rows": 7,
    "secl_ops.engines.triton.launch_sample": 7,
    "secl_ops.engines.triton": 8,
    "secl_ops.engines.select": 9,
    "secl_ops.ops": 10,
    "secl_ops.autograd": 11,
    "secl_ops.shards": 12,
    "secl_ops.functional": 13,
    "secl_ops.pixels": 13,
    "secl_ops.queue": 12,
    "secl_ops.maps": 14,
    "secl_ops.modules": 15,
    "secl_ops": 16,
    # benchmarks: cases and machine code, who is timed, what is right, tables, figures
    "benchmarks": 50,
    "benchmarks.provenance": 50,
    "benchmarks.budget": 50,
    "benchmarks.cases": 50,
    "benchmarks.neighbours": 50,
    "benchmarks.baseline": 50,
    "benchmarks.sass": 50,
    "benchmarks.compile": 51,
    "benchmarks.model": 52,
    "benchmarks.static": 53,
    "benchmarks.verified": 52,
    "benchmarks.published": 51,
    "benchmarks.limits": 51,
    "benchmarks.load": 51,
    "benchmarks.gpu": 51,
    "benchmarks.rivals": 51,
    "benchmarks.packages": 52,
    "benchmarks.contenders": 53,
    "benchmarks.gate": 54,
    "benchmarks.build": 55,
    "benchmarks.memcheck": 55,
    "benchmarks.pixel": 55,
    "benchmarks.measure": 56,
    "benchmarks.run": 57,
    "benchmarks.memory": 57,
    "benchmarks.training": 57,
    "benchmarks.native_cuda": 57,
    "benchmarks.targets": 57,
    "benchmarks.tune": 57,
    "benchmarks.precompile": 58,
    "benchmarks.verdict": 58,
    "benchmarks.plot": 56,
    "benchmarks.figures": 57,
    "benchmarks.__main__": 60,
    "benchmarks.test_loss": 60,
    "benchmarks.test_pixel": 60,
}

ROOMS = ("options", "data", "method", "inference", "train", "report", "study", "command")
"""The rooms of `secl_models`, from the ground up."""

LONGEST_CHAIN = {"secl_ops": 15, "secl_models": 12, "benchmarks": 9}
"""Modules in the longest chain of imports within a package: what one must know to follow a call from top to bottom."""
