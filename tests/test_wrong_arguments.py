# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments never end the process: every failure is an exception, and a public one names the argument."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secl_ops import library, ops
from secl_ops.spec import Flag
from tests.conftest import REPOSITORY, skip_or_fail
from tests.draws import Examples

LIMIT_SECONDS = 300


@pytest.mark.drawn
@pytest.mark.parametrize("share", [24, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("group", ["public", "secl", "native"])
def test_wrong_arguments_are_refused_and_nothing_crashes(group: str, share: int, tmp_path: Path) -> None:
    if library.ABSENCE:
        skip_or_fail("native", library.ABSENCE)
    if group != "native" and os.environ.get("SECL_SANITIZE"):
        pytest.skip("a sanitizer ends the process where a size is too large to allocate, as those of torch may be")
    under_way = tmp_path / "call"
    program = [sys.executable, "-m", "tests.wrong_arguments", group.replace("native", "secl_native"), str(under_way)]
    program.append(str(share))
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    last = under_way.read_text() if under_way.exists() else "the imports"
    if done.returncode < 0:
        pytest.fail(f"{signal.Signals(-done.returncode).name} in {last}\n{done.stderr[-2000:]}")
    assert done.returncode == 0, f"{last}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    Examples.drawn += int(done.stdout.split()[-1])


ROWS, LABELS = torch.ones(4, 3), torch.zeros(4, dtype=torch.int32)
ONES, MAP, NONE = torch.ones(4), torch.zeros(1, 2, 4, 4), (None, None)
PAIRS = (LABELS, LABELS, None, None, None, 0, 4, None)


def back(**changes: object) -> torch.Tensor:
    """The gradient of a map from that of four of its pixels, on the reference."""
    given: dict[str, Any] = {
        "grad": ROWS, "factor": None, "upstream": None, "index": LABELS.long(), "unit": None, "inverse": None,
        "unique": False, "size": [1, 3, 4], "stride": [12, 4, 1], "dtype": torch.float32, "backend": "reference",
    }  # fmt: skip
    found: torch.Tensor = ops.gather_backward(**given | changes)
    return found


RAW = [
    ("labels", lambda: ops.unit_rows(ROWS, LABELS[:3], "reference"), r"labels must have shape \[4\]; got \(3,\)"),
    ("rank", lambda: ops.unit_rows(ROWS[0], LABELS, "reference"), r"rows must have shape \[any, any\]; got \(3,\)"),
    ("row_inverse", lambda: ops.row_inverse(ROWS, LABELS[:3], "reference"), r"labels must have shape \[4\]"),
    ("flat", lambda: ops.row_inverse(ROWS[0], LABELS, "reference"), r"rows must have shape \[any, any\]; got \(3,\)"),
    ("inverse", lambda: ops.unit_rows_backward(ROWS, *NONE, ROWS, ROWS, "reference"), r"inverse must have shape \[4\]"),
    (
        "factor",
        lambda: ops.unit_rows_backward(ROWS, ONES[:3], ONES, ROWS, ONES, "reference"),
        r"factor must have shape \[4\]; got \(3,\)",
    ),
    (
        "upstream",
        lambda: ops.unit_rows_backward(ROWS, ONES, ONES[0], ROWS, ONES, "reference"),
        r"upstream must have shape \[4\]; got \(\)",
    ),
    ("backend", lambda: ops.unit_rows(ROWS, LABELS, "numpy"), "backend must be one of 'auto', .* got 'numpy'"),
    (
        "keys",
        lambda: ops.contrast(ROWS, ROWS[:, :2], *PAIRS, *NONE, 1.0, 0, "reference"),
        r"keys must have shape \[any, 3\]; got \(4, 2\)",
    ),
    (
        "key_inverse",
        lambda: ops.contrast(ROWS, ROWS, *PAIRS, ONES[:3], None, 1.0, 0, "reference"),
        r"key_inverse must have shape \[4\]; got \(3,\)",
    ),
    (
        "key_weights",
        lambda: ops.contrast(ROWS, ROWS, *PAIRS[:7], ONES[:3], *NONE, 1.0, 0, "reference"),
        r"key_weights must have shape \[4\]; got \(3,\)",
    ),
    (
        "key_weights of the anchors",
        lambda: ops.contrast(ROWS, ROWS, *PAIRS[:7], ONES, *NONE, 1.0, Flag.SELF, "reference"),
        r"flags must be without <Flag.SELF: 2> under key_weights; got .* pass the anchors as keys",
    ),
    (
        "key_weights backward",
        lambda: ops.contrast_backward(
            ONES, ONES, ONES, ROWS, ROWS, *PAIRS[:7], ONES, ONES, 1.0, Flag.ANCHOR_GRADIENT, "reference"
        ),
        "flags must be without <Flag.ANCHOR_GRADIENT: 8> under key_weights; .* from the forward pass",
    ),
    (
        "known_lse",
        lambda: ops.contrast(ROWS, ROWS, *PAIRS, None, ROWS, 1.0, 0, "reference"),
        r"known_lse must have shape \[4\]; got \(4, 3\)",
    ),
    *(
        (
            f"backward {name}",
            lambda place=place: ops.contrast_backward(
                *(ONES[:3] if place == i else ONES for i in range(3)), ROWS, ROWS, *PAIRS,
                ONES[:3] if place == 3 else ONES, 1.0, 0, "reference",
            ),
            rf"{name} must have shape \[4\]; got \(3,\)",
        )
        for place, name in enumerate(("grad_loss", "push", "draw", "lse"))
    ),
    *(
        (
            f"reduce {name}",
            lambda place=place: ops.reduce(
                ONES, *(ONES[:3] if place == i else ONES for i in range(3)), "mean", "reference"
            ),
            rf"{name} must have shape \[4\]; got \(3,\)",
        )
        for place, name in enumerate(("pull", "count", "weights"))
    ),
    ("losses", lambda: ops.reduce(ROWS, *[ONES] * 3, "sum", "reference"), r"loss must have shape \[any\]; got"),
    (
        "reduction",
        lambda: ops.reduce(*[ONES] * 4, "median", "reference"),
        "reduction must be one of 'mean', 'sum', 'none'; got 'median'",
    ),
    (
        "map",
        lambda: ops.gather(ROWS, LABELS.long(), False, torch.float32, "reference"),
        r"features must have shape \[any, any, any\]",
    ),
    ("strides", lambda: back(size=[1, 3, 4], stride=[12, 4]), "size and stride must be those of a map"),
    ("gradient", lambda: back(grad=ROWS[:, :2]), r"grad must have shape \[4, 3\]; got \(4, 2\)"),
    ("map factor", lambda: back(factor=ONES[:3], upstream=ONES), r"factor must have shape \[4\]; got \(3,\)"),
    ("map unit", lambda: back(unit=ROWS[:2], inverse=ONES), r"unit must have shape \[4, 3\]; got \(2, 3\)"),
    ("map inverse", lambda: back(unit=ROWS, inverse=ONES[:3]), r"inverse must have shape \[4\]; got \(3,\)"),
    (
        "draws",
        lambda: ops.sample(MAP[:, 0].long(), *NONE, torch.zeros(1).long(), -1, 2, -1, "uniform", 0, "reference"),
        "per_class and num_classes must not be negative; got -1 and 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
def test_a_raw_operation_refuses_what_its_kernel_would_read_past(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_raw_operation_refuses_an_absent_tensor() -> None:
    for call in (ops.unit_rows, ops.row_inverse):
        with pytest.raises(TypeError, match="rows must be a tensor; got None"):
            call(None, LABELS, "reference")
    with pytest.raises(TypeError, match="loss must be a tensor; got None"):
        ops.reduce(None, ONES, LABELS, None, "mean", "reference")


def test_the_native_sampler_refuses_more_places_than_it_can_count() -> None:
    if library.ABSENCE:
        skip_or_fail("native", library.ABSENCE)
    labels, seed = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for per_class, classes in ((2**62, 4), (2**31 - 1, 2**31 - 1), (-1, 2), (2, -1)):
        with pytest.raises(RuntimeError, match=r"images \* num_classes \* per_class must lie in 0\.\.2\^31 - 1"):
            torch.ops.secl_native.sample(labels, None, None, seed, per_class, classes, -1, 0, 0)
