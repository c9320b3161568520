# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: which calls it takes, and its operations, which import Triton when first used.

With `TRITON_INTERPRET=1` in the environment before Triton is imported, the same kernels run on CPU tensors: a test
of their meaning, thousands of times too slow for anything else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from secl_ops.library import release

if TYPE_CHECKING:
    from secl_ops.engines.triton.launch import contrast_backward as contrast_backward
    from secl_ops.engines.triton.launch import contrast_forward as contrast_forward
    from secl_ops.engines.triton.launch import reduce as reduce
    from secl_ops.engines.triton.launch_rows import gather as gather
    from secl_ops.engines.triton.launch_rows import gather_backward as gather_backward
    from secl_ops.engines.triton.launch_rows import row_inverse as row_inverse
    from secl_ops.engines.triton.launch_rows import unit_rows as unit_rows
    from secl_ops.engines.triton.launch_rows import unit_rows_backward as unit_rows_backward
    from secl_ops.engines.triton.launch_sample import sample as sample
    from secl_ops.engines.triton.launch_sigmoid import sigmoid_backward as sigmoid_backward
    from secl_ops.engines.triton.launch_sigmoid import sigmoid_forward as sigmoid_forward

MODULES = {
    "launch": ("contrast_forward", "contrast_backward", "reduce"),
    "launch_rows": ("unit_rows", "row_inverse", "unit_rows_backward", "gather", "gather_backward"),
    "launch_sample": ("sample",),
    "launch_sigmoid": ("sigmoid_forward", "sigmoid_backward"),
}
OLDEST = (3, 3)  # whose kernels may pass tuples to each other
OLDEST_TORCH = (2, 7)  # which brings it
OLDEST_CARD = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def objections(device: str, dtype: torch.dtype, operation: str) -> list[str]:
    """Reasons why Triton cannot run `operation` on this device type and dtype; none means it can.

    Example:
        >>> objections("mps", torch.int32, "sample_pixels")[-1]
        'it runs on CUDA devices, not on mps'
    """
    found = _installation()
    if operation == "sample_pixels":
        return [*found, *_device(device, installed=not found)]
    if dtype == torch.float64:
        found = [*found, "fp64 is served by the reference backend"]
    elif dtype not in DTYPES:
        found = [*found, f"it takes fp16, bf16 and fp32, not {str(dtype).removeprefix('torch.')}"]
    return [*found, *_device(device, installed=not _installation())]


@cache
def _installation() -> list[str]:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ["Triton is not installed; pip install triton"]
    if release(version) < OLDEST:
        least, torch_then = (".".join(map(str, oldest)) for oldest in (OLDEST, OLDEST_TORCH))
        return [f"Triton {version} is older than {least}, which torch {torch_then} brings; pip install --upgrade torch"]
    return []


def _device(device: str, *, installed: bool) -> list[str]:
    interpreted = installed and "TRITON_INTERPRET" in os.environ and _interpreted()
    if device == "cpu":
        cure = "set TRITON_INTERPRET=1 before Triton is imported to interpret its kernels on the CPU"
        return _interpreter() if interpreted else [f"Triton compiles for GPUs only; {cure}"]
    if device != "cuda":
        return [f"it runs on CUDA devices, not on {device}"]
    if interpreted:
        return ["TRITON_INTERPRET interprets kernels on CPU tensors; unset it to compile for the GPU"]
    return _graphics_card()


@cache
def _interpreted() -> bool:
    """Whether Triton was imported to interpret; it reads the environment only then."""
    primitives = importlib.import_module(f"{__name__}.primitives")
    return bool(primitives.INTERPRETED.value)


@cache
def _interpreter() -> list[str]:
    """Why this Triton interprets none of the kernels.

    That of 3.3 cannot negate masks. Until 3.6 a loop's bounds are arrays of one element, no numbers to NumPy since 2.4.
    """
    compiler, arrays = (importlib.metadata.version(name) for name in ("triton", "numpy"))
    builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
    if not hasattr(builder, "get_int1_ty"):
        return [f"Triton {compiler} interprets no mask that is negated; 3.4 and later do"]
    if release(compiler) < (3, 7) and release(arrays) >= (2, 4):
        return [f"Triton {compiler} interprets no loop under NumPy {arrays}; pip install 'numpy<2.4'"]
    return []


@cache
def _graphics_card() -> list[str]:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return ["torch sees no CUDA device"]
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CARD:
        found, least = (".".join(map(str, version)) for version in (capability, OLDEST_CARD))
        return [f"compute capability {found} is below {least}"]
    return []


if not TYPE_CHECKING:  # or every name would be typed as Any, and no signature checked

    def __getattr__(name: str) -> Any:
        for module, operations in MODULES.items():
            if name in operations:
                return getattr(importlib.import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
