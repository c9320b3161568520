# SPDX-License-Identifier: Apache-2.0
"""The README's figure, drawn only from committed rows of measured times."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen first: there may be no screen

COLORS = {"eager torch": "#9aa5b1", "matrix products alone": "#d6dbe0", "secl_ops native": "#0b7285"}
TITLES = {"all": 'SupCon, denominator="all"', "negatives": 'pixel InfoNCE, denominator="negatives"'}


def newest(table: Path) -> list[dict[str, str]]:
    """The last row of each case and contender."""
    with table.open(newline="") as file:
        return list({(row["case"], row["contender"]): row for row in csv.DictReader(file)}.values())


def plot(table: Path, out: Path) -> None:
    """Bars of the median time of each contender for 4,096 rows, whiskers from fastest to slowest round."""
    rows = [row for row in newest(table) if "-N4096-" in row["case"]]
    cases = sorted({row["case"] for row in rows})
    plt.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(cases), figsize=(9, 2.3), sharey=True, layout="constrained")
    for axis, case in zip(axes, cases, strict=True):
        chosen = [row for row in rows if row["case"] == case]
        for place, row in enumerate(reversed(chosen)):
            middle, low, high = (float(row[name]) for name in ("p50_ms", "min_ms", "max_ms"))
            axis.barh(place, middle, color=COLORS[row["contender"]], height=0.62)
            axis.plot([low, high], [place, place], color="#343a40", linewidth=1)
            axis.text(high, place, f"  {middle:,.0f} ms", va="center")
        axis.set_yticks(range(len(chosen)), [row["contender"] for row in reversed(chosen)])
        axis.set_title(TITLES[case.split("-")[1]], loc="left", fontsize=10)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(left=False, bottom=False, labelbottom=False)
        axis.margins(x=0.25)
    row = rows[0]
    figure.suptitle(
        f"Forward + backward, 4,096 rows of width 128, {row['threads']} CPU threads ({row['machine']}; "
        f"torch {row['torch']}; {row['date']})",
        fontsize=8, color="#495057", x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(out, dpi=150)
    plt.close(figure)
