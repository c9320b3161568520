# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run`, `sweep` and `pixel`: the measured tables, with the same columns on every device."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import pixel
from benchmarks.cases import Case
from benchmarks.contenders import YARDSTICKS, Step
from benchmarks.gate import Admitted, admit, agree, reason
from benchmarks.limits import device_name, floor_ms
from benchmarks.load import Load, Watch
from benchmarks.measure import Clock, Work, allocated_mib, cap_memory, extra_mib, milliseconds, percentiles
from benchmarks.originals import CONTENDERS, ORIGINALS, OURS, OriginalCase, original_contender
from benchmarks.pixel import PixelCase
from benchmarks.provenance import ORIGIN, origin, shown, write_rows
from benchmarks.published import CASES, SQUARE_ROWS, square
from benchmarks.standing import standing

FIELDS = (
    "case", "contender", "device", "dtype", "kind", "denominator", "rows", "keys", "width", "p20_ms", "p50_ms",
    "p80_ms", "tflops", "limit_ms", "share_of_limit", "limit", "extra_mib", "rounds", "cold_l2", "note", *ORIGIN,
)  # fmt: skip
BUDGET_GFLOP = {"cpu": 500.0, "cuda": 110_000.0}  # a case above takes minutes to check and to time
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
PRODUCTS = "the bare matrix products in this run"
Cells = tuple[object, ...]
Kind = TypeVar("Kind", Case, OriginalCase, PixelCase)
TIME = FIELDS.index("p50_ms")
UNTIMED = ("",) * (FIELDS.index("note") - FIELDS.index("p20_ms"))  # cells of a row without a time


@dataclass(frozen=True)
class Options:
    """How a table is measured."""

    out: Path
    rounds: int = 5
    threads: int = 2
    device: str = "cpu"
    dtype: str = ""  # empty: fp32 on a CPU, bf16 on a GPU
    cold: bool = True  # empty the L2 cache of a GPU before each call
    budget: float = 0.0  # GFLOP of the largest case; 0: that of the device
    patience: float = 60.0  # seconds that one contender of one case may take in all
    without: tuple[str, ...] = ()  # contenders that are not asked to run, such as those that compile for long
    busy: bool = False  # go on where others keep the machine busy

    @property
    def kind(self) -> str:
        """What numbers the rows hold."""
        return self.dtype or DTYPE[self.device]

    @property
    def largest(self) -> float:
        """GFLOP of the largest case that is not left out."""
        return self.budget or BUDGET_GFLOP[self.device]

    def prepare(self) -> None:
        """Threads, and a bound on memory; on a GPU the process must be able to map all of it."""
        torch.set_num_threads(self.threads)
        if self.device == "cpu":
            cap_memory()


def left_out(case: Case, options: Options) -> str | None:
    """Why a case is not timed at all."""
    if case.flop / 1e9 <= options.largest:
        return None
    return f"left out: {case.flop / 1e9:,.0f} GFLOP, above the budget of {options.largest:,.0f}; --budget raises it"


def _shape(case: Case) -> Cells:
    keys = case.keys or case.rows
    return (case.device, case.dtype, case.kind, case.denominator, case.rows, keys, case.width)


def run(options: Options, only: str = "", cases: Sequence[Case] = CASES) -> None:
    """Time every case, contenders in turn within each round, and append the rows to the table case by case.

    Raises:
        SystemExit: No case is named so, or our own result is wrong.
    """
    for case, load, source in _each(options, only, cases):
        _append(options.out, measured(case, options), source, load)
    print(f"written to {shown(options.out)}")


def _each(options: Options, only: str, cases: Sequence[Kind]) -> Iterator[tuple[Kind, Load, Cells]]:
    """The cases whose name holds this, on the device of the options, with what was seen of others before each.

    Raises:
        SystemExit: No case is named so.
    """
    chosen = [case.on(options.device, options.kind) for case in cases if only in case.name]
    if not chosen:
        raise SystemExit(f"--case must be part of one of {', '.join(case.name for case in cases)}; got {only}")
    options.prepare()
    source, watch = origin(options.threads, options.device), Watch(options.device, options.busy)
    for case in chosen:
        yield case, watch.before(case.name), source


def _append(out: Path, rows: Sequence[Cells], source: Cells, load: Load) -> None:
    write_rows(out, FIELDS, [load.stamp(row, source, timed=row[TIME]) for row in rows], append=True)


def sweep(options: Options, kinds: Sequence[str], widths: Sequence[int], largest: int) -> None:
    """Time and memory for N = M, from 1,024 rows up; each size is appended as soon as it is measured.

    Raises:
        SystemExit: Our own result is wrong.
    """
    sizes = [rows for rows in SQUARE_ROWS if rows <= largest]
    run(options, cases=[square(rows, width, kind) for kind in kinds for width in widths for rows in sizes])


def measured(case: Case, options: Options) -> list[Cells]:
    """One row per contender: times, rate, limit, memory; or why there are none."""
    reason_left = left_out(case, options)
    if reason_left:
        print(f"\n{case.name}: {reason_left}", flush=True)
        return [(case.name, "every contender", *_shape(case), *UNTIMED, reason_left)]
    steps, refused = admit(case, options.without)
    clock, failed = Clock(options.device, options.cold), dict[str, Exception]()
    times = milliseconds(steps, options.rounds, clock, options.patience, failed)
    rows = [(case.name, *row) for row in _described(case, steps, times, clock.cache, options)]
    refused |= {name: reason(error) for name, error in failed.items()}
    rows += [(case.name, name, *_shape(case), *UNTIMED, *cells) for name, cells in _refusals(refused)]
    _tell_standing(case.rows, times, judged=True)
    return rows


def _tell_standing(count: int, times: dict[str, list[float]], *, judged: bool) -> None:
    """The last line of a case; what is wanted of a loss on rows is not set for a whole pixel step."""
    found = standing(count, {name: percentiles(values)[1] for name, values in times.items()})
    if found is not None:
        print(f"  {found.judged if judged else found}", flush=True)


def _described(
    case: Case, steps: dict[str, Step], times: dict[str, list[float]], cache: str, options: Options
) -> Iterator[Cells]:
    floor = floor_ms(case, device_name(case.device))
    if floor is None and case.device == "cpu":
        bare = [percentiles(times[name])[1] for name in YARDSTICKS if name in times]
        floor = (min(bare), PRODUCTS) if bare else None
    print(f"\n{case.name}: {case.flop / 1e9:,.1f} GFLOP of products", flush=True)
    for name, values in times.items():
        low, middle, high = percentiles(values)
        limit: Cells = ("", "", "")
        if floor is not None:
            limit = (f"{floor[0]:.4g}", f"{floor[0] / middle:.3f}", floor[1])
        rate = case.flop / middle / 1e9
        memory, note = _memory(case, name, steps[name], options)
        print(f"  {name:26}{middle:>11.3f} ms{memory:>11} MiB{limit[1]:>8} of the limit  {note}", flush=True)
        spread = (f"{low:.4g}", f"{middle:.4g}", f"{high:.4g}")
        yield (name, *_shape(case), *spread, f"{rate:.4g}", *limit, memory, len(values), cache, note)


def _memory(case: Case | PixelCase, name: str, step: Work, options: Options) -> tuple[str, str]:
    """Extra MiB of one step, and what happened where that could not be measured."""
    gc.collect()
    try:
        on_gpu = case.device == "cuda"  # there the step that was timed can be asked again, without compiling anew
        return f"{allocated_mib(step) if on_gpu else extra_mib(case, name, options.threads):.1f}", ""
    except RuntimeError as error:
        return "", f"memory: {reason(error)}"


def _refusals(refused: dict[str, str]) -> Iterator[tuple[str, Cells]]:
    for name, why in refused.items():
        print(f"  {name:26}  not timed: {why}", flush=True)
        yield name, (why,)


def run_pixel(options: Options, only: str = "", cases: Sequence[PixelCase] = pixel.CASES) -> None:
    """Time the whole pixel step, from the feature map to the map's gradient.

    Raises:
        SystemExit: No case is named so, or our own result is wrong.
    """
    for case, load, source in _each(options, only, cases):
        admitted = pixel.admit(case)
        clock = Clock(options.device, options.cold)
        times = milliseconds(admitted.steps, options.rounds, clock, options.patience)
        print(f"\n{case.name}: {case.anchors:,} pixels of {case.title}", flush=True)
        shape = (case.device, case.dtype, "pixel", "negatives", case.anchors, case.anchors, case.width)
        rows: list[Cells] = []
        for name, values in times.items():
            spread = [f"{value:.4g}" for value in percentiles(values)]
            memory, note = _memory(case, name, admitted.steps[name], options)
            print(f"  {name:28}{spread[1]:>11} ms{memory:>11} MiB  {note}", flush=True)
            rows.append((case.name, name, *shape, *spread, *[""] * 4, memory, len(values), clock.cache, note))
        rows += [(case.name, name, *shape, *UNTIMED, *cells) for name, cells in _refusals(admitted.refused)]
        _tell_standing(case.anchors, times, judged=False)
        _append(options.out, rows, source, load)
    print(f"written to {shown(options.out)}")


def run_originals(options: Options, only: str = "", cases: Sequence[OriginalCase] = ORIGINALS) -> None:
    """Time the losses of other projects beside ours that take their place by another import line.

    Raises:
        SystemExit: No case is named so, or our own result is wrong.
    """
    for case, load, source in _each(options, only, cases):
        admitted = _originals(case)
        clock = Clock(options.device, options.cold)
        times = milliseconds(admitted.steps, options.rounds, clock, options.patience)
        print(f"\n{case.name}: {case.theirs}", flush=True)
        rows: list[Cells] = []
        for name, values in times.items():
            spread = [f"{value:.4g}" for value in percentiles(values)]
            memory, note = _memory(case, name, admitted.steps[name], options)
            print(f"  {name:28}{spread[1]:>11} ms{memory:>11} MiB  {note}", flush=True)
            rows.append((case.name, name, *_shape(case), *spread, *[""] * 4, memory, len(values), clock.cache, note))
        rows += [(case.name, name, *_shape(case), *UNTIMED, *cells) for name, cells in _refusals(admitted.refused)]
        _append(options.out, rows, source, load)
    print(f"written to {shown(options.out)}")


def _originals(case: OriginalCase) -> Admitted[Step]:
    """Who computes the case and is right, and why each of the others is not timed."""
    admitted = Admitted[Step]({}, {})
    for name in CONTENDERS:
        try:
            step = original_contender(case, name)
            agree(case, name, step())
            admitted.steps[name] = step
        except AssertionError as error:
            if name == OURS:
                raise SystemExit(f"{error}; nothing was timed") from error
            admitted.refused[name] = f"wrong: {error}"
        except Exception as error:  # an original may fail in any way of its own; the table says how
            admitted.refused[name] = reason(error)
    return admitted
