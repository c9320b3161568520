# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks memory`: the most rows whose loss and gradient fit a memory budget, ours and each rival's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.cases import Case
from benchmarks.contenders import YARDSTICKS, contender, names, ours
from benchmarks.gate import agree, reason
from benchmarks.load import Watch
from benchmarks.measure import extra_mib
from benchmarks.provenance import ORIGIN, origin, shown, write_rows

FIELDS = (
    "contender", "device", "dtype", "kind", "denominator", "width", "budget_mib", "rows", "extra_mib", "next_rows",
    "next_extra_mib", "note", *ORIGIN,
)  # fmt: skip
BUDGET_MIB = {"cpu": 128.0, "cuda": 1024.0}
PER_OCTAVE = 8  # sizes between N and 2 N
FIRST = 256  # rows of the smallest size
LAST = 14 * PER_OCTAVE  # 4 million rows
WIDTH = 128


class Probe(NamedTuple):
    """One size: what it took, or why it has no number."""

    mib: float | None
    why: str = ""

    def fits(self, budget: float) -> bool:
        """Whether it ran and stayed inside."""
        return self.mib is not None and self.mib <= budget


class Found(NamedTuple):
    """The largest size that fits, and the next, which does not."""

    rows: int | None
    inside: Probe
    next_rows: int | None
    outside: Probe


@dataclass
class Search:
    """Doubles the rows until they do not fit, then halves the step: every size that decides was measured."""

    measure: Callable[[int], Probe]
    budget: float
    patience: float  # seconds that one size may take

    def size(self, place: int) -> int:
        """Rows of one place on the grid."""
        return round(FIRST * 2 ** (place / PER_OCTAVE) / 32) * 32

    def run(self) -> Found:
        """The largest size that fits; where time ends the search, what is known by then."""
        below, above = -1, LAST + 1
        inside, outside = Probe(None), Probe(None, "no larger size was tried")
        place = 0
        while above - below > 1:
            start = time.perf_counter()
            probe = self.measure(self.size(place))
            if probe.fits(self.budget):
                below, inside = place, probe
            else:
                above, outside = place, probe
            if probe.fits(self.budget) and time.perf_counter() - start > self.patience:
                return Found(self.size(below), inside, None, Probe(None, "at least: a larger size takes too long"))
            place = min(place + PER_OCTAVE, LAST) if above > LAST else (below + above) // 2
        rows = None if below < 0 else self.size(below)
        return Found(rows, inside, None if above > LAST else self.size(above), outside)


def _probe(case: Case, name: str, budget: float, threads: int, patience: float) -> Callable[[int], Probe]:
    def measure(rows: int) -> Probe:
        asked = replace(case, rows=rows, keys=rows if case.keys else 0)
        try:
            # What does not fit is stopped early: twice the budget of address space, which memory maps waste.
            spare = round((2 * budget + 256) * 2**20)
            return Probe(extra_mib(asked, name, threads, spare=spare, timeout=4 * patience))
        except (RuntimeError, TimeoutError) as error:
            return Probe(None, reason(error))

    return measure


def largest(
    out: Path, device: str, budget: float, patience: float, threads: int, kind: str = "self", busy: bool = False
) -> None:
    """Search for every contender in turn and append its row to the table.

    Raises:
        SystemExit: Our own result is wrong, or others keep the machine busy: a slow size ends a search.
    """
    budget = budget or BUDGET_MIB[device]
    torch.set_num_threads(threads)
    dtype = "bfloat16" if device == "cuda" else "float32"
    keys = 0 if kind == "self" else 1024
    case = Case(f"memory-{kind}", 1024, WIDTH, keys, both=kind == "both", device=device, dtype=dtype)
    source, watch = origin(threads, device), Watch(device, busy)
    for name in (name for name in names(case) if name not in YARDSTICKS):
        load = watch.before(name)
        shape = (name, device, dtype, kind, case.denominator, WIDTH, f"{budget:g}")
        try:
            agree(case, name, contender(case, name)())
        except Exception as error:  # a rival may fail in any way of its own; the table says how
            if isinstance(error, AssertionError) and name in ours(device):
                raise SystemExit(f"{error}; nothing was measured") from error
            cells: tuple[object, ...] = ("", "", "", "", reason(error))
            print(f"  {name:26}  not measured: {cells[-1]}", flush=True)
        else:
            cells = _cells(Search(_probe(case, name, budget, threads, patience), budget, patience).run())
            print(
                f"  {name:26}{cells[0]:>10} rows fit {budget:g} MiB: {cells[1]} MiB; {cells[2]} {cells[4]}", flush=True
            )
        write_rows(out, FIELDS, [load.stamp((*shape, *cells), source, timed=cells[0])], append=True)
    print(f"written to {shown(out)}")


def _cells(found: Found) -> tuple[object, ...]:
    def said(probe: Probe) -> str:
        return "" if probe.mib is None else f"{probe.mib:.1f}"

    rows = "" if found.rows is None else found.rows
    note = found.outside.why if found.rows is not None else f"not even {FIRST} rows: {found.outside.why}"
    return (rows, said(found.inside), found.next_rows or "", said(found.outside), note)
