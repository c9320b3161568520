# SPDX-License-Identifier: Apache-2.0
"""The native CUDA kernels as further values of the fixture `backend`: on this machine's GPU, else on the emulated one.

@pytest.mark.cuda_kernels
def test(backend: str, device: str, fitted: Fit) -> None: ...    # backend is "native" then, device "cuda"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from secl_ops import library
from tests import emulate, fake_gpu
from tests.oracle import Call

BACKENDS = ("native", "native-many", "triton", "triton-many", "reference")
MANY = {"native-many": "native", "triton-many": "triton"}  # the kernels for many rows, whatever the number
ON_THE_GPU = {"native-cuda": "portable", "native-hopper": "hopper"}  # the path that SECL_CUDA_PATH names
EMULATED = {"emulated-cuda": "portable", "emulated-hopper": "hopper"}
PATHS = ON_THE_GPU | EMULATED
HOPPER, HOPPER_WIDTHS = (9, 0), (64, 128, 256)
OPERATIONS = (
    "contrast_forward", "contrast_backward", "sigmoid_forward", "sigmoid_backward", "gather", "gather_backward",
    "reduce", "sample",
)  # fmt: skip
NO_HOPPER = "this GPU is no Hopper"
C = TypeVar("C", bound=Call)
Fit = Callable[[Any], Any]


def absence(path: str) -> str | None:
    """Why the kernels of a path do not run on a GPU here; None where they do."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if reasons := library.cuda_objections(OPERATIONS):
        return "; ".join(reasons)
    if path == "portable":
        return None
    if torch.cuda.get_device_capability() != HOPPER:
        return NO_HOPPER
    return None if "90a" in library.cuda_archs() else f"this build has CUDA code for {', '.join(library.cuda_archs())}"


def here() -> list[str]:
    """The values that exist on this machine: those that cannot are not even collected."""
    if torch.cuda.is_available():
        return [name for name, path in ON_THE_GPU.items() if absence(path) is None]
    return [] if emulate.absence() else list(EMULATED)


def enter(name: str, request: pytest.FixtureRequest) -> None:
    """Take the kernels of this value for one test."""
    patch = request.getfixturevalue("monkeypatch")
    patch.setenv("SECL_CUDA_PATH", PATHS[name])
    if name in EMULATED:
        request.getfixturevalue("emulated").set_capability(10 * HOPPER[0] + HOPPER[1])
        for stand_in in fake_gpu.native_stand_ins():
            patch.setattr(*stand_in)


def fit(name: str, call: C) -> C:
    """The call as these kernels take it: rows of bf16 where they are fp32, zeros up to a width that Hopper's serve."""
    if name not in PATHS:
        return call
    if call.anchors.dtype == torch.float32:
        call = call.to(torch.bfloat16)
    return _widened(call) if PATHS[name] == "hopper" else call


def _widened(call: C) -> C:
    wanted = next(width for width in HOPPER_WIDTHS if width >= call.anchors.shape[1])
    given = {name: getattr(call, name) for name in ("anchors", "keys", "positives")}
    wide: dict[str, Any] = {
        name: pad(rows, (0, wanted - rows.shape[1])) for name, rows in given.items() if isinstance(rows, Tensor)
    }
    return replace(call, **wide)
