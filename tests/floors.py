# SPDX-License-Identifier: Apache-2.0
"""The floors of the house: which module stands where; an import may only point to a lower number."""

from __future__ import annotations

FLOORS: dict[str, int] = {
    "secl_ops.version": 0,
    "secl_ops.spec": 0,
    "secl_ops.library": 0,
    "secl_ops.tiles": 0,
    "secl_ops.backends": 0,
    "secl_ops.backends.reference": 1,
    "secl_ops.backends.native": 2,  # fills reference.ContrastState
    "secl_ops.backends.triton": 2,
    "secl_ops.backends.select": 3,
    "secl_ops.ops": 4,
    "secl_ops.inputs": 1,
    "secl_ops.autograd": 5,
    "secl_ops.functional": 6,
    "secl_ops.queue": 6,
    "secl_ops.pixel_contrast": 7,
    "secl_ops": 8,
}
