# SPDX-License-Identifier: Apache-2.0
"""The operations as `torch.library` sees them: one schema, one implementation, one fake each.

The backend is an argument and is chosen here, on real tensors, so that a traced graph holds no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from secl_ops.backends.reference import ContrastState, MapLike, Reduction
from secl_ops.backends.select import select
from secl_ops.spec import Flag, Pairs

Function = TypeVar("Function", bound=Callable[..., Any])
_PAIRS = (
    "Tensor anchor_labels, Tensor key_labels, Tensor? anchor_groups, Tensor? key_groups, Tensor? exclude, "
    "SymInt positive_start, SymInt negative_stop"
)
SCHEMAS = {
    "unit_rows": "(Tensor rows, Tensor labels, str backend) -> (Tensor unit, Tensor inverse)",
    "unit_rows_backward": "(Tensor grad, Tensor? factor, Tensor? upstream, Tensor unit, Tensor inverse, str backend)"
    " -> Tensor",
    "contrast": f"(Tensor anchors, Tensor keys, {_PAIRS}, Tensor? known_lse, float scale, int flags,"
    " str backend) -> (Tensor loss, Tensor lse, Tensor pull, Tensor count, Tensor grad_anchors)",
    "contrast_backward": f"(Tensor grad_loss, Tensor push, Tensor draw, Tensor anchors, Tensor keys, {_PAIRS},"
    " Tensor lse, float scale, int flags, str backend) -> (Tensor grad_anchors, Tensor grad_keys)",
    "reduce": "(Tensor loss, Tensor pull, Tensor count, Tensor? weights, str reduction, str backend)"
    " -> (Tensor value, Tensor factor, Tensor push, Tensor draw)",
    "gather": "(Tensor features, Tensor index, bool normalize, ScalarType dtype, str backend)"
    " -> (Tensor rows, Tensor inverse)",
    "gather_backward": "(Tensor grad, Tensor? factor, Tensor? upstream, Tensor index, Tensor? unit, Tensor? inverse,"
    " bool unique, SymInt[] size, SymInt[] stride, ScalarType dtype, str backend) -> Tensor",
    "sample": "(Tensor labels, Tensor? eligible, Tensor? scores, Tensor seed, SymInt per_class, int num_classes,"
    " int ignore_index, str strategy, int stream, str backend) -> (Tensor index, Tensor label)",
}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"secl::{_name}", _schema)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""What runs behind each schema, by name."""


def _implement(name: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        IMPLEMENTATIONS[name] = function
        torch.library.impl(f"secl::{name}", ("cpu", "cuda"))(function)
        return function

    return register


def _fake(name: str) -> Callable[[Function], Function]:
    decorator: Callable[[Function], Function] = torch.library.register_fake(f"secl::{name}")
    return decorator


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@_implement("unit_rows")
def _unit_rows(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return select(backend, rows.device, rows.dtype, "info_nce").unit_rows(rows, labels)


@_fake("unit_rows")
def _unit_rows_fake(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape[0], dtype=_wide(rows.dtype))


def _together(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if first is None or second is None else (first, second)


@_implement("unit_rows_backward")
def _unit_rows_backward(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, unit: Tensor, inverse: Tensor, backend: str
) -> Tensor:
    module = select(backend, unit.device, unit.dtype, "info_nce")
    return module.unit_rows_backward(grad, _together(factor, upstream), unit, inverse)


@_fake("unit_rows_backward")
def _unit_rows_backward_fake(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, unit: Tensor, inverse: Tensor, backend: str
) -> Tensor:
    return unit.new_empty(unit.shape)


def _empty_gradient(rows: Tensor, wanted: bool) -> Tensor:
    return rows.new_empty((rows.shape[0] if wanted else 0, rows.shape[1]), dtype=_wide(rows.dtype))


@_implement("contrast")
def _contrast(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, known_lse: Tensor | None, scale: float, flags: int, backend: str,
) -> ContrastState:  # fmt: skip
    module = select(backend, anchors.device, anchors.dtype, "info_nce")
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        state = _contrast_outputs(anchors, flags)
        return ContrastState._make(tensor.zero_() for tensor in state)
    pairs = Pairs(anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop)
    return module.contrast_forward(anchors, keys, pairs, scale, Flag(flags), known_lse)


def _contrast_outputs(anchors: Tensor, flags: int) -> ContrastState:
    loss, lse, pull = (anchors.new_empty(anchors.shape[0], dtype=_wide(anchors.dtype)) for _ in range(3))
    count = anchors.new_empty(anchors.shape[0], dtype=torch.int32)
    return ContrastState(loss, lse, pull, count, _empty_gradient(anchors, bool(flags & Flag.ANCHOR_GRADIENT)))


@_fake("contrast")
def _contrast_fake(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, known_lse: Tensor | None, scale: float, flags: int, backend: str,
) -> ContrastState:  # fmt: skip
    return _contrast_outputs(anchors, flags)


@_implement("contrast_backward")
def _contrast_backward(
    grad_loss: Tensor, push: Tensor, draw: Tensor, anchors: Tensor, keys: Tensor,
    anchor_labels: Tensor, key_labels: Tensor, anchor_groups: Tensor | None, key_groups: Tensor | None,
    exclude: Tensor | None, positive_start: int, negative_stop: int, lse: Tensor,
    scale: float, flags: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    module = select(backend, anchors.device, anchors.dtype, "info_nce")
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        grad_anchors, grad_keys = _contrast_gradients(anchors, keys, flags)
        return grad_anchors.zero_(), grad_keys.zero_()
    pairs = Pairs(anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop)
    return module.contrast_backward((grad_loss, push, draw), anchors, keys, pairs, lse, scale, Flag(flags))


def _contrast_gradients(anchors: Tensor, keys: Tensor, flags: int) -> tuple[Tensor, Tensor]:
    shared = bool(flags & Flag.SELF)
    return (
        _empty_gradient(anchors, shared or bool(flags & Flag.ANCHOR_GRADIENT)),
        _empty_gradient(keys, not shared and bool(flags & Flag.KEY_GRADIENT)),
    )


@_fake("contrast_backward")
def _contrast_backward_fake(
    grad_loss: Tensor, push: Tensor, draw: Tensor, anchors: Tensor, keys: Tensor,
    anchor_labels: Tensor, key_labels: Tensor, anchor_groups: Tensor | None, key_groups: Tensor | None,
    exclude: Tensor | None, positive_start: int, negative_stop: int, lse: Tensor,
    scale: float, flags: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _contrast_gradients(anchors, keys, flags)


@_implement("reduce")
def _reduce(
    loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str, backend: str
) -> Reduction:
    return select(backend, loss.device, loss.dtype, "info_nce").reduce(loss, pull, count, weights, reduction)


@_fake("reduce")
def _reduce_fake(
    loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str, backend: str
) -> Reduction:
    value = loss.new_empty(loss.shape if reduction == "none" else ())
    return Reduction(value, *(loss.new_empty(loss.shape) for _ in range(3)))


def _wider(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """What decides on the backend: fp64 on either side."""
    return other if other == torch.float64 else dtype


@_implement("gather")
def _gather(
    features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    module = select(backend, features.device, _wider(features.dtype, dtype), "gather_pixels")
    return module.gather(features, index, normalize, dtype)


@_fake("gather")
def _gather_fake(
    features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    rows = features.new_empty((index.shape[0], features.shape[1]), dtype=dtype)
    return rows, rows.new_empty(index.shape[0] if normalize else 0, dtype=_wide(features.dtype))


@_implement("gather_backward")
def _gather_backward(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, index: Tensor, unit: Tensor | None,
    inverse: Tensor | None, unique: bool, size: list[int], stride: list[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    module = select(backend, grad.device, _wider(dtype, grad.dtype), "gather_pixels")
    like = MapLike(size, torch.empty_like(torch.empty_strided(size, stride, device="meta")).stride(), dtype)
    return module.gather_backward(grad, _together(factor, upstream), index, _together(unit, inverse), unique, like)


@_fake("gather_backward")
def _gather_backward_fake(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, index: Tensor, unit: Tensor | None,
    inverse: Tensor | None, unique: bool, size: list[int], stride: list[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    return torch.empty_like(grad.new_empty_strided(size, stride, dtype=dtype))


@_implement("sample")
def _sample(
    labels: Tensor, eligible: Tensor | None, scores: Tensor | None, seed: Tensor, per_class: int,
    num_classes: int, ignore_index: int, strategy: str, stream: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    module = select(backend, labels.device, labels.dtype, "sample_pixels")
    return module.sample(labels, eligible, scores, seed, per_class, num_classes, ignore_index, strategy, stream)


@_fake("sample")
def _sample_fake(
    labels: Tensor, eligible: Tensor | None, scores: Tensor | None, seed: Tensor, per_class: int,
    num_classes: int, ignore_index: int, strategy: str, stream: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    size = labels.shape[0] * num_classes * per_class
    return labels.new_empty(size, dtype=torch.int64), labels.new_empty(size, dtype=torch.int32)


unit_rows = torch.ops.secl.unit_rows.default
unit_rows_backward = torch.ops.secl.unit_rows_backward.default
contrast = torch.ops.secl.contrast.default
contrast_backward = torch.ops.secl.contrast_backward.default
reduce = torch.ops.secl.reduce.default
gather = torch.ops.secl.gather.default
gather_backward = torch.ops.secl.gather_backward.default
sample = torch.ops.secl.sample.default
