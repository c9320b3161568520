# SPDX-License-Identifier: Apache-2.0
"""The operations as `torch.library` sees them: one schema, one implementation, one fake each.

The backend is an argument and is chosen here, on real tensors, so that a traced graph holds no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from secl_ops import tiles
from secl_ops.engines.reference import ContrastState, Origin, Reduction
from secl_ops.engines.select import select
from secl_ops.spec import REDUCTIONS, WEIGHTED_KEYS, Flag, Pairs, check_choice, check_places

Function = TypeVar("Function", bound=Callable[..., Any])
PAIRS = (
    "Tensor anchor_labels, Tensor key_labels, Tensor? anchor_groups, Tensor? key_groups, Tensor? exclude, "
    "SymInt positive_start, SymInt negative_stop, Tensor? key_weights"
)
SCHEMAS = {
    "unit_rows": "(Tensor rows, Tensor labels, str backend) -> (Tensor unit, Tensor inverse)",
    "row_inverse": "(Tensor rows, Tensor labels, str backend) -> Tensor",
    "unit_rows_backward": "(Tensor grad, Tensor? factor, Tensor? upstream, Tensor unit, Tensor inverse, str backend)"
    " -> Tensor",
    "contrast": f"(Tensor anchors, Tensor keys, {PAIRS}, Tensor? key_inverse, Tensor? known_lse,"
    " float scale, int flags, str backend, Tensor? met=None)"
    " -> (Tensor loss, Tensor lse, Tensor pull, Tensor count, Tensor grad_anchors, Tensor met)",
    "contrast_backward": f"(Tensor grad_loss, Tensor push, Tensor draw, Tensor anchors, Tensor keys, {PAIRS},"
    " Tensor lse, float scale, int flags, str backend, Tensor? met=None) -> (Tensor grad_anchors, Tensor grad_keys)",
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


def implement(name: str) -> Callable[[Function], Function]:
    """Register what runs behind a schema, on CPUs and on GPUs."""

    def register(function: Function) -> Function:
        IMPLEMENTATIONS[name] = function
        torch.library.impl(f"secl::{name}", ("cpu", "cuda"))(function)
        return function

    return register


def fake(name: str) -> Callable[[Function], Function]:
    """Register what a traced graph takes the outputs of a schema to be."""
    decorator: Callable[[Function], Function] = torch.library.register_fake(f"secl::{name}")
    return decorator


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def demand(name: str, value: Tensor | None, *shape: int | None) -> None:
    """Refuse a shape that kernels, which trust it, would read past; None stands for any size."""
    if value is None:  # what the dispatcher makes of a None in a place that must hold a tensor
        raise TypeError(f"{name} must be a tensor; got None")
    found = value.shape
    if len(found) == len(shape):
        for want, have in zip(shape, found):  # noqa: B905  # a generator, or a check of lengths, costs more than this
            if want is not None and want != have:
                break
        else:
            return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} must have shape [{wanted}]; got {tuple(found)}")


def _demand_map(name: str, value: Tensor, least: int) -> None:
    demand(name, value, *([None] * max(least, 0 if value is None else value.ndim)))


def _demand_factors(factor: Tensor | None, upstream: Tensor | None, length: int) -> None:
    for name, value in (("factor", factor), ("upstream", upstream)):
        if value is not None:
            demand(name, value, length)


def demand_pairs(anchors: Tensor, keys: Tensor, pairs: Pairs) -> None:
    """Refuse sides and pairs of them that do not go together."""
    demand("anchors", anchors, None, None)
    demand("keys", keys, None, anchors.shape[1])
    for name, side in zip(Pairs._fields, (anchors, keys, anchors, keys, anchors), strict=False):
        value = getattr(pairs, name)
        if value is not None or name.endswith("labels"):
            demand(name, value, side.shape[0])
    if pairs.key_weights is not None:
        demand("key_weights", pairs.key_weights, keys.shape[0])


def _contrast_of(pairs: Pairs, flags: int, unweighted: Flag) -> str:
    """The operation that an engine is asked for; passes with some flags are for keys without weights."""
    if pairs.key_weights is None:
        return "info_nce"
    if flags & unweighted:
        raise ValueError(
            f"flags must be without {Flag(flags) & unweighted!r} under key_weights; got {Flag(flags)!r}; pass the "
            "anchors as keys, excluded each for itself, and take the gradient of anchors from the forward pass"
        )
    return WEIGHTED_KEYS


@implement("unit_rows")
def _unit_rows(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    demand("rows", rows, None, None)
    demand("labels", labels, rows.shape[0])
    return select(backend, rows.device, rows.dtype, "info_nce", rows.shape[1]).unit_rows(rows, labels)


@fake("unit_rows")
def _unit_rows_fake(rows: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    demand("rows", rows, None, None)
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape[0], dtype=_wide(rows.dtype))


@implement("row_inverse")
def _row_inverse(rows: Tensor, labels: Tensor, backend: str) -> Tensor:
    demand("rows", rows, None, None)
    demand("labels", labels, rows.shape[0])
    return select(backend, rows.device, rows.dtype, "info_nce", rows.shape[1]).row_inverse(rows, labels)


@fake("row_inverse")
def _row_inverse_fake(rows: Tensor, labels: Tensor, backend: str) -> Tensor:
    demand("rows", rows, None, None)
    return rows.new_empty(rows.shape[0], dtype=_wide(rows.dtype))


def _together(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if first is None or second is None else (first, second)


@implement("unit_rows_backward")
def _unit_rows_backward(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, unit: Tensor, inverse: Tensor, backend: str
) -> Tensor:
    demand("unit", unit, None, None)
    demand("grad", grad, *unit.shape)
    demand("inverse", inverse, unit.shape[0])
    _demand_factors(factor, upstream, unit.shape[0])
    module = select(backend, unit.device, unit.dtype, "info_nce", unit.shape[1])
    return module.unit_rows_backward(grad, _together(factor, upstream), unit, inverse)


@fake("unit_rows_backward")
def _unit_rows_backward_fake(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, unit: Tensor, inverse: Tensor, backend: str
) -> Tensor:
    return unit.new_empty(unit.shape)


def empty_gradient(rows: Tensor, wanted: bool) -> Tensor:
    """Room for the gradient of rows [n, D], in fp32 or fp64; [0, D] where none is wanted."""
    return rows.new_empty((rows.shape[0] if wanted else 0, rows.shape[1]), dtype=_wide(rows.dtype))


@implement("contrast")
def _contrast(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, key_weights: Tensor | None, key_inverse: Tensor | None,
    known_lse: Tensor | None, scale: float, flags: int, backend: str, met: Tensor | None = None,
) -> ContrastState:  # fmt: skip
    pairs = Pairs(
        anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop, key_weights
    )
    demand_pairs(anchors, keys, pairs)
    for name, value, length in (
        ("key_inverse", key_inverse, keys.shape[0]),
        ("known_lse", known_lse, anchors.shape[0]),
    ):
        if value is not None:
            demand(name, value, length)
    places = _met_places(anchors, keys, pairs, flags, met)
    _demand_met(met, anchors, keys, pairs, flags)
    operation = _contrast_of(pairs, flags, Flag.SELF)
    module = select(backend, anchors.device, anchors.dtype, operation, anchors.shape[1])
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        state = _contrast_outputs(anchors, pairs, flags)
        state = ContrastState(*(value.zero_() for value in state if value is not None))
    else:
        state = module.contrast_forward(anchors, keys, pairs, scale, Flag(flags), known_lse, key_inverse, met)
    if state.met is not None:
        return state
    fresh = anchors.new_zeros if places else anchors.new_empty
    return state._replace(met=fresh(places, dtype=torch.int32))


def _met_places(anchors: Tensor, keys: Tensor, pairs: Pairs, flags: int, met: Tensor | None) -> int:
    """Size of what this pass leaves to the next one: nothing where none follows, or where it was handed the same."""
    if met is not None or not flags & (Flag.SELF | Flag.SCAN):
        return 0
    return _met_size(anchors, keys, pairs, flags)


def _met_size(anchors: Tensor, keys: Tensor, pairs: Pairs, flags: int) -> int:
    shared = bool(flags & Flag.SELF)
    return tiles.met_places(
        anchors.shape[0], None if shared else keys.shape[0], not shared and pairs.exclude is not None
    )


def _demand_met(met: Tensor | None, anchors: Tensor, keys: Tensor, pairs: Pairs, flags: int) -> None:
    if met is not None:
        demand("met", met, _met_size(anchors, keys, pairs, flags))
        if met.dtype != torch.int32:
            raise TypeError(f"met must be int32, as the forward pass left it; got {met.dtype}")


def _contrast_outputs(anchors: Tensor, pairs: Pairs, flags: int) -> ContrastState:
    demand("anchors", anchors, None, None)
    loss, lse, pull = (anchors.new_empty(anchors.shape[0], dtype=_wide(anchors.dtype)) for _ in range(3))
    count = torch.empty_like(loss) if pairs.key_weights is not None else torch.empty_like(loss, dtype=torch.int32)
    return ContrastState(loss, lse, pull, count, empty_gradient(anchors, bool(flags & Flag.ANCHOR_GRADIENT)))


@fake("contrast")
def _contrast_fake(
    anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor,
    anchor_groups: Tensor | None, key_groups: Tensor | None, exclude: Tensor | None,
    positive_start: int, negative_stop: int, key_weights: Tensor | None, key_inverse: Tensor | None,
    known_lse: Tensor | None, scale: float, flags: int, backend: str, met: Tensor | None = None,
) -> ContrastState:  # fmt: skip
    pairs = Pairs(
        anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop, key_weights
    )
    places = _met_places(anchors, keys, pairs, flags, met)
    return _contrast_outputs(anchors, pairs, flags)._replace(met=anchors.new_empty(places, dtype=torch.int32))


@implement("contrast_backward")
def _contrast_backward(
    grad_loss: Tensor, push: Tensor, draw: Tensor, anchors: Tensor, keys: Tensor,
    anchor_labels: Tensor, key_labels: Tensor, anchor_groups: Tensor | None, key_groups: Tensor | None,
    exclude: Tensor | None, positive_start: int, negative_stop: int, key_weights: Tensor | None, lse: Tensor,
    scale: float, flags: int, backend: str, met: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = Pairs(
        anchor_labels, key_labels, anchor_groups, key_groups, exclude, positive_start, negative_stop, key_weights
    )
    demand_pairs(anchors, keys, pairs)
    for name, value in (("grad_loss", grad_loss), ("push", push), ("draw", draw), ("lse", lse)):
        demand(name, value, anchors.shape[0])
    _demand_met(met, anchors, keys, pairs, flags)
    operation = _contrast_of(pairs, flags, Flag.SELF | Flag.ANCHOR_GRADIENT)
    module = select(backend, anchors.device, anchors.dtype, operation, anchors.shape[1])
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        grad_anchors, grad_keys = _contrast_gradients(anchors, keys, flags)
        return grad_anchors.zero_(), grad_keys.zero_()
    return module.contrast_backward((grad_loss, push, draw), anchors, keys, pairs, lse, scale, Flag(flags), met)


def _contrast_gradients(anchors: Tensor, keys: Tensor, flags: int) -> tuple[Tensor, Tensor]:
    demand("anchors", anchors, None, None)
    demand("keys", keys, None, None)
    shared = bool(flags & Flag.SELF)
    return (
        empty_gradient(anchors, shared or bool(flags & Flag.ANCHOR_GRADIENT)),
        empty_gradient(keys, not shared and bool(flags & Flag.KEY_GRADIENT)),
    )


@fake("contrast_backward")
def _contrast_backward_fake(
    grad_loss: Tensor, push: Tensor, draw: Tensor, anchors: Tensor, keys: Tensor,
    anchor_labels: Tensor, key_labels: Tensor, anchor_groups: Tensor | None, key_groups: Tensor | None,
    exclude: Tensor | None, positive_start: int, negative_stop: int, key_weights: Tensor | None, lse: Tensor,
    scale: float, flags: int, backend: str, met: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _contrast_gradients(anchors, keys, flags)


@implement("reduce")
def _reduce(
    loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str, backend: str
) -> Reduction:
    demand("loss", loss, None)
    for name, value in (("pull", pull), ("count", count), *([] if weights is None else [("weights", weights)])):
        demand(name, value, loss.shape[0])
    check_choice("reduction", reduction, REDUCTIONS)
    return select(backend, loss.device, loss.dtype, "reduce").reduce(loss, pull, count, weights, reduction)


@fake("reduce")
def _reduce_fake(
    loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str, backend: str
) -> Reduction:
    value = loss.new_empty(loss.shape if reduction == "none" else ())
    return Reduction(value, *(loss.new_empty(loss.shape) for _ in range(3)))


def _wider(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """What decides on the backend: fp64 on either side."""
    return other if other == torch.float64 else dtype


@implement("gather")
def _gather(
    features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    _demand_map("features", features, 3)
    demand("index", index, None)
    module = select(backend, features.device, _wider(features.dtype, dtype), "gather_pixels", features.shape[1])
    return module.gather(features, index, normalize, dtype)


@fake("gather")
def _gather_fake(
    features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    _demand_map("features", features, 3)
    demand("index", index, None)
    rows = features.new_empty((index.shape[0], features.shape[1]), dtype=dtype)
    return rows, rows.new_empty(index.shape[0] if normalize else 0, dtype=_wide(features.dtype))


@implement("gather_backward")
def _gather_backward(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, index: Tensor, unit: Tensor | None,
    inverse: Tensor | None, unique: bool, size: list[int], stride: list[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    demand("index", index, None)
    if len(size) < 3 or len(stride) != len(size) or min(*size, *stride) < 0:
        raise ValueError(f"size and stride must be those of a map [B, D, *spatial]; got {size} and {stride}")
    demand("grad", grad, index.shape[0], size[1])
    _demand_factors(factor, upstream, index.shape[0])
    if unit is not None and inverse is not None:
        demand("unit", unit, *grad.shape)
        demand("inverse", inverse, index.shape[0])
    module = select(backend, grad.device, _wider(dtype, grad.dtype), "gather_pixels", grad.shape[1])
    like = Origin(size, torch.empty_like(torch.empty_strided(size, stride, device="meta")).stride(), dtype)
    return module.gather_backward(grad, _together(factor, upstream), index, _together(unit, inverse), unique, like)


@fake("gather_backward")
def _gather_backward_fake(
    grad: Tensor, factor: Tensor | None, upstream: Tensor | None, index: Tensor, unit: Tensor | None,
    inverse: Tensor | None, unique: bool, size: list[int], stride: list[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    return torch.empty_like(grad.new_empty_strided(size, stride, dtype=dtype))


@implement("sample")
def _sample(
    labels: Tensor, eligible: Tensor | None, scores: Tensor | None, seed: Tensor, per_class: int,
    num_classes: int, ignore_index: int, strategy: str, stream: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _demand_map("labels", labels, 2)
    for name, value in (("eligible", eligible), ("scores", scores)):
        if value is not None:
            demand(name, value, *labels.shape)
    demand("seed", seed, 1)
    if min(per_class, num_classes) < 0:
        raise ValueError(f"per_class and num_classes must not be negative; got {per_class} and {num_classes}")
    check_places("B * num_classes * per_class", labels.shape[0] * num_classes * per_class)
    module = select(backend, labels.device, labels.dtype, "sample_pixels")
    return module.sample(labels, eligible, scores, seed, per_class, num_classes, ignore_index, strategy, stream)


@fake("sample")
def _sample_fake(
    labels: Tensor, eligible: Tensor | None, scores: Tensor | None, seed: Tensor, per_class: int,
    num_classes: int, ignore_index: int, strategy: str, stream: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _demand_map("labels", labels, 2)
    size = labels.shape[0] * num_classes * per_class
    return labels.new_empty(size, dtype=torch.int64), labels.new_empty(size, dtype=torch.int32)


unit_rows = torch.ops.secl.unit_rows.default
row_inverse = torch.ops.secl.row_inverse.default
unit_rows_backward = torch.ops.secl.unit_rows_backward.default
contrast = torch.ops.secl.contrast.default
contrast_backward = torch.ops.secl.contrast_backward.default
reduce = torch.ops.secl.reduce.default
gather = torch.ops.secl.gather.default
gather_backward = torch.ops.secl.gather_backward.default
sample = torch.ops.secl.sample.default
