# SPDX-License-Identifier: Apache-2.0
"""The table of CUDA kernels that `auto` may take: made of what a GPU has shown, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import verified
from benchmarks.provenance import NO_GPU
from secl_ops.verified import VERIFIED

ROW = dict.fromkeys(verified.FIELDS, "") | {
    "operation": "info_nce", "architecture": "90", "dtype": "bfloat16", "width": "128", "case": "self",
    "verified": "yes", "lane": "green", "native_ms": "1.0", "triton_ms": "1.5",
}  # fmt: skip
KEY = ("90", "bfloat16", 128, "info_nce")


def test_the_module_is_what_the_results_say() -> None:
    keys = verified.chosen(verified.read())
    assert frozenset(keys) == VERIFIED
    assert verified.MODULE.read_text() == verified.source(keys)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, [KEY]),
        ({"verified": "no"}, []),
        ({"verified": ""}, []),
        ({"lane": "red"}, []),
        ({"gpu": NO_GPU}, []),
        ({"lane": "not run"}, []),
        ({"native_ms": "1.5"}, []),
        ({"native_ms": "nan"}, []),
        ({"case": "frozen", "width": "64"}, [("90", "bfloat16", 64, "info_nce"), KEY]),
    ],
)
def test_one_case_that_is_wrong_or_slower_keeps_the_kernel_out(
    change: dict[str, str], kept: list[tuple[str, str, int, str]]
) -> None:
    assert sorted(verified.chosen([ROW, ROW | change, ROW])) == sorted(kept)


def test_the_table_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "cuda.csv"
    assert verified.read(table) == []
    table.write_text(",".join(verified.FIELDS) + "\n" + ",".join(ROW.values()) + "\n")
    assert verified.read(table) == [ROW]
    text = verified.source(verified.chosen(verified.read(table)))
    values: dict[str, object] = {}
    exec(text, values)
    assert values["VERIFIED"] == {KEY}
    old = {name: value for name, value in ROW.items() if name != "load"}  # from before there was that column
    table.write_text(",".join(old) + "\n" + ",".join(old.values()) + "\n")
    assert verified.chosen(verified.read(table)) == [KEY]
    table.write_text("operation,width\n")
    with pytest.raises(
        ValueError, match=r"cuda.csv must have the columns operation,architecture,.*; got \['operation'"
    ):
        verified.read(table)
