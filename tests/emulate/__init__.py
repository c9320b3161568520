# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources compiled for an emulated GPU: the operations of `secl_emulated`, which run on CPU tensors."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parent.parent
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


def _include_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    ours = [f"-I{REPOSITORY / 'csrc'}", f"-I{REPOSITORY / 'tests'}"]
    return ours + [f"-isystem{path}" for path in include_paths()]


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _state(files: Iterable[str]) -> dict[str, str]:
    """What the files hold, as far as telling them apart goes; nothing of one that is gone."""
    return {file: _digest(Path(file).read_bytes()) for file in files if Path(file).is_file()}


def _precompile(folder: Path) -> Path:
    """The headers of torch that nearly every source reads, read once: a fifth of the whole compilation."""
    header = folder / "torch_stable.h"
    text = "".join(f"#include <{name}>\n" for name in HEADERS)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    _compile(header, folder / "torch_stable.h.gch", "-x", "c++-header")
    return header


def _compile(source: Path, target: Path, *options: str) -> Path:
    """What a source compiles to, made again where it, a header that it read, or the command has changed."""
    record = target.with_suffix(".json")
    command = [compiler() or "g++", *FLAGS, *_include_flags(), *options, "-c", str(source)]
    known = json.loads(record.read_text()) if record.exists() and target.exists() else {}
    if known.get("command") == [*command, torch.__version__] and known["files"] == _state(known["files"]):
        return target
    partial, read = target.with_suffix(f".{os.getpid()}.o"), target.with_suffix(f".{os.getpid()}.d")
    done = subprocess.run(
        [*command, "-MMD", "-MF", str(read), "-o", str(partial)], capture_output=True, text=True, check=False
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    files = read.read_text().replace("\\\n", " ").partition(":")[2].split()
    read.unlink()
    partial.replace(target)
    record.write_text(json.dumps({"command": [*command, torch.__version__], "files": _state(files)}))
    return target


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: the test workers wait for the first one's build and find it made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    options = ("-include", str(_precompile(folder)), "-x", "c++")

    def compiled(source: Path) -> Path:
        return _compile(source, folder / f"{source.parent.name}.{source.name}.o", *options)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compiled, sources()))
    library = folder / f"secl_emulated.{_digest(b''.join(each.read_bytes() for each in objects))}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        libraries = Path(torch.__file__).parent / "lib"
        command = [compiler() or "g++", "-shared", *map(str, objects), f"-L{libraries}", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.replace(library)
    return library
