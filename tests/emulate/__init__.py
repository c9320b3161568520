# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources compiled for an emulated GPU: the operations of `secl_emulated`, which run on CPU tensors."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parent.parent
CUDA = REPOSITORY / "csrc" / "cuda"
FLAGS = (
    "-std=c++20", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE", "-DSECL_EMULATE", "-DTORCH_TARGET_VERSION=0x020b000000000000",
)  # fmt: skip
NOT_HERE = {"ops.cpp", "runtime.cu"}  # registered and implemented by files of this folder


def sources() -> list[Path]:
    """The kernels and operations of csrc/cuda, and the emulated GPU."""
    ours = [path for ending in ("*.cu", "*.cpp") for path in CUDA.rglob(ending) if path.name not in NOT_HERE]
    return sorted([*ours, *FOLDER.glob("*.cpp")])


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def _include_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    ours = [f"-I{REPOSITORY / 'csrc'}", f"-I{REPOSITORY / 'tests'}"]
    return ours + [f"-isystem{path}" for path in include_paths()]


def _fingerprint(*files: Path) -> str:
    digest = hashlib.sha256(repr((FLAGS, torch.__version__, compiler())).encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(source: Path, folder: Path, headers: list[Path]) -> Path:
    """The object of one source, made again where it or any header has changed."""
    target = folder / f"{source.parent.name}.{source.name}.{_fingerprint(source, *headers)}.o"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        command = [compiler() or "g++", *FLAGS, *_include_flags(), "-x", "c++", "-c", str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        partial.replace(target)
    return target


@functools.cache
def load() -> None:
    """Compile what has changed, and register `torch.ops.secl_emulated`.

    Raises:
        RuntimeError: A source does not compile, or only with warnings.
    """
    folder = REPOSITORY / "build" / "emulate"
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(
        path for root in (REPOSITORY / "csrc", FOLDER) for end in ("*.h", "*.cuh") for path in root.rglob(end)
    )
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder, headers), sources()))
    library = folder / f"secl_emulated.{_fingerprint(*objects)}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        libraries = Path(torch.__file__).parent / "lib"
        command = [compiler() or "g++", "-shared", *map(str, objects), f"-L{libraries}", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.replace(library)
    torch.ops.load_library(str(library))
