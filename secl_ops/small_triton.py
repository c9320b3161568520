# SPDX-License-Identifier: Apache-2.0
"""Few rows on a GPU: a plan of launches, made and checked once for each signature of a call, then only started.

A signature is all that decides: shapes, strides, dtypes, device and options. Of a call that was seen before nothing is
looked at again but its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import select, triton
from secl_ops.inputs import ContrastInput
from secl_ops.small_call import Call, Check, Pixels, is_plain
from secl_ops.spec import ContrastSpec, SampleSpec

if TYPE_CHECKING:  # it imports Triton, which a call on a CPU never needs
    from secl_ops.engines.triton import launch_few

MOST_PLANS = 512
"""Plans that are kept; with one more all are forgotten."""
PLANS: dict[Any, Any] = {}
"""Every plan by its request."""


def info_nce(given: ContrastInput, options: ContrastSpec, check: Check) -> Call | None:
    """The call on few rows; None where it is not served."""
    anchors, keys = given.anchors, given.keys
    others = anchors if keys is None else keys
    if not (_serves(options, anchors) and _is_rows(anchors, anchors.device) and _is_rows(others, anchors.device)):
        return None
    if given.anchor_labels is None or (keys is not None and given.key_labels is None):
        return None
    of_anchors = (given.anchor_labels, given.anchor_groups, given.exclude, given.weights)
    of_keys = () if keys is None else (given.key_labels, given.key_groups)
    known = all(value is None or _names(value, anchors) for value in of_anchors)
    if not (known and all(value is None or _names(value, others) for value in of_keys)):
        return None
    from secl_ops.engines.triton import launch_few

    labels, groups, exclude, weights, *names = (
        None if value is None else value.contiguous() for value in (*of_anchors, *of_keys)
    )
    key_labels, key_groups = names or (labels, groups)
    beside = launch_few.Beside(labels, key_labels, groups, key_groups, exclude, weights)  # type: ignore[arg-type]
    rows = [anchors] if keys is None else [anchors, others]
    plan: launch_few.RowsPlan = _planned(launch_few.RowsRequest.of(rows, beside, options), launch_few.RowsPlan, check)
    return Call(lambda wanted: plan.find(rows, beside, wanted), plan.back)


def pixel_contrast(
    anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec, check: Check
) -> Call | None:
    """The pixel step of few draws; None where it is not served."""
    device = anchors.features.device
    if not (_serves(options, anchors.features) and _is_side(anchors, device, sampling)):
        return None
    if not (keys is None or _is_side(keys, device, sampling)):
        return None
    from secl_ops.engines.triton import launch_few, launch_sample

    sides = [anchors] if keys is None else [anchors, keys]
    maps = [launch_sample.Maps(*_dense(side)) for side in sides]  # type: ignore[arg-type]  # labels are there
    strategies = (sampling.strategy, _of_keys(sampling))
    requests = [launch_few.MapRequest.of(*each) for each in zip(sides, maps, strategies, strict=False)]
    request = launch_few.StepRequest(tuple(requests), device, sampling, options)
    plan: launch_few.StepPlan = _planned(request, launch_few.StepPlan, check)
    return Call(lambda wanted: plan.find(sides, maps, wanted), plan.back)


def _planned(request: Any, build: Callable[[Any], Any], check: Check) -> Any:
    plan = PLANS.get(request)
    if plan is None:
        check()
        if len(PLANS) >= MOST_PLANS:
            PLANS.clear()
        plan = PLANS[request] = build(request)
    return plan


def _serves(options: ContrastSpec, rows: Tensor) -> bool:
    """Whether Triton's kernels are those that this call would be given to."""
    if options.backend not in ("auto", "triton") or (options.backend == "auto" and rows.device.type == "cpu"):
        return False
    return is_plain(rows) and _takes(options.backend, rows.device, rows.dtype, rows.shape[1])


@cache
def _takes(backend: str, device: torch.device, dtype: torch.dtype, width: int) -> bool:
    if triton.objections(device.type, dtype, "info_nce"):
        return False
    return backend == "triton" or select.select(backend, device, dtype, "info_nce", width) is select.MODULES["triton"]


def _lies(value: object, device: torch.device) -> TypeGuard[Tensor]:
    """Whether this is a tensor that a launch reads where it lies."""
    return is_plain(value) and value.device == device and value.data_ptr() & 15 == 0


def _is_rows(rows: object, device: torch.device) -> TypeGuard[Tensor]:
    return _lies(rows, device) and rows.ndim == 2 and 0 < rows.shape[0] <= tiles.FEW_ROWS and rows.shape[1] > 0


def _names(value: object, rows: Tensor) -> bool:
    """Whether this says something of each row; what it may be is for the check."""
    return _lies(value, rows.device) and value.shape == rows.shape[:1]


def _is_side(side: Pixels, device: torch.device, sampling: SampleSpec) -> bool:
    features, labels, seed = side.features, side.labels, side.seed
    if not (_lies(features, device) and features.ndim >= 3 and features.numel()):
        return False
    if not (_lies(labels, device) and labels.numel()):
        return False
    if not 0 < features.shape[0] * sampling.num_classes * sampling.per_class <= tiles.FEW_ROWS:
        return False
    if type(seed) is not int and not (_lies(seed, device) and seed.numel() == 1):
        return False
    beside = (side.eligible, side.scores)
    return all(one is None or (_lies(one, device) and one.shape == labels.shape) for one in beside)


def _dense(side: Pixels) -> tuple[Tensor | None, ...]:
    """Labels, eligible, scores and seed as a draw reads them."""
    seed = side.seed if isinstance(side.seed, Tensor) else None
    beside = (None if one is None else one.contiguous() for one in (side.labels, side.eligible, side.scores))
    return *beside, seed


def _of_keys(sampling: SampleSpec) -> str:
    """Keys of a teacher are drawn by chance where the anchors are the hardest pixels."""
    return "uniform" if sampling.strategy == "hard" else sampling.strategy
