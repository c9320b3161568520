# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources compiled for an emulated GPU: the operations of `secl_emulated`, which run on CPU tensors."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import torch

from tests.compiling import REPOSITORY, all_compiled, alone, compiled, include_flags, linked, old_headers

FOLDER = Path(__file__).parent
CUDA = REPOSITORY / "csrc" / "cuda"
FLAGS = (
    "-std=c++20", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE", "-DSECL_EMULATE", "-DTORCH_TARGET_VERSION=0x020b000000000000",
)  # fmt: skip
HEADERS = ("torch/csrc/stable/library.h", "torch/csrc/stable/ops.h", "torch/csrc/stable/tensor.h",
           "torch/headeronly/util/BFloat16.h", "torch/headeronly/util/Half.h")  # fmt: skip
NOT_HERE = {"ops.cpp", "runtime.cu"}  # registered and implemented by files of this folder


def sources() -> list[Path]:
    """The kernels and operations of csrc/cuda, and the emulated GPU."""
    ours = [path for ending in ("*.cu", "*.cpp") for path in CUDA.rglob(ending) if path.name not in NOT_HERE]
    return sorted([*ours, *FOLDER.glob("*.cpp")])


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def absence() -> str | None:
    """Why there is no emulated GPU here; None where there is one."""
    return old_headers() or (None if compiler() else "the emulated GPU needs g++, or CXX")


def _command() -> list[str]:
    return [compiler() or "g++", *FLAGS, *include_flags(REPOSITORY / "tests")]


def _precompile(folder: Path) -> Path:
    """The headers of torch that nearly every source reads, read once: a fifth of the whole compilation."""
    header = folder / "torch_stable.h"
    text = "".join(f"#include <{name}>\n" for name in HEADERS)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    compiled(header, folder / "torch_stable.h.gch", [*_command(), "-x", "c++-header"])
    return header


@functools.cache
def load() -> None:
    """Compile what has changed, and register `torch.ops.secl_emulated`.

    Raises:
        RuntimeError: A source does not compile, or only with warnings.
    """
    folder = REPOSITORY / "build" / "emulate"
    with alone(folder):
        library = _build(folder)
    torch.ops.load_library(str(library))


def _build(folder: Path) -> Path:
    """The library of what the sources hold now."""
    options = ["-include", str(_precompile(folder)), "-x", "c++"]
    objects = all_compiled(sources(), folder, [*_command(), *options])
    libraries = Path(torch.__file__).parent / "lib"

    def link(names: list[str]) -> list[str]:
        return [compiler() or "g++", "-shared", *names, f"-L{libraries}", "-ltorch_cpu", "-lc10"]

    return linked(objects, folder / "secl_emulated.so", link)
