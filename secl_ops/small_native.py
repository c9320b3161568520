# SPDX-License-Identifier: Apache-2.0
"""Few rows on a CPU: the whole loss with its gradients is one operation, and the backward pass another."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor

from secl_ops.engines import native
from secl_ops.engines.reference import Origin
from secl_ops.inputs import ContrastInput
from secl_ops.small_call import Call, Found, Kept, Pixels, Wanted, is_plain
from secl_ops.spec import REDUCTIONS, STRATEGIES, ContrastSpec, Flag, SampleSpec

MOST = 2
"""Similarities that are kept, for each number in the rows of both sides."""
NEVER_FEW = 1 << 21
"""More are never kept, 8 MiB: from some four times as many on, finding them twice took half of the time."""
NEVER_MANY = 1 << 14
"""So many are kept however narrow the rows: 64 KiB."""
TILE, VECTOR = 32, 16
"""What the anchors, and the numbers of a row, are padded to."""
MOST_HALVES = 1 << 25
"""Products of bf16 rows from which on a matrix unit repays that its way finds them twice."""

_NEGATIVES, _ANCHORS, _KEYS = (int(flag) for flag in (Flag.NEGATIVES, Flag.ANCHOR_GRADIENT, Flag.KEY_GRADIENT))


def info_nce(given: ContrastInput, options: ContrastSpec) -> Call | None:
    """The call on few rows; None where it is not served."""
    anchors, keys = given.anchors, given.keys
    others = anchors if keys is None else keys
    if not (_serves(options, anchors) and _is_here(others) and anchors.ndim == others.ndim == 2):
        return None
    beside = (
        given.anchor_labels, given.key_labels, given.anchor_groups, given.key_groups, given.exclude, given.weights,
    )  # fmt: skip
    if not all(value is None or _is_here(value) for value in beside):
        return None
    if not _fits(anchors.shape[0], others.shape[0], anchors.shape[1], anchors.dtype):
        return None
    flags, reduction = _flags(options), REDUCTIONS.index(options.reduction)

    def find(wanted: Wanted) -> Found | None:
        value, anchor_rows, key_rows, served = torch.ops.secl_native.info_nce.default(
            anchors.contiguous(), None if keys is None else others.contiguous(), *map(_dense, beside),
            options.normalize, options.scale, flags | _wanted(wanted), reduction,
        )  # fmt: skip
        return Found(value, Kept(anchor_rows), Kept(key_rows)) if served else None

    return Call(find, (_back, _back))


def pixel_contrast(anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec) -> Call | None:
    """The pixel step of few draws; None where it is not served."""
    if not (_serves(options, anchors.features) and _is_side(anchors) and (keys is None or _is_side(keys))):
        return None
    if not _draws_few(anchors, keys or anchors, sampling):
        return None
    flags, reduction = _flags(options), REDUCTIONS.index(options.reduction)
    other = keys or Pixels(None, None, None, None, 0)  # type: ignore[arg-type]  # the operation takes an absent side

    def find(wanted: Wanted) -> Found | None:
        value, anchor_rows, anchor_pixels, key_rows, key_pixels, served = torch.ops.secl_native.pixel_contrast.default(
            anchors.features, _dense(anchors.labels), other.features, _dense(other.labels), _dense(anchors.eligible),
            _dense(other.eligible), _dense(anchors.scores), *_seeds(anchors.seed, other.seed), other.stream,
            sampling.per_class, sampling.num_classes, sampling.ignore_index, STRATEGIES.index(sampling.strategy),
            options.normalize, options.scale, flags | _wanted(wanted), reduction,
        )  # fmt: skip
        if not served:
            return None
        return Found(value, Kept(anchor_rows, pixels=anchor_pixels), Kept(key_rows, pixels=key_pixels))

    return Call(find, (_back, _back))


def _back(kept: Kept, origin: Origin, upstream: Tensor) -> Tensor:
    """The rows times the upstream number, as rows or in a map of zeros at their pixels."""
    found = torch.empty(origin.size, dtype=origin.dtype) if kept.pixels is None else _map(origin)
    torch.ops.secl_native.small_backward.default(kept.rows, kept.pixels, upstream.detach(), found)
    return found


def _map(origin: Origin) -> Tensor:
    if origin.is_contiguous:
        return torch.zeros(origin.size, dtype=origin.dtype)
    like = torch.empty_strided(origin.size, origin.stride, dtype=origin.dtype, device="meta")
    return torch.empty_like(like, device="cpu").zero_()


def _flags(options: ContrastSpec) -> int:
    return _NEGATIVES if options.denominator == "negatives" else 0


def _wanted(wanted: Wanted) -> int:
    return _ANCHORS * wanted.anchors | _KEYS * wanted.keys


def _serves(options: ContrastSpec, rows: Tensor) -> bool:
    named = options.backend in ("auto", "native")
    return named and _is_here(rows) and not native.objections("cpu", rows.dtype, "info_nce")


def _fits(rows: int, keys: int, width: int, dtype: torch.dtype) -> bool:
    """Whether the similarities are no more than the numbers in the rows, times `MOST`, and worth keeping."""
    kept = -(-rows // TILE) * TILE * keys + keys * (-width % VECTOR)
    if kept > min(max(MOST * (rows + keys) * width, NEVER_MANY), NEVER_FEW):
        return False
    many = dtype == torch.bfloat16 and rows * keys * width > MOST_HALVES
    return not (many and torch.ops.secl_native.matrix_unit.default())


def _is_here(value: object) -> TypeGuard[Tensor]:
    """Whether an operation of the extension can be called with this."""
    return is_plain(value) and value.device.type == "cpu" and not native.serves_cuda(value)


def _dense(value: Any) -> Tensor | None:
    return None if value is None else value.contiguous()


def _is_side(side: Pixels) -> bool:
    is_map = _is_here(side.features) and side.features.ndim >= 3 and _is_here(side.labels)
    beside = (side.eligible, side.scores)
    is_seed = type(side.seed) is int or _is_here(side.seed)
    return is_map and is_seed and all(value is None or _is_here(value) for value in beside)


def _draws_few(anchors: Pixels, keys: Pixels, sampling: SampleSpec) -> bool:
    width = max(anchors.features.shape[1], 1)
    rows, others = (
        min(sampling.per_class * sampling.num_classes * side.features.shape[0], side.features.numel() // width)
        for side in (anchors, keys)
    )
    return _fits(rows, others, width, anchors.features.dtype)


def _seeds(*seeds: int | Tensor) -> list[Tensor | int | None]:
    """The seeds as the operation takes them: the tensors, then the numbers."""
    tensors = [seed if isinstance(seed, Tensor) else None for seed in seeds]
    return [*tensors, *(0 if isinstance(seed, Tensor) else (seed + 2**63) % 2**64 - 2**63 for seed in seeds)]
