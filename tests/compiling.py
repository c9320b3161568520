# SPDX-License-Identifier: Apache-2.0
"""C++ sources that the tests compile for themselves, again only where they, a header, or the command have changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from secl_ops.library import OLDEST_TORCH, release

REPOSITORY = Path(__file__).resolve().parent.parent


def include_flags(*folders: Path) -> list[str]:
    """The folders, the sources of the extension, and torch's headers, which may warn as they please."""
    from torch.utils.cpp_extension import include_paths

    ours = [f"-I{folder}" for folder in (*folders, REPOSITORY / "csrc")]
    return ours + [f"-isystem{path}" for path in include_paths()]


def old_headers() -> str | None:
    """Why the sources do not compile against this torch; None where they do."""
    if release(torch.__version__) >= OLDEST_TORCH:
        return None
    return f"the C++ sources need torch {'.'.join(map(str, OLDEST_TORCH))} or later, not {torch.__version__}"


def digest(text: bytes) -> str:
    """What tells contents apart."""
    return hashlib.sha256(text).hexdigest()[:16]


def _state(files: Iterable[str]) -> dict[str, str]:
    """What the files hold, as far as telling them apart goes; nothing of one that is gone."""
    return {file: digest(Path(file).read_bytes()) for file in files if Path(file).is_file()}


def compiled(source: Path, target: Path, compiler: Sequence[str]) -> Path:
    """What a source compiles to, made again where it, a header that it read, or the command has changed.

    Raises:
        RuntimeError: The source does not compile, or only with warnings.
    """
    record = target.with_suffix(".json")
    command = [*compiler, "-c", str(source)]
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


def all_compiled(sources: Iterable[Path], folder: Path, compiler: Sequence[str]) -> list[Path]:
    """The objects of the sources, made by all processors."""

    def one(source: Path) -> Path:
        return compiled(source, folder / f"{source.parent.name}.{source.name}.o", compiler)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(one, sources))


def linked(objects: Sequence[Path], name: Path, command: Callable[[list[str]], list[str]]) -> Path:
    """What the objects are linked to: beside `name`, under a name that tells what they hold."""
    found = name.with_suffix(f".{digest(b''.join(each.read_bytes() for each in objects))}{name.suffix}")
    if not found.exists():
        partial = found.with_suffix(f".{os.getpid()}")
        subprocess.run([*command([str(each) for each in objects]), "-o", str(partial)], check=True)
        partial.replace(found)
    return found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: the test workers wait for the first one's build and find it made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
