# SPDX-License-Identifier: Apache-2.0
"""The only file that knows compilers: builds `secl_ops/_C.abi3.so` where SECL_BUILD and the machine allow it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup  # type: ignore[import-untyped]  # its stubs are a package of their own

CHOICES = ("auto", "cpu", "cuda", "none")
TORCH_TARGET = "0x020b000000000000"  # the oldest torch that the shared object loads on: 2.11
FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"]
CHECKED = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-DSECL_SANITIZE"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow,bounds-strict", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def notice(text: str) -> None:
    """Say on the error stream what was not built, since a build's output stream is often hidden."""
    print(f"secl: {text}", file=sys.stderr)


def obstacle() -> str | None:
    """Why the C++ extension cannot be built here, or None."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        return f"no C++ compiler ({compiler} or g++) was found; install g++, or set CXX"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        return f"the build environment cannot import torch ({error}); build with --no-build-isolation where torch is"
    return None


def sanitizer() -> list[str]:
    """Flags of the sanitizer that SECL_SANITIZE names, of compiler and linker; none where it names none.

    Raises:
        SystemExit: SECL_SANITIZE is unknown.
    """
    choice = os.environ.get("SECL_SANITIZE", "")
    if choice and choice not in SANITIZERS:
        raise SystemExit(f"SECL_SANITIZE must be one of {', '.join(SANITIZERS)}; got {choice!r}")
    return SANITIZERS[choice] if choice else []


def extension() -> dict[str, Any]:
    """Arguments of `setup` that build the CPU extension over torch's stable ABI."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    sources = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    checks = sanitizer()
    quiet = [f"-isystem{path}" for path in include_paths()]  # no warnings about headers that are not ours
    module = CppExtension(  # type: ignore[no-untyped-call]  # torch's build helpers are untyped
        "secl_ops._C",
        sources,
        depends=headers,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=[*FLAGS, *quiet, *(CHECKED if checks else []), *checks],
        extra_link_args=checks,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


def build() -> dict[str, Any]:
    """What SECL_BUILD asks for, or a clear refusal.

    Raises:
        SystemExit: SECL_BUILD is unknown, or names a build that is not possible.
    """
    choice = os.environ.get("SECL_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"SECL_BUILD must be one of {', '.join(CHOICES)}; got {choice!r}")
    if choice == "cuda":
        raise SystemExit("SECL_BUILD=cuda: the CUDA half of the extension does not exist yet; use SECL_BUILD=cpu")
    if choice == "none":
        return {}
    reason = obstacle()
    if reason is None:
        return extension()
    if choice == "cpu":
        raise SystemExit(f"SECL_BUILD=cpu: {reason}")
    notice(f"building without the C++ extension: {reason}. Every operation then runs on the reference backend")
    return {}


setup(**build())
