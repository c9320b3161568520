# SPDX-License-Identifier: Apache-2.0
"""Where the time of a step goes: a clock around each stage, on the device without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from rich.table import Table

STEP = "step"  # the whole of it, around all stages
TEACHER = "teacher"
_OFF: AbstractContextManager[None] = nullcontext()


def unwatched(stage: str) -> AbstractContextManager[None]:
    """In place of `Stages` where nothing is measured."""
    return _OFF


@dataclass
class _Spent:
    calls: int = 0
    first: float = 0.0  # seconds of the first call: allocation and compilation belong to no later one
    rest: float = 0.0


class Stages:
    """Measures the stages of training steps; call it with a name around each.

    On a GPU the time is that of the device, between two events of its stream.

    Args:
        device: Where the stages run.

    Example:
        >>> stages = Stages(torch.device("cpu"))
        >>> for _ in range(3):
        ...     with stages("batch"):
        ...         _ = torch.ones(8).sum()
        >>> list(stages.seconds())
        ['batch']
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: dict[str, _Spent] = {}
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        return self._on_device(stage) if self._device.type == "cuda" else self._on_host(stage)

    def settle(self) -> None:
        """Read the events so far; to be called where the host waits for the device anyhow."""
        if self._open:
            torch.cuda.synchronize(self._device)
        for stage, start, end in self._open:
            self._add(stage, start.elapsed_time(end) / 1e3)
        self._open.clear()

    def seconds(self) -> dict[str, tuple[float, int]]:
        """Seconds and calls of each stage; where there are several calls, without the first."""
        self.settle()
        return {
            name: (spent.rest, spent.calls - 1) if spent.calls > 1 else (spent.first, spent.calls)
            for name, spent in self._spent.items()
        }

    def table(self, labeled: int, unlabeled: int, peak_memory_mib: float) -> Table:
        """A line for each stage: steps, milliseconds in each of them, share of the whole.

        Args:
            labeled: Labelled images of a step.
            unlabeled: Unlabelled ones of a step that asks the teacher.
            peak_memory_mib: Of the run so far.
        """
        found = self.seconds()
        whole, steps = found.pop(STEP)
        rows = [*found.items(), ("other", (whole - sum(spent for spent, _ in found.values()), steps))]
        table = Table(title="Where a step's time goes", title_justify="left", caption_justify="left")
        for name in ("stage", "steps", "ms", "share"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for stage, (spent, calls) in [*rows, ("all", (whole, steps))]:
            if stage == "all":
                table.add_section()
            table.add_row(stage, str(calls), f"{1e3 * spent / max(1, calls):.2f}", f"{100 * spent / whole:.1f} %")
        asked = min(steps, self._spent[TEACHER].calls if TEACHER in self._spent else 0)
        pace = (steps * labeled + asked * unlabeled) / whole
        table.caption = f"{pace:.1f} images/s, peak memory {peak_memory_mib:.0f} MiB"
        return table

    @contextmanager
    def _on_host(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._add(stage, time.perf_counter() - start)

    @contextmanager
    def _on_device(self, stage: str) -> Iterator[None]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._open.append((stage, events[0], events[1]))
        events[0].record()
        yield
        events[1].record()

    def _add(self, stage: str, seconds: float) -> None:
        spent = self._spent.setdefault(stage, _Spent())
        spent.calls += 1
        if spent.calls == 1:
            spent.first = seconds
        else:
            spent.rest += seconds


Watch = Callable[[str], AbstractContextManager[None]]
