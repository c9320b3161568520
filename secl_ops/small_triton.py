# SPDX-License-Identifier: Apache-2.0
"""Few rows on a GPU: a plan of launches, made and checked once for each signature of a call, then only started.

A signature is all that decides: shapes, strides, dtypes, device and options. Of a call that was seen before nothing is
looked at again but its signature.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines import select, triton
from secl_ops.inputs import ContrastInput
from secl_ops.small_call import PLAIN, Call, Check, Pixels
from secl_ops.spec import ContrastSpec, SampleSpec

MOST_PLANS = 512
"""Plans that are kept; with one more all are forgotten."""
PLANS: dict[Any, Any] = {}
"""Every plan by what was looked at."""

_UNREAD: tuple[Any, ...] = ()


def info_nce(given: ContrastInput, options: ContrastSpec, check: Check) -> Call | None:
    """The call on few rows; None where it is not served."""
    of_anchors, of_keys = _beside(given)
    looks = (_look(given.anchors), _look_if(given.keys), *map(_look_if, (*of_anchors, *of_keys)))
    if _UNREAD in looks:
        return None
    plan = PLANS.get((*looks, options))
    if plan is None and not _serves_rows(given, options):
        return None
    from secl_ops.engines.triton import launch_few

    labels, groups, exclude, weights, *names = (
        None if value is None else value.contiguous() for value in (*of_anchors, *of_keys)
    )
    key_labels, key_groups = names or (labels, groups)
    beside = launch_few.Beside(labels, key_labels, groups, key_groups, exclude, weights)  # type: ignore[arg-type]
    rows: list[Any] = [given.anchors] if given.keys is None else [given.anchors, given.keys]
    if plan is None:
        check()
        plan = _keep((*looks, options), launch_few.RowsPlan(launch_few.RowsRequest.of(rows, beside, options)))
    return Call(lambda wanted: plan.find(rows, beside, wanted), plan.back)


def pixel_contrast(
    anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec, check: Check
) -> Call | None:
    """The pixel step of few draws; None where it is not served."""
    sides = [anchors] if keys is None else [anchors, keys]
    looks = [look for side in sides for look in _looks(side)]
    if _UNREAD in looks:
        return None
    request = (*looks, sampling, options)
    plan = PLANS.get(request)
    if plan is None and not _serves_pixels(sides, sampling, options):
        return None
    from secl_ops.engines.triton import launch_sample

    maps = [launch_sample.Maps(*_dense(side)) for side in sides]  # type: ignore[arg-type]  # labels are there
    if plan is None:
        check()
        plan = _keep(request, _pixels_plan(sides, maps, sampling, options))
    return Call(lambda wanted: plan.find(sides, maps, wanted), plan.back)


def _pixels_plan(sides: list[Pixels], maps: list[Any], sampling: SampleSpec, options: ContrastSpec) -> Any:
    from secl_ops.engines.triton import launch_few

    strategies = (sampling.strategy, _of_keys(sampling))
    requests = [launch_few.MapRequest.of(*each) for each in zip(sides, maps, strategies, strict=False)]
    return launch_few.StepPlan(launch_few.StepRequest(tuple(requests), sides[0].features.device, sampling, options))


def _keep(request: Any, plan: Any) -> Any:
    if len(PLANS) >= MOST_PLANS:
        PLANS.clear()
    PLANS[request] = plan
    return plan


def _look(value: Any) -> tuple[Any, ...]:
    """All of a tensor that decides on its launches; nothing of what none reads where it lies."""
    if type(value) not in PLAIN or value.layout is not torch.strided or value.is_nested or value.data_ptr() & 15:
        return _UNREAD
    return value.shape, value.stride(), value.dtype, value.device


def _look_if(value: Any) -> tuple[Any, ...] | None:
    return None if value is None else _look(value)


def _looks(side: Pixels) -> tuple[Any, ...]:
    features, labels, eligible, scores, seed, _ = side
    number = None if type(seed) is int else _look(seed)
    return _look(features), _look(labels), _look_if(eligible), _look_if(scores), number


def _serves(options: ContrastSpec, rows: Tensor) -> bool:
    """Whether Triton's kernels are those that this call would be given to."""
    if options.backend not in ("auto", "triton") or (options.backend == "auto" and rows.device.type == "cpu"):
        return False
    return rows.ndim > 1 and _takes(options.backend, rows.device, rows.dtype, rows.shape[1])


@cache
def _takes(backend: str, device: torch.device, dtype: torch.dtype, width: int) -> bool:
    if triton.objections(device.type, dtype, "info_nce"):
        return False
    return backend == "triton" or select.select(backend, device, dtype, "info_nce", width) is select.MODULES["triton"]


def _beside(given: ContrastInput) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What stands beside the anchors, and beside the keys where they are others."""
    of_anchors = (given.anchor_labels, given.anchor_groups, given.exclude, given.weights)
    return of_anchors, () if given.keys is None else (given.key_labels, given.key_groups)


def _serves_rows(given: ContrastInput, options: ContrastSpec) -> bool:
    anchors: Any = given.anchors
    others: Any = anchors if given.keys is None else given.keys  # one tensor: that was looked at
    of_anchors, of_keys = _beside(given)
    if of_anchors[0] is None or (of_keys and of_keys[0] is None):
        return False
    if not (_serves(options, anchors) and _is_rows(anchors, anchors.device) and _is_rows(others, anchors.device)):
        return False
    known = all(value is None or _names(value, anchors) for value in of_anchors)
    return known and all(value is None or _names(value, others) for value in of_keys)


def _is_rows(rows: Tensor, device: torch.device) -> bool:
    return rows.device == device and rows.ndim == 2 and 0 < rows.shape[0] <= tiles.FEW_ROWS and rows.shape[1] > 0


def _names(value: Tensor, rows: Tensor) -> bool:
    """Whether this says something of each row; what it may be is for the check."""
    return value.device == rows.device and value.shape == rows.shape[:1]


def _serves_pixels(sides: list[Pixels], sampling: SampleSpec, options: ContrastSpec) -> bool:
    features = sides[0].features
    return _serves(options, features) and all(_is_side(side, features.device, sampling) for side in sides)


def _is_side(side: Pixels, device: torch.device, sampling: SampleSpec) -> bool:
    features, labels, eligible, scores, seed, _ = side
    if features.ndim < 3 or not features.numel() or not labels.numel():
        return False
    if not 0 < features.shape[0] * sampling.num_classes * sampling.per_class <= tiles.FEW_ROWS:
        return False
    if isinstance(seed, Tensor) and (seed.numel() != 1 or seed.device != device):
        return False
    shaped = all(one is None or one.shape == labels.shape for one in (eligible, scores))
    return shaped and all(one is None or one.device == device for one in (features, labels, eligible, scores))


def _dense(side: Pixels) -> tuple[Tensor | None, ...]:
    """Labels, eligible, scores and seed as a draw reads them."""
    _, labels, eligible, scores, seed, _ = side
    return (
        labels.contiguous(),
        None if eligible is None else eligible.contiguous(),
        None if scores is None else scores.contiguous(),
        seed if isinstance(seed, Tensor) else None,
    )


def _of_keys(sampling: SampleSpec) -> str:
    """Keys of a teacher are drawn by chance where the anchors are the hardest pixels."""
    return "uniform" if sampling.strategy == "hard" else sampling.strategy
