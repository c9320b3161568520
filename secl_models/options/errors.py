# SPDX-License-Identifier: Apache-2.0
"""The one exception for bad input: it names what, the rule, what came, and the cure."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """A file or an argument breaks a rule; the command line prints it and exits with status 2.

    Args:
        what: The file or argument at fault.
        rule: What holds for good input, as a short sentence without a full stop.
        got: What came instead.
        cure: What the user can do about it.

    Example:
        >>> error = InputError(
        ...     "--labeled", rule="at most the labelled cases that exist", got="9 of 4", cure="ask for 4"
        ... )
        >>> print(error)
        --labeled: at most the labelled cases that exist; got 9 of 4. Cure: ask for 4.
    """

    def __init__(self, what: object, *, rule: str, got: object, cure: str) -> None:
        self.what, self.rule, self.got, self.cure = _printable(what), rule, _printable(got), _printable(cure)
        super().__init__(f"{self.what}: {rule}; got {self.got}. Cure: {cure}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Let the message survive the way from a worker process."""
        return _rebuild, (type(self), self.what, self.rule, self.got, self.cure)


class WriteError(InputError):
    """What is to be written finds no place: the disk is full, or the folder may not be written."""


def _rebuild(kind: type[InputError], what: str, rule: str, got: str, cure: str) -> InputError:
    return kind(what, rule=rule, got=got, cure=cure)


def _printable(value: object) -> str:
    """Text that can be printed: bytes of a file name that are no UTF-8 are written out."""
    text = str(value)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which no file name holds
        return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def writing(what: object, then: str) -> Iterator[None]:
    """Turn the failure of a write inside into a `WriteError` that says what to do.

    Args:
        what: The file or folder written.
        then: How to go on once there is room again.

    Raises:
        WriteError: The disk is full, or the place cannot be written.

    Example:
        >>> with writing("/no/such/folder/file", then="begin again"):
        ...     open("/no/such/folder/file", "w")
        Traceback (most recent call last):
        ...
        secl_models.options.errors.WriteError: /no/such/folder/file: a place that can be written; got ...
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error, what, then) from error


def unwritable(error: OSError, what: object, then: str) -> WriteError:
    """The failure of a write, and what to do.

    Args:
        error: What the system said.
        what: The file or folder written.
        then: How to go on once there is room again.
    """
    full = error.errno in _FULL
    return WriteError(
        what,
        rule="room on the disk" if full else "a place that can be written",
        got=error.strerror or error,
        cure=(_free(what) if full else "make it writable, or name another --out") + f", then {then}",
    )


def without_memory(error: BaseException, what: object) -> InputError | None:
    """What to do where memory is not enough, on the host or on a GPU; None for any other error.

    Args:
        error: Any error.
        what: What did not fit, such as an image or a command.
    """
    # torch has no common type for the two, and is not imported where no tensor is.
    on_gpu = type(error).__name__ == "OutOfMemoryError"
    if not (isinstance(error, MemoryError) or on_gpu or "DefaultCPUAllocator" in str(error)):
        return None
    place = "the GPU" if on_gpu else "this machine"
    cure = "lower train.batch, data.patch or the images' resolution, or stop other programs"
    return InputError(what, rule=f"what fits into the memory of {place}", got=_line(error), cure=cure)


@contextmanager
def fitting(what: object) -> Iterator[None]:
    """Turn a lack of memory inside into an `InputError` that says what to do.

    Args:
        what: What may not fit, such as an image.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = without_memory(error, what)
        if told is None:
            raise
        raise told from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _free(what: object) -> str:
    place = Path(str(what)).absolute()
    folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
    return f"free some space on the disk of {folder}"
