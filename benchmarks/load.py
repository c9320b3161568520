# SPDX-License-Identifier: Apache-2.0
"""How busy others keep the machine before a case: no time of a CPU is taken beside them, unless asked and marked.

The load is a number of cores: how long all cores of `/proc/stat` worked while this process waited half a second, less
what this process itself worked. It counts what others do as the case begins. The kernel's load average counts this
run's own earlier cases too, for minutes, and not what has just begun.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.provenance import BUSY

QUIET = 0.5  # cores that others may keep busy
SECONDS = {"cpu": 0.5, "cuda": 0.05}  # a GPU is lent for minutes, and its tables have a hundred cases
STAT = Path("/proc/stat")


class Ticks(NamedTuple):
    """Of all cores since the machine started."""

    worked: int
    passed: int


def ticks() -> Ticks:
    """What the kernel has counted; what a hypervisor gave to other machines was worked too."""
    user, nice, system, idle, waiting, irq, soft_irq, stolen = map(int, STAT.read_text().split()[1:9])
    worked = user + nice + system + irq + soft_irq + stolen
    return Ticks(worked, worked + idle + waiting)


def others(seconds: float) -> float:
    """Cores that other processes keep busy over so many seconds; nan where the kernel does not count."""
    start, before, own = time.perf_counter(), ticks(), time.process_time()
    time.sleep(seconds)
    after, own = ticks(), time.process_time() - own
    if after.passed == before.passed:
        return float("nan")
    worked = (after.worked - before.worked) / os.sysconf("SC_CLK_TCK")
    return max(0.0, (worked - own) / (time.perf_counter() - start))


def said(cores: float) -> str:
    """A load in words."""
    return f"others kept {cores:.2f} cores busy" if cores >= 0 else "this kernel does not tell how busy others were"


class Load(NamedTuple):
    """How busy others were before a case, and whether its rows must say so in their note."""

    cores: float
    loud: bool = False

    @property
    def cell(self) -> str:
        """What the column `load` says."""
        return f"{self.cores:.2f}"

    def stamp(self, row: Sequence[object], source: Sequence[object], *, timed: object) -> tuple[object, ...]:
        """A row with its origin; where it holds a number beside others, its last cell, the note, is marked."""
        *cells, note = row
        if self.loud and timed:
            note = "; ".join(filter(None, (str(note), BUSY + said(self.cores))))
        return (*cells, note, *source, self.cell)


@dataclass
class Watch:
    """Looks before each case of a run. A GPU's times are their own: there the load is written and nothing follows."""

    device: str
    busy: bool = False  # go on beside others
    begun: bool = False

    def before(self, case: str) -> Load:
        """The load before this case.

        Raises:
            SystemExit: It is the first case of a run on a CPU, and others keep the machine busy.
        """
        cores = others(SECONDS[self.device])
        loud = self.device == "cpu" and not cores <= QUIET
        if loud and not (self.busy or self.begun):
            raise SystemExit(
                f"{said(cores)} before {case}; nothing was timed, as a CPU is timed where others keep at most {QUIET} "
                "cores busy; wait until they have ended, or go on with --busy, which marks each row"
            )
        if loud:
            print(f"\n{BUSY}{said(cores)} before {case}; its rows are marked", flush=True)
        self.begun = True
        return Load(cores, loud)
