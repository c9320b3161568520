# SPDX-License-Identifier: Apache-2.0
"""How commands speak to a terminal: errors as one message and a status, what to do next, bars."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from secl_models.options.errors import InputError, unwritable, without_memory
from secl_models.options.events import Pace, bars, listen, tell
from secl_models.train.stopping import Terminated

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
# The boxes of a help text cut the names of options where a terminal is narrow; plain text wraps.
MARKUP: Literal["markdown"] | None = "markdown" if shutil.get_terminal_size().columns >= 70 else None
QUIET = 10.0  # seconds without a line


class Group(TyperGroup):
    """Turns bad input into one message and status 2, and Ctrl-C into how to go on and status 130."""

    def invoke(self, ctx: Any) -> Any:
        speak("auto", quiet=False)  # until the command says otherwise
        try:
            return super().invoke(ctx)
        except InputError as error:
            _refuse(error, error)
        except ModuleNotFoundError as error:
            complain(f"{ctx.invoked_subcommand} needs {error.name}; see `secl doctor` for how to get it.")
            raise typer.Exit(BAD_INPUT) from error
        except BrokenPipeError:
            raise  # whoever read the output has enough
        except OSError as error:
            _refuse(unwritable(error, error.filename or ctx.invoked_subcommand, "call it again"), error)
        except (MemoryError, RuntimeError) as error:
            told = without_memory(error, f"secl {ctx.invoked_subcommand}")
            if told is None:
                raise
            _refuse(told, error)
        except Terminated as error:
            _stopped("\nStopped by SIGTERM after a step that is kept.", ctx.invoked_subcommand)
            raise typer.Exit(TERMINATED) from error
        except KeyboardInterrupt as error:
            _stopped("\nStopped.", ctx.invoked_subcommand)
            raise typer.Exit(INTERRUPTED) from error


def _refuse(refusal: InputError, cause: Exception) -> NoReturn:
    complain(str(refusal), what=refusal.what, rule=refusal.rule, got=refusal.got, cure=refusal.cure)
    raise typer.Exit(BAD_INPUT) from cause


def complain(sentence: str, **values: object) -> None:
    """Tell what ends the command."""
    speaker = "secl" if first_process() else f"secl, process {os.environ['RANK']}"
    tell("error", f"{speaker}: {sentence}", level=logging.ERROR, **values)


def _stopped(sentence: str, command: str | None) -> None:
    if first_process():
        tell("stopped", f"{sentence} {how_to_go_on(command)}", level=logging.ERROR)


def speak(log_format: str, quiet: bool) -> None:
    """Tell events the way the options of a command ask for; of several processes one speaks."""
    listen(log_format, quiet=quiet, silent=not first_process())


def first_process() -> bool:
    """Whether this is the one of `torchrun`'s processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def how_to_go_on(command: str | None) -> str:
    """What a user who stopped a command types next."""
    left_out = ("--overwrite", "--resume")
    arguments = [word for word in sys.argv[1:] if word not in left_out and not word.startswith("--max-steps=")]
    if "--max-steps" in arguments:
        place = arguments.index("--max-steps")
        del arguments[place : place + 2]
    again = shlex.join(["secl", *arguments])
    if command == "train":
        again = "the same torchrun command," if "WORLD_SIZE" in os.environ else again
        return f"Go on from the last checkpoint: {again} --resume"
    if command == "study":
        return f"Finished rows are kept; go on with the others: {again}"
    if command == "predict":
        return f"What was finished stays; go on: {again}"
    if command == "demo":
        return f"What was finished stays; begin again: {again} --overwrite"
    return f"Nothing half-written is left; begin again: {again}"


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM is Ctrl-C, so that what is half-written is removed; for the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress_bar(title: str, *, each: bool = False) -> Iterator[Callable[[int, int], None]]:
    """How far a task is, by calls with the number done and the number to do.

    A bar on a terminal; elsewhere a line at the start and where it was silent for a while.

    Args:
        title: Of the task.
        each: The task tells of each part by itself.
    """
    if not bars():
        if each:
            yield lambda done, total: None
        else:
            tell("start", title)
            yield _lines(title)
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Callable[[int, int], None]:
    pace = Pace(0, every=QUIET)

    def update(done: int, total: int) -> None:
        pace.total = total
        if pace.due():
            pace.said()
            tell("progress", f"{title}: {done}/{total}, {pace.left(done)} left", done=done, total=total)

    return update
