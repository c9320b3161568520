# SPDX-License-Identifier: Apache-2.0
"""What a program tells while it works: events with a sentence and values, for a person, a log file or a program.

They go through the standard `logging`, as the logger `secl_models`, so that whoever calls the library decides.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TextIO

from secl_models.options.errors import InputError

FORMATS = ("auto", "plain", "json")
NOTE = 25  # worth saying where a bar shows the progress; between INFO and WARNING
EVERY = 60.0  # seconds after which a long task says how far it is

_log = logging.getLogger("secl_models")
logging.addLevelName(NOTE, "NOTE")


def tell(event: str, sentence: str, *, level: int = logging.INFO, **values: object) -> None:
    """Say how far the work is.

    Args:
        event: Its kind in one word, such as "validation".
        sentence: For a person.
        level: DEBUG for what the command prints as well, INFO for progress, NOTE for what stands beside a bar too,
            WARNING for what may need an answer.
        **values: The numbers of the sentence, for a program; NaN becomes null.
    """
    _log.log(level, "%s", sentence, extra={"event": event, "values": values})


class Pace:
    """When a task of many parts should say how far it is, and how long the rest takes.

    Args:
        total: Parts of the task.
        done: Parts that were finished before.
        every: Seconds between two sayings.
        clock: Seconds.

    Example:
        >>> pace = Pace(total=10, clock=iter([0.0, 5.0, 5.0]).__next__)
        >>> pace.due(), pace.left(5)
        (False, '0:00:05')
    """

    def __init__(
        self, total: int, done: int = 0, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self._first, self._every, self._clock = done, every, clock
        self._begin = self._said = clock()

    def due(self) -> bool:
        """Whether it was silent for long."""
        return self._clock() - self._said >= self._every

    def said(self) -> None:
        """Begin to wait anew."""
        self._said = self._clock()

    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begin

    def seconds_left(self, done: int) -> float:
        """Seconds that the rest takes at the speed so far; NaN before the first part is done."""
        own = done - self._first
        return self.seconds() / own * (self.total - done) if own > 0 else math.nan

    def left(self, done: int) -> str:
        """The same as hours, minutes and seconds."""
        seconds = self.seconds_left(done)
        return "?" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment: a bar stands in for it while it is drawn."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


class _Plain(logging.Formatter):
    """Progress with the time of day, notes and warnings as they are; `prefix` names one of several runs."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        when = f"{datetime.now():%Y-%m-%d %H:%M:%S} " if record.levelno < NOTE else ""
        return f"{when}{self._prefix}{record.getMessage()}"


class _Json(logging.Formatter):
    """One object a line."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._run = {"run": prefix.strip(": ")} if prefix else {}

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            **self._run,
            "message": record.getMessage(),
            **getattr(record, "values", {}),
        }
        return json.dumps(_finite(fields), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Voice:
    """How events are told in this process."""

    handler: logging.Handler | None = None
    choice: tuple[str, bool] | None = None
    bars: bool | None = None  # None: wherever standard error is a terminal


def listen(log_format: str = "auto", *, quiet: bool = False, silent: bool = False, prefix: str = "") -> None:
    """Let events of this process be written to standard error, in place of an earlier call's choice.

    Args:
        log_format: "plain": a line for each; "json": an object for each; "auto": a bar on a terminal, else "plain".
        quiet: Warnings alone, and no bar.
        silent: Errors alone: another process speaks for this one.
        prefix: Before each sentence, where several runs share one output.

    Raises:
        InputError: Another format.
    """
    if log_format not in FORMATS:
        rule = f"one of {', '.join(FORMATS)}"
        raise InputError("--log-format", rule=rule, got=log_format, cure="choose one of these")
    if _Voice.handler is not None:
        _log.removeHandler(_Voice.handler)
    _Voice.bars = log_format == "auto" and not quiet and not silent and sys.stderr.isatty()
    _Voice.handler = _Stderr()
    _Voice.handler.setFormatter(_Json(prefix) if log_format == "json" else _Plain(prefix))
    loud = logging.DEBUG if log_format == "json" else NOTE if _Voice.bars else logging.INFO
    _Voice.handler.setLevel(logging.ERROR if silent else logging.WARNING if quiet else loud)
    _Voice.choice = log_format, quiet
    _log.addHandler(_Voice.handler)
    _adopt_warnings(_Voice.handler if log_format == "json" else None)
    _log.setLevel(logging.DEBUG)


def _adopt_warnings(handler: logging.Handler | None) -> None:
    """Let what libraries warn of be an event too, where each line is an object."""
    logging.captureWarnings(handler is not None)
    warned = logging.getLogger("py.warnings")
    for old in [each for each in warned.handlers if isinstance(each, _Stderr)]:
        warned.removeHandler(old)
    if handler is not None:
        warned.addHandler(handler)


def choice() -> tuple[str, bool] | None:
    """Format and quietness that `listen` was called with, for a process that works for this one; None: not called."""
    return _Voice.choice


def for_programs() -> bool:
    """Whether standard error holds an object in each line, and nothing else may go there."""
    return _Voice.choice is not None and _Voice.choice[0] == "json"


def bars() -> bool:
    """Whether bars are drawn: on a terminal, unless lines were asked for."""
    return sys.stderr.isatty() if _Voice.bars is None else _Voice.bars
