# SPDX-License-Identifier: Apache-2.0
"""The compiled extension `secl_ops/_C`: loaded once where it was built, what is in it, and why it is not there."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import torch

HOW_TO_BUILD = "install g++ and run `SECL_BUILD=cpu pip install --no-build-isolation .` from the source folder"
INTERFACE = "4645acb1aca6c0d4"
"""`interface()` of setup.py: what the operations of `csrc` are called with here. A changed one needs another build."""
OLDEST_TORCH = (2, 11)
"""Release of torch whose stable ABI the extension is built for; the Python half runs on older ones."""
OLDEST_CUDA = (8, 0)
"""Compute capability below which the CUDA kernels do not compile."""


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    Example:
        >>> release("2.6.0+cu124")
        (2, 6)
    """
    return tuple(int(part) for part in version.split(".")[:2])


def _load() -> str | None:
    found = sorted(Path(__file__).parent.glob("_C.*so"))
    if not found:
        return f"the C++ extension was not built (secl_ops/_C is absent); {HOW_TO_BUILD}"
    if release(torch.__version__) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"the C++ extension needs torch {oldest} or later, not {torch.__version__}; pip install --upgrade torch"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"the C++ extension {found[0].name} does not load: {error}; {HOW_TO_BUILD}"
    built = _interface()
    if built != INTERFACE:
        return (
            f"the C++ extension {found[0].name} is of other sources than this package (interface {built}, not "
            f"{INTERFACE}); build it again: {HOW_TO_BUILD}"
        )
    return None


def _interface() -> str:
    """What the loaded extension takes the operations to be."""
    if not hasattr(torch.ops.secl_native, "interface"):
        return "unknown"
    found: str = torch.ops.secl_native.interface()
    return found


ABSENCE = _load()
"""None where `torch.ops.secl_native` is registered, else the reason why not."""


@functools.cache
def cuda_archs() -> tuple[str, ...]:
    """The architectures that the extension holds CUDA code for, such as ("80+PTX", "90a"); none without a CUDA half.

    Example:
        >>> import secl_ops
        >>> (secl_ops.cuda_archs() == ()) == (secl_ops.cuda_absence() is not None)
        True
    """
    return () if ABSENCE else tuple(filter(None, torch.ops.secl_native.cuda_archs().split(";")))


@functools.cache
def cuda_absence() -> str | None:
    """Why the extension has no CUDA half; None where it has one.

    Example:
        >>> import secl_ops
        >>> print(secl_ops.cuda_absence() or "there is a CUDA half")  # doctest: +ELLIPSIS
        th...
    """
    if ABSENCE:
        return ABSENCE
    return None if cuda_archs() else f"this build has no CUDA kernels: {torch.ops.secl_native.cuda_absence()}"


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for these architectures runs on a GPU of this compute capability.

    Machine code runs within its major version, code with features of one architecture ("90a") on that one alone; the
    driver translates PTX for every later GPU.

    Example:
        >>> runs_on(["80"], (8, 9)), runs_on(["80"], (9, 0)), runs_on(["80+PTX"], (9, 0)), runs_on(["90a"], (10, 0))
        (True, False, True, False)
    """
    for arch in archs:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(\+PTX)?", arch)
        if match is None:
            continue
        built = (int(match[1]), int(match[2]))
        same_major = built[0] == capability[0] and built <= capability
        if built == capability or (not match[3] and (same_major or (match[4] and built <= capability))):
            return True
    return False


@functools.cache
def has_cuda(operation: str) -> bool:
    """Whether `secl_native` has a CUDA implementation of this operation."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"secl_native::{operation}", "CUDA")
    return found


def cuda_objections(operations: Sequence[str]) -> list[str]:
    """Reasons why these operations do not run on the current CUDA device."""
    absence = cuda_absence()
    if absence:
        return [absence]
    missing = [name for name in operations if not has_cuda(name)]
    reasons = [f"this build has no CUDA kernels for {', '.join(missing)}"] if missing else []
    started = torch.cuda.is_initialized()
    if not (started or torch.cuda.is_available()):
        return [*reasons, "torch sees no CUDA device"]
    return reasons + _device_objections(torch.cuda.current_device())


@functools.cache  # asked at every call of a named backend
def _device_objections(index: int) -> list[str]:
    """Reasons against a CUDA device: no code that it can run."""
    capability = torch.cuda.get_device_capability(index)
    if runs_on(cuda_archs(), capability):
        return []
    arch = f"{capability[0]}{capability[1]}"
    cure = (
        f"build with SECL_CUDA_ARCHS={arch}{'a' if capability == (9, 0) else ''}"
        if capability >= OLDEST_CUDA
        else f"sm_{OLDEST_CUDA[0]}{OLDEST_CUDA[1]} is the oldest that the kernels serve"
    )
    return [f"this build has CUDA code for {', '.join(cuda_archs())}, not for this GPU's sm_{arch}; {cure}"]
