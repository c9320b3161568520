# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks verified`: writes down where `auto` may take the CUDA kernels, from what a GPU has shown.

Never run means never chosen: `secl_ops/verified.py` is made of `benchmarks/results/cuda.csv` and of nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.provenance import NO_GPU, RESULTS, shown

TABLE = RESULTS / "cuda.csv"
FIELDS = (
    "operation",  # as backends are asked for it: info_nce, gather_pixels, sample_pixels
    "architecture",  # compute capability without its point: 90
    "dtype",  # of the rows, or of the labels of sample_pixels: bfloat16
    "width",  # of the rows; 0 for sample_pixels
    "case",  # what was timed
    "verified",  # "yes" where the results of the CUDA kernels were within their budget in this run
    "lane",  # "green" where the shared tests had passed on these kernels and this GPU before
    "native_ms", "triton_ms",  # medians
    "gpu", "torch", "commit", "date",
    "load",  # cores that other processes kept busy before it
)  # fmt: skip
MODULE = RESULTS.parent.parent / "secl_ops" / "verified.py"
Key = tuple[str, str, int, str]


def chosen(rows: Iterable[Mapping[str, str]]) -> list[Key]:
    """The (architecture, dtype, width, operation) of which every case was right, and none slower than Triton.

    Example:
        >>> row = {"operation": "info_nce", "architecture": "90", "dtype": "bfloat16", "width": "128", "case": "self"}
        >>> row |= {"verified": "yes", "lane": "green", "native_ms": "1.0", "triton_ms": "1.2", "gpu": "H200"}
        >>> chosen([row])
        [('90', 'bfloat16', 128, 'info_nce')]
        >>> chosen([row | {"native_ms": "1.2"}]), chosen([row | {"lane": "not run"}])
        ([], [])
    """
    good: dict[Key, bool] = {}
    for row in rows:
        key = (row["architecture"], row["dtype"], int(row["width"]), row["operation"])
        faster = float(row["native_ms"]) < float(row["triton_ms"])
        right = row["verified"] == "yes" and row["lane"] == "green"
        good[key] = good.get(key, True) and right and faster and row["gpu"] != NO_GPU
    return sorted(key for key, kept in good.items() if kept)


def read(table: Path = TABLE) -> list[dict[str, str]]:
    """The rows of the table; none where no GPU has written it yet.

    Raises:
        ValueError: The table has other columns.
    """
    if not table.exists():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in (FIELDS, FIELDS[:-1]):  # from before there was a load
            raise ValueError(f"{shown(table)} must have the columns {','.join(FIELDS)}; got {reader.fieldnames}")
        return list(reader)


def source(keys: Iterable[Key]) -> str:
    """The text of `secl_ops/verified.py`."""
    lines = [f"        {key!r},\n".replace("'", '"') for key in keys]
    body = "frozenset(\n    {\n" + "".join(lines) + "    }\n)" if lines else "frozenset()"
    return f'''# SPDX-License-Identifier: Apache-2.0
"""Where the CUDA kernels were seen right and faster than Triton's: written by `python -m benchmarks verified`."""

from __future__ import annotations

VERIFIED: frozenset[tuple[str, str, int, str]] = {body}
"""(architecture, dtype, width, operation), from `benchmarks/results/cuda.csv`; `auto` takes no other CUDA kernel."""
'''


def write() -> None:
    """Write `secl_ops/verified.py` anew."""
    keys = chosen(read())
    MODULE.write_text(source(keys))
    print(f"{len(keys)} kernels are verified and faster; written to {shown(MODULE)}")
