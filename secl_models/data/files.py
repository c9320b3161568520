# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secl_models.options.errors import InputError

UNFINISHED = "*.partial"  # what a killed process was writing


def partial_path(path: Path) -> Path:
    """Where a file or folder grows until it takes its place: beside it, hidden, one for each process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A stream whose content becomes that of `path` when the block ends without an error.

    Args:
        path: Target; its folder exists. It holds its old content until then, and nothing is left beside it.
        durable: Also bring file and name to the disk, so that a power cut takes neither back.

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "numbers"
        >>> with whole_file(place) as stream:
        ...     _ = stream.write(b"1 2 3")
        >>> place.read_bytes()
        b'1 2 3'
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(partial, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)  # not the hidden one, which is gone
        raise
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path, rule: str, cure: str) -> str:
    """The text of a file in UTF-8, with or without the mark that spreadsheets and editors put before it.

    Args:
        path: The file.
        rule: What it should be, for the message.
        cure: For the message.

    Raises:
        InputError: It cannot be read, or is of another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or error
        cure = f"chmod u+r {str(path)!r}" if isinstance(error, PermissionError) else cure
        raise InputError(path, rule=rule, got=got, cure=cure) from error


def write_bytes(path: Path, payload: bytes) -> None:
    """Write `payload`, whole or not at all; a missing folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        stream.write(payload)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; a missing folder is made."""
    write_bytes(path, text.encode())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
