# SPDX-License-Identifier: Apache-2.0
"""How each Triton kernel is launched, as far as its machine code depends on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from secl_ops import tiles


class Kernel(NamedTuple):
    """One way a kernel is launched."""

    module: str  # of secl_ops.engines.triton
    function: str
    purpose: str = ""  # in tiles.pick; "" for a kernel that only moves memory
    products: int = 0  # of rows with rows: 1 for the similarities, 2 when an output is summed up as well
    switches: Mapping[str, int] = {}  # its compile-time options, but for NEGATIVES
    whole_rows: bool = False  # a program holds rows of the full width
    warps: int = 4  # of a kernel that only moves memory
    overrides: Mapping[str, str] = {}  # argument types that its names do not tell
    few: bool = False  # it contrasts few rows, by a tile of its own


_ALONE = {"BLOCK": tiles.SAMPLE_PIXELS, "HARD": False, "LEVELS": 1, "CELLS": 1, "CLASSES": 32, "UNITS": 256}
_LISTED = {**_ALONE, "LEVELS": tiles.SAMPLE_LEVELS, "CELLS_Z": 1, "CELLS_Y": 1, "CELLS_X": 1}
_CELLS = {**_LISTED, "CELLS": 64, "CELLS_Z": 4, "CELLS_Y": 4, "CELLS_X": 4}
_LISTS = ("p_counts", "p_list", "p_span")
_LABELS = {"p_labels": "*i64", **dict.fromkeys(_LISTS, "*i32")}
_IMAGE = {"p_labels": "*i64", **dict.fromkeys(_LISTS, "constexpr")}
_AIM = {"p_labels": "*i64", "p_aim": "*i64"}
_ONE_PART = {"SELF": False, "VALUE": True, "BOUNDED": True}
_ROLES = {"SELF": False, "BOUNDED": True}
_MERGE = {"BLOCK_N": tiles.MERGE_TILE.block_n}
_BATCH = {"BATCH": tiles.LIVE_BATCH, "POSITIVE": True}
_SIGMOID = {"SELF": False, "POSITIVE": True, "VALUE": True}
_OF_ANCHORS = dict.fromkeys(("p_weight", "p_excluded"), "constexpr")
_OF_KEYS = dict.fromkeys(("p_loss", "p_tilt", "p_count", "p_exclude"), "constexpr")
_FINISH = {"SELF": False, "VALUE": True, "PLACED": True}
_COPIES = {"p_copies": "*fp32"}  # of keys that count more or less than once
_WEIGHTED = {**_COPIES, "p_count": "*fp32"}
_FEW = {"CLEAN": False, "SUM": tiles.REDUCE_ROWS}
_FEW_KERNELS: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("value", "value", {"SELF": False, "BOUNDED": True}),
    ("value_running", "value", {"SELF": True, "BOUNDED": False}),
    ("sums", "sums", {"SELF": True, "BOUNDED": True}),
    ("sums_running", "sums", {"SELF": False, "BOUNDED": False}),
    ("gradient_self", "gradient", {"MEAN": True, "SELF": True, "ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": True}),
    ("gradient_anchors", "gradient", {"MEAN": True, "SELF": False, "ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": False}),
    ("gradient_keys", "gradient", {"MEAN": True, "SELF": False, "ROWS_ARE_ANCHORS": False, "ROWS_ARE_KEYS": True}),
)
KERNELS: dict[str, Kernel] = {
    "scan": Kernel("contrast", "denominator_kernel", "scan", 1, {**_ONE_PART, "VALUE": False}),
    "mean": Kernel("contrast", "denominator_kernel", "value", 2, _ONE_PART),
    "running": Kernel(
        "contrast", "denominator_kernel", "value_running", 2, {"VALUE": True, "BOUNDED": False, "SELF": True}
    ),
    "running_weighted": Kernel(
        "contrast", "denominator_kernel", "value_running", 2, {"VALUE": True, "BOUNDED": False, "SELF": False},
        overrides={"p_bias": "*fp32"},
    ),
    "positive": Kernel("contrast", "positive_kernel", "positive", 2, _FINISH),
    "positive_weighted": Kernel("contrast", "positive_kernel", "positive_weighted", 2, _FINISH, overrides=_WEIGHTED),
    "class_mean": Kernel("contrast", "class_mean_kernel", "classes", 0, {**_FINISH, "SUM_ROWS": tiles.SUM_ROWS}),
    "class_mean_weighted": Kernel(
        "contrast", "class_mean_kernel", "classes_weighted", 0, {**_FINISH, "SUM_ROWS": tiles.SUM_ROWS},
        overrides=_WEIGHTED,
    ),
    "keys": Kernel(
        "gradient", "gradient_kernel", "gradient", 2,
        {**_ROLES, **_BATCH, "ROWS_ARE_ANCHORS": False, "ROWS_ARE_KEYS": True},
    ),
    "anchors": Kernel(
        "gradient", "gradient_kernel", "gradient", 2,
        {**_ROLES, **_BATCH, "ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": False},
    ),
    "self": Kernel(
        "gradient", "gradient_kernel", "gradient", 2,
        {**_BATCH, "SELF": True, "BOUNDED": True, "ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": True},
    ),
    "self_running": Kernel(
        "gradient", "gradient_kernel", "gradient_running", 2,
        {**_BATCH, "SELF": True, "BOUNDED": False, "ROWS_ARE_ANCHORS": True, "ROWS_ARE_KEYS": True},
    ),
    "keys_running": Kernel(
        "gradient", "gradient_kernel", "gradient_running", 2,
        {**_ROLES, **_BATCH, "BOUNDED": False, "ROWS_ARE_ANCHORS": False, "ROWS_ARE_KEYS": True},
    ),
    "sigmoid": Kernel("sigmoid", "sigmoid_kernel", "sigmoid", 2, _SIGMOID, overrides=_OF_ANCHORS),
    "sigmoid_loss": Kernel(
        "sigmoid", "sigmoid_kernel", "sigmoid_loss", 1, {**_SIGMOID, "VALUE": False}, overrides=_OF_ANCHORS
    ),
    "sigmoid_keys": Kernel(
        "sigmoid", "sigmoid_kernel", "sigmoid_keys", 2, {**_SIGMOID, "SELF": True}, overrides=_OF_KEYS
    ),
    **{
        f"few_{name}{ending}": Kernel(
            "few_gradient" if kernel == "gradient" else "few", f"few_{kernel}_kernel",
            switches={**_FEW, **roles, "NEGATIVES": negatives},
            overrides={"p_exclude": "*i64"}, few=True,
        )
        for negatives, ending in ((True, "_negatives"), (False, "_all")) for name, kernel, roles in _FEW_KERNELS
    },
    "few_draws_negatives": Kernel(
        "few", "few_draws_kernel", switches={"SELF": False, "CLEAN": False}, overrides={"p_exclude": "*i64"}, few=True
    ),
    **{
        f"few_merge{ending}": Kernel(
            "few", "few_merge_kernel", switches={"NEGATIVES": negatives, "BLOCK_N": tiles.MERGED_ANCHORS}
        )
        for negatives, ending in ((True, "_negatives"), (False, "_all"))
    },
    "few_reduce": Kernel(
        "few_gradient", "few_reduce_kernel", switches={"MEAN": True, "SUM": tiles.REDUCE_ROWS}, warps=8
    ),
    "nearest": Kernel(
        "pixels", "nearest_kernel", switches={"BLOCK": tiles.SAMPLE_PIXELS},
        overrides={"p_labels": "*i64", "p_new_labels": "*i64"},
    ),
    "order": Kernel(
        "order", "order_kernel", switches={"BLOCK_N": tiles.ORDER_ROWS, "BLOCK_M": tiles.ORDER_OTHERS},
        overrides={
            **dict.fromkeys(("p_exclude", "p_other_exclude"), "*i64"),
            **dict.fromkeys(("p_row", "p_other_row", "p_runs", "p_zone"), "*i32"),
        },
    ),
    "arrange": Kernel("arrange", "arrange_kernel", switches={"BLOCK_N": tiles.SUM_ROWS}),
    "arrange_weighted": Kernel("arrange", "arrange_kernel", switches={"BLOCK_N": tiles.SUM_ROWS}, overrides=_COPIES),
    "merge": Kernel(
        "contrast", "merge_kernel",
        switches={**_MERGE, "VALUE": True, "PLACED": False, "BLOCK_OUT": tiles.MERGE_TILE.block_out},
    ),
    "weigh": Kernel(
        "weighing", "weigh_kernel",
        switches={"SELF": False, "BLOCK_N": tiles.WEIGHED_ROWS, "BLOCK_M": tiles.SUM_ROWS, "BATCH": tiles.LIVE_BATCH},
        overrides=_WEIGHTED,
    ),
    "sum_parts": Kernel("gradient", "sum_parts_kernel", switches=_MERGE),
    "unit_rows": Kernel("rows", "unit_rows_kernel"),
    "unit_rows_backward": Kernel("rows", "unit_rows_backward_kernel"),
    "reduce": Kernel(
        "rows", "reduce_kernel", switches={"MEAN": True, "NONE": False, "BLOCK_N": tiles.REDUCE_ROWS}, warps=8
    ),
    "reduce_weighted": Kernel(
        "rows", "reduce_kernel", switches={"MEAN": True, "NONE": False, "BLOCK_N": tiles.REDUCE_ROWS}, warps=8,
        overrides={"p_count": "*fp32"},
    ),
    "gather": Kernel("pixels", "gather_kernel"),
    "gather_unit": Kernel("pixels", "gather_unit_kernel", whole_rows=True),
    "scatter": Kernel("pixels", "scatter_kernel", whole_rows=True),
    "gather_backward": Kernel("pixels", "gather_backward_kernel"),
    "sample": Kernel("sampling", "sample_kernel", switches=_ALONE, warps=8, overrides=_IMAGE),
    "sample_hard": Kernel(
        "sampling", "sample_kernel", switches={**_ALONE, "HARD": True}, warps=8, overrides=_IMAGE
    ),
    "sample_listed": Kernel(
        "sampling", "sample_kernel", switches={**_LISTED, "HARD": True}, warps=8, overrides=_LABELS
    ),
    "sample_stratified": Kernel("sampling", "sample_kernel", switches=_CELLS, warps=8, overrides=_LABELS),
    "sample_aim": Kernel(
        "sampling", "aim_kernel", switches={"LENGTH": tiles.SAMPLE_SPOTS, "BLOCK": tiles.SAMPLE_PIXELS}, warps=8,
        overrides=_AIM,
    ),
    **{
        f"sample_{name}{ending}": Kernel(
            "listing", f"{name}_kernel", switches={**switches, "CLASSES": classes, "UNITS": units}, warps=8,
            overrides={**_AIM, **dict.fromkeys(lists, "*i32")},
        )
        for name, lists in (("count", _LISTS[:1]), ("list", _LISTS))
        for ending, switches in (("", _LISTED), ("_hard", {**_LISTED, "HARD": True}), ("_stratified", _CELLS))
        for classes, units in tiles.SAMPLE_GROUPS[-1:]
    },
}  # fmt: skip
COPIES = tuple(name for name, kernel in KERNELS.items() if not kernel.purpose)
CONTRAST = tuple(name for name, kernel in KERNELS.items() if kernel.purpose)

# Triton's types of kernel arguments, by the naming of the kernels; the first pattern that fits the whole name decides.
TYPES: tuple[tuple[str, str], ...] = (
    ("p_(anchors|keys|rows|columns|others|unit|map|out)", "*{dtype}"),
    ("p_(index|order|seed)", "*i64"),
    ("p_known|p_copies|p_bias", "constexpr"),
    ("p_(new_)?eligible", "*i1"),
    ("p_.*(label|group).*|p_(count|run|hole|own|exclude|excluded|live)", "*i32"),
    ("p_.*", "*fp32"),
    ("[A-Z0-9_]+", "constexpr"),
    ("scale|scale2|bias|bound2|mean_scale", "fp32"),
    (".*", "i32"),
)
LEFT_OUT = re.compile("p_exclude|p_excluded|p_factor|p_.*group.*")  # of a plain call
