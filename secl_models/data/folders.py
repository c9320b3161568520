# SPDX-License-Identifier: Apache-2.0
"""Folders that results go to: one process at a time writes there, and only what is on their list is ever removed."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from secl_models.options.errors import InputError, writing

LOCK, HOLDER, LISTED = ".secl.lock", ".secl.holder", ".secl.files"
UNKNOWN = "another process that writes there"
_LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # as of an NFS mount without locks
# See `data.files.partial_path`; `raw` are the numbers of a `data.probabilities.ProbabilityFile`.
_PARTIAL = re.compile(r"\.(?P<name>.+?)(?:\.raw)?\.\d+\.partial")


@contextmanager
def held(folder: Path, what: str, *, file: str | None = None, then: str = "call it again") -> Iterator[None]:
    """Within it this process alone writes to a folder; the system lets go of it when the process dies.

    Args:
        folder: Made where it is missing, and removed again if nothing else came into it.
        what: What is going on, for whoever is refused, such as "secl train".
        file: Hold this file of the folder instead of the whole folder.
        then: What to do once the folder can be written.

    Raises:
        InputError: Another process holds the folder; the message says which. Or it is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(folder, rule="a folder to write to", got="a file", cure="name another --out")
    fresh, path = not folder.exists(), folder / (LOCK if file is None else f".{file}.lock")
    holder = path.with_suffix(".holder")
    taken: BaseFileLock | None = None
    try:
        with writing(folder, then):
            folder.mkdir(parents=True, exist_ok=True)
            taken = _acquire(path, folder / (file or ""), "folder" if file is None else "file")
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"{what}, process {os.getpid()} on {socket.gethostname()} since {since}\n")
        yield
    finally:
        if taken is not None:
            holder.unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # still held: whoever opened it sees that it is gone, and makes a new one
            taken.release()
        if fresh:
            with suppress(OSError):  # something came into it, or it was never made
                folder.rmdir()


def _acquire(path: Path, place: Path, kind: str) -> BaseFileLock:
    """A lock that the system ends with the process, or, on a disk that has none, a file that says whose it is."""
    cure = "wait for that one or stop it, or name another place"
    try:
        try:
            return _taken(FileLock(path, timeout=0))
        except OSError as error:
            if error.errno not in _LOCKLESS:
                raise
            path.unlink(missing_ok=True)
            owner = path.with_suffix(".owner")
            cure += f"; where that process is gone with its machine, remove {owner}"
            return _taken(SoftFileLock(owner, timeout=0))
    except Timeout as error:
        rule = f"one process at a time writes to a {kind}"
        raise InputError(place, rule=rule, got=_holder(path.with_suffix(".holder")), cure=cure) from error


def _taken(lock: BaseFileLock) -> BaseFileLock:
    lock.acquire()
    return lock


def _holder(file: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text().strip() or UNKNOWN
    return UNKNOWN


def note_written(folder: Path, *names: str) -> None:
    """Put files onto the list of those that were written by us, before they are written.

    Args:
        folder: Keeps the list.
        names: Relative to the folder.
    """
    known = written(folder)
    if fresh := [name for name in dict.fromkeys(names) if name not in known]:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LISTED).open("a", encoding="ascii") as stream:
            stream.writelines(json.dumps(name) + "\n" for name in fresh)


def written(folder: Path) -> dict[str, Path]:
    """The files on the list of a folder that are there, by name; nothing outside the folder counts."""
    try:
        lines = (folder / LISTED).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _not_a_list(folder, error) from error
    try:
        names = [json.loads(line) for line in lines]
    except ValueError as error:
        raise _not_a_list(folder, error) from error
    base = Path(os.path.abspath(folder))
    inside = (name for name in names if isinstance(name, str) and "\0" not in name)
    places = {name: Path(os.path.normpath(base / name)) for name in inside}
    return {name: place for name, place in places.items() if base in place.parents}


def refuse_writing_over(inputs: Iterable[Path], *files: Path) -> None:
    """Refuse to write over what is read, whatever the flags and under whatever name it is reached.

    Args:
        inputs: Files that are read.
        *files: Files that are to be written.

    Raises:
        InputError: One of the files is an input.
    """
    read = {_identity(path): path for path in inputs}
    for file in files:
        found = read.get(_identity(file))
        if found is not None:
            raise InputError(
                file,
                rule="what is read is never written over",
                got="that very file" if found == file else f"the file that is read as {found}",
                cure="name another place for what is written",
            )


def _identity(file: Path) -> object:
    """Equal for two names of one file, by links or by another spelling; the resolved path where there is none yet."""
    try:
        state = file.stat()
    except OSError:
        return os.path.realpath(file)
    return state.st_dev, state.st_ino


def _not_a_list(folder: Path, error: Exception) -> InputError:
    return InputError(
        folder / LISTED,
        rule="the list of the files that were written to the folder, a JSON text in each line",
        got=error,
        cure="restore it, or empty the folder by hand",
    )


def unlisted(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some names that exist in a folder and are not on its list."""
    ours = written(folder)
    return [name for name in names if name not in ours and os.path.lexists(folder / name)]


def refuse_unlisted(folder: Path, names: Iterable[str]) -> None:
    """Refuse to write over files that are not on the list of a folder.

    Args:
        folder: Where they would be written.
        names: Relative to the folder.

    Raises:
        InputError: Names those that are in the way.
    """
    if found := unlisted(folder, names):
        raise InputError(
            folder,
            rule="only files on the folder's own list are replaced or removed",
            got=f"{', '.join(found[:3])}{' and more' if len(found) > 3 else ''}, which nobody listed",
            cure="move them away, or name another --out",
        )


def remove_written(folder: Path, *, whole: bool = False) -> None:
    """Remove the files on the list of a folder, the list itself, and folders inside that are empty then.

    Args:
        folder: All that is not on its list stays.
        whole: Remove the folder too if it is empty then.

    Raises:
        OSError: A file cannot be removed; those that are left are still on the list.
    """
    ours = written(folder)
    remove_partial(folder, ours)
    for place in ours.values():
        if place.is_symlink() or not place.is_dir():  # a folder that took the place of a file is not ours
            place.unlink(missing_ok=True)
    (folder / LISTED).unlink(missing_ok=True)
    parents = {parent for place in ours.values() for parent in place.parents if folder.absolute() in parent.parents}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # not empty, or never made
            parent.rmdir()
    if whole:
        with suppress(OSError):
            folder.rmdir()


def remove_partial(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process was writing when it died.

    Args:
        folder: Held, so that nobody is writing there.
        names: Files whose unfinished versions go.
    """
    ours = set(names)
    for place in {folder / Path(name).parent for name in ours}:
        for path in place.iterdir() if place.is_dir() else ():
            if _finished_name(path.relative_to(folder)) in ours:
                path.unlink(missing_ok=True)


def strangers(folder: Path) -> list[str]:
    """The files in a folder and below that nobody who keeps its list wrote."""
    ours = {*written(folder), LISTED, LOCK, HOLDER}
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return [str(name) for name in found if str(name) not in ours and _finished_name(name) not in ours]


def _finished_name(name: Path) -> str | None:
    """The file that an unfinished version belongs to."""
    match = _PARTIAL.fullmatch(name.name)
    return str(name.with_name(match["name"])) if match else None
