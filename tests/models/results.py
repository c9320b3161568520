# SPDX-License-Identifier: Apache-2.0
"""The tables of benchmarks/results/README.md, made anew from the committed CSV files.

`python -m tests.models.results` prints them, to be pasted where a file has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.originals import EAGER, ORIGINALS, THEIRS
from benchmarks.originals import OURS as MINE
from benchmarks.provenance import BUSY
from benchmarks.standing import Standing, standing
from secl_models.method.profiler import STEP
from secl_models.options.methods import BASELINE
from secl_models.report.spread import Spread
from secl_models.study.cost import STAGES, cost_markdown
from secl_models.study.labelling_rows import read_labelling
from secl_models.study.labelling_table import labelling_markdown
from secl_models.study.rows import STEPS, TIME, Row, read_rows
from secl_models.study.table import as_markdown, paired
from tests.models.committed import RESULTS, interval, markdown, table
from tests.models.long_study import differences_markdown as long_differences_markdown
from tests.models.long_study import finals_markdown, tries_markdown
from tests.models.long_study_goal import goal_markdown

SETTINGS = {"ACDC, 1 patient": ("acdc", 1), "ACDC, 3 patients": ("acdc", 3), "hippocampus, 4 cases": ("hippocampus", 4)}
OURS = "secl_ops native"


def difference(
    setting: tuple[str, int], method: str, other: str, budget: str = STEPS, checkpoint: str = "last"
) -> Spread:
    """Dice points of a method above another, paired by seed."""
    rows = [row for row in read_rows(RESULTS / "study.csv") if row.checkpoint == checkpoint]

    def of(name: str, spent: str) -> list[Row]:
        return [row for row in rows if ((row.data, row.labeled), row.method, row.budget) == (setting, name, spent)]

    spread = paired(of(method, STEPS), of(other, budget))
    assert spread is not None
    assert spread.count == 3
    return spread


def study_markdown() -> str:
    """Every method of the study, last checkpoints."""
    return as_markdown(read_rows(RESULTS / "study.csv"))


def cost_of_a_step_markdown() -> str:
    """What a step of each method costs."""
    return cost_markdown(
        {
            row["method"]: {stage: float(row[stage.replace(" ", "_")]) for stage in (*STAGES, STEP)}
            for row in table("study_cost.csv")
        }
    )


def differences_markdown() -> str:
    """What each ingredient gives: mean ± SD over seeds and its 95 % interval."""
    pairs = (
        ("`secl+` - labels-only, equal steps", "secl+", BASELINE, STEPS),
        ("`secl+` - labels-only, equal time", "secl+", BASELINE, TIME),
        ("`copy-paste` - labels-only, equal steps: mixing alone", "copy-paste", BASELINE, STEPS),
        ("`secl+` - `copy-paste`: contrast beside mixing", "secl+", "copy-paste", STEPS),
        ("`secl` - labels-only, equal steps: contrast without mixing", "secl", BASELINE, STEPS),
        ("`secl` - `mean-teacher`: contrast in place of consistency", "secl", "mean-teacher", STEPS),
    )
    return markdown(
        ("Dice points, last checkpoint", *SETTINGS),
        [(name, *(interval(difference(place, *pair)) for place in SETTINGS.values())) for name, *pair in pairs],
    )


def _time(row: dict[str, str]) -> str:
    median, low, high = (f"{float(row[name]):.4g}" for name in ("p50_ms", "p20_ms", "p80_ms"))
    beside = ", BUSY" if BUSY in row["note"] else ""
    return f"{median} ({f'{low} - {high}' if int(row['rounds']) > 1 else 'one round'}{beside})"


def cases(name: str) -> dict[str, list[dict[str, str]]]:
    """Rows by case, in the order of the file."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in table(name):
        found.setdefault(row["case"], []).append(row)
    return found


def standings() -> dict[str, Standing]:
    """Where ours stands in each case that was timed."""
    found = {}
    for name, rows in cases("cases.csv").items():
        times = {row["contender"]: float(row["p50_ms"]) for row in rows if row["p50_ms"]}
        stands = standing(int(rows[0]["rows"]), times)
        if stands is not None:
            found[name] = stands
    return found


def published_markdown() -> str:
    """Ours beside the fastest rival and the bare products, the least factor first; what was left out comes last."""
    figures = ("`secl_ops` ms", "fastest rival", "rival ms", "times as fast", "of the products", "as wanted")
    head = ("case", "N x M x D", *figures)
    stands, lines = standings(), []
    for name, rows in cases("cases.csv").items():
        shape = f"{int(rows[0]['rows']):,} x {int(rows[0]['keys']):,} x {rows[0]['width']}"
        if name not in stands:
            lines.append((math.inf, (name, shape, "", "", "", rows[0]["note"].partition(";")[0], "", "")))
            continue
        found, by_name = stands[name], {row["contender"]: row for row in rows}
        share = "" if found.share is None else f"{found.share:.2f}"
        cells = (
            name, shape, _time(by_name[OURS]), found.rival, _time(by_name[found.rival]), f"{found.factor:.2f}", share,
            "yes" if found.met else "no",
        )  # fmt: skip
        lines.append((found.factor, cells))
    return markdown(head, [cells for _, cells in sorted(lines, key=lambda line: line[0])], left=2)


def pixel_markdown() -> str:
    """The whole step: every contender of every case."""
    lines = [(row["case"], row["contender"], _time(row), row["extra_mib"]) for row in table("pixel.csv")]
    return markdown(("case", "contender", "ms", "MiB"), lines, left=2)


def growth_markdown() -> str:
    """A line for each number of rows, the median time and the memory of every contender."""
    found = {name: [row for row in rows if row["p50_ms"]] for name, rows in cases("growth.csv").items()}
    found = {name: rows for name, rows in found.items() if rows}
    names = [row["contender"] for row in next(iter(found.values()))]

    def cell(row: dict[str, str]) -> str:
        time = f"{float(row['p50_ms']):.0f}" if float(row["p50_ms"]) >= 100 else f"{float(row['p50_ms']):.3g}"
        return f"{time} / {float(row['extra_mib']):,.0f}"

    lines = []
    for rows in found.values():
        by_name = {row["contender"]: row for row in rows}
        lines.append((f"{int(rows[0]['rows']):,}", *(cell(by_name[name]) for name in names)))
    return markdown(("rows, N = M", *names), lines)


def compat_markdown() -> str:
    """Import lines that take the place of another, with time and memory beside that one's, or beside plain torch."""
    head = ("you import", "import instead", "N x M x D", "`secl_ops` ms", "theirs ms", "`secl_ops` MiB", "theirs MiB")
    measured = cases("compat.csv") if (RESULTS / "compat.csv").exists() else {}
    lines = []
    for case in ORIGINALS:
        rows = {row["contender"]: row for row in measured.get(case.name, [])}
        shape = f"{case.rows:,} x {case.keys or case.rows:,} x {case.width}"
        given = THEIRS if rows and rows[THEIRS]["p50_ms"] else EAGER  # theirs is in no package, or does not load here
        found = [rows.get(name) for name in (MINE, given)]
        mine, other = ("" if row is None else _time(row) for row in found)
        memory = ("" if row is None else row["extra_mib"] for row in found)
        other += " of plain torch" if rows and given == EAGER else ""
        lines.append((f"`{case.theirs}`", f"`{case.ours}`", shape, mine, other, *memory))
    return markdown(head, lines, left=3)


def memory_markdown() -> str:
    """The most rows of every contender, or why it has none."""

    def cells(row: dict[str, str]) -> tuple[str, ...]:
        if not row["rows"]:
            why = row["note"].partition(":")[0]
            return ("not installed" if why == "ModuleNotFoundError" else why, "", "", "")
        return (f"{int(row['rows']):,}", row["extra_mib"], f"{int(row['next_rows']):,}", row["next_extra_mib"])

    head = ("contender", "rows that fit 128 MiB", "MiB", "next size tried", "MiB")
    return markdown(head, [(row["contender"], *cells(row)) for row in table("memory.csv")])


def training_markdown() -> str:
    """Each setting with either loss, or why it was left out."""
    head = ("setting", "loss", "images/s (lowest - highest)", "s per step", "peak MiB")
    lines = [
        (
            row["setting"],
            row["loss"],
            f"{row['images_per_second']} ({row['lowest']} - {row['highest']})",
            f"{float(row['seconds_per_step']):.2f}",
            row["peak_mib"],
        )
        if row["images"]
        else (row["setting"], row["loss"], row["note"].partition(";")[0], "", "")
        for row in table("training.csv")
    ]
    return markdown(head, lines, left=2)


def suggest_markdown() -> str:
    """Suggested patients against random ones."""
    return labelling_markdown(read_labelling(RESULTS / "suggest.csv"))


TABLES: dict[str, Callable[[], str]] = {
    "study": study_markdown,
    "cost": cost_of_a_step_markdown,
    "differences": differences_markdown,
    "published": published_markdown,
    "pixel": pixel_markdown,
    "growth": growth_markdown,
    "compat": compat_markdown,
    "memory": memory_markdown,
    "training": training_markdown,
    "suggest": suggest_markdown,
    "long tries": tries_markdown,
    "long finals": finals_markdown,
    "long differences": long_differences_markdown,
    "long goal": goal_markdown,
}

if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"{name}\n\n{make()}")
