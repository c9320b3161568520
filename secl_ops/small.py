# SPDX-License-Identifier: Apache-2.0
"""Few rows on a CPU: the whole loss, gradients included, is one operation, and the backward pass another.

What is not served here, and every call that breaks a rule, goes the long way, which knows each rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secl_ops.autograd import once
from secl_ops.engines import native
from secl_ops.inputs import ContrastInput
from secl_ops.spec import REDUCTIONS, STRATEGIES, ContrastSpec, Flag, SampleSpec

MOST = 2
"""Similarities that are kept, for each number in the rows of both sides."""

Found = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]
"""Value, gradient rows of the anchors and their pixels (None: they are all rows), the same of the keys."""


def serves(options: ContrastSpec, rows: Tensor | None) -> bool:
    """Whether a call with these options, on rows or a map of this dtype, may be one of few rows on a CPU."""
    return (
        not torch.compiler.is_compiling()
        and options.backend in ("auto", "native")
        and options.reduction != "none"
        and not options.validate
        and not isinstance(options.temperature, Tensor)
        and rows is not None
        and is_plain(rows)
        and not native.objections("cpu", rows.dtype, "info_nce")
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def fits(rows: int, keys: int, width: int) -> bool:
    """Whether the similarities are no more than the numbers in the rows, times `MOST`."""
    return rows * keys <= MOST * (rows + keys) * width


def is_plain(value: object) -> bool:
    """Whether an operation of the extension can be called with this: a dense tensor on the CPU, or None."""
    if value is None:
        return True
    return (
        type(value) in (Tensor, nn.Parameter)
        and not native.serves_cuda(value)  # type: ignore[arg-type]
        and value.device.type == "cpu"  # type: ignore[attr-defined]
        and value.layout == torch.strided  # type: ignore[attr-defined]
        and not value.is_nested  # type: ignore[attr-defined]
    )


def dense(value: Tensor | None) -> Tensor | None:
    """The same numbers in order."""
    return None if value is None else value.contiguous()


def info_nce(given: ContrastInput, options: ContrastSpec) -> Tensor | None:
    """The loss of few rows; None where it goes the long way."""
    if given.positives is not None or given.positive_labels is not None or given.positive_groups is not None:
        return None
    if not serves(options, given.anchors) or not all(map(is_plain, given[1:])):
        return None
    anchors, keys = given.anchors, given.keys
    if anchors.ndim != 2 or not (keys is None or isinstance(keys, Tensor) and keys.ndim == 2):
        return None
    if given.weights is not None and given.weights.requires_grad:
        return None
    rows, width = anchors.shape
    if not fits(rows, rows if keys is None else keys.shape[0], width):
        return None
    reduction, scale = REDUCTIONS.index(options.reduction), options.scale
    denominator = int(Flag.NEGATIVES) if options.denominator == "negatives" else 0

    def find(flags: int) -> Found | None:
        value, of_anchors, of_keys, served = torch.ops.secl_native.info_nce.default(
            *map(dense, (
                anchors, keys, given.anchor_labels, given.key_labels, given.anchor_groups, given.key_groups,
                given.exclude, given.weights,
            )),
            options.normalize, scale, denominator | flags, reduction,
        )  # fmt: skip
        return (value, of_anchors, None, of_keys, None) if served else None

    return differentiable(anchors, keys, find)


class Pixels(NamedTuple):
    """One side of a pixel step."""

    features: Tensor  # [B, D, *spatial]
    labels: Tensor  # [B, *any]
    eligible: Tensor | None
    scores: Tensor | None
    seed: int | Tensor
    stream: int = 0


def pixel_contrast(
    anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec
) -> Tensor | None:
    """The whole pixel step of few draws; None where it goes the long way."""
    if not serves(options, anchors.features) or (sampling.strategy == "hard") != (anchors.scores is not None):
        return None
    if not all(map(is_plain, (*anchors[1:4], *(keys or ())[:3]))) or not _fit(anchors, keys or anchors, sampling):
        return None
    if not all(_is_seed(side.seed) for side in (anchors, keys) if side is not None):
        return None
    seed, seed_number = _seed(anchors.seed)
    key_seed, key_seed_number = (None, 0) if keys is None else _seed(keys.seed)
    of_keys = (None, None, None, 0) if keys is None else (keys.features, keys.labels, keys.eligible, keys.stream)
    denominator = int(Flag.NEGATIVES) if options.denominator == "negatives" else 0

    def find(flags: int) -> Found | None:
        *found, served = torch.ops.secl_native.pixel_contrast.default(
            anchors.features, dense(anchors.labels), of_keys[0], dense(of_keys[1]), dense(anchors.eligible),
            dense(of_keys[2]), dense(anchors.scores), seed, key_seed, seed_number, key_seed_number, of_keys[3], sampling.per_class, sampling.num_classes,
            sampling.ignore_index, STRATEGIES.index(sampling.strategy), options.normalize, options.scale,
            denominator | flags, REDUCTIONS.index(options.reduction),
        )  # fmt: skip
        return tuple(found) if served else None  # type: ignore[return-value]

    return differentiable(anchors.features, of_keys[0], find)


def _fit(anchors: Pixels, keys: Pixels, sampling: SampleSpec) -> bool:
    if anchors.features.ndim < 3 or keys.features.ndim < 3:
        return False
    width = anchors.features.shape[1]
    rows, others = (
        min(sampling.per_class * sampling.num_classes * side.features.shape[0], side.features.numel() // max(width, 1))
        for side in (anchors, keys)
    )
    return fits(rows, others, width)


def _is_seed(seed: object) -> bool:
    return type(seed) is int or (isinstance(seed, Tensor) and is_plain(seed))


def _seed(seed: int | Tensor) -> tuple[Tensor | None, int]:
    """A seed as the operation takes it: a tensor, or a number."""
    if isinstance(seed, Tensor):
        return seed, 0
    return None, (seed + 2**63) % 2**64 - 2**63


class UnservedError(Exception):
    """This call goes the long way."""


class SmallContrast(torch.autograd.Function):
    """A loss whose gradients, but for the upstream number, are found with it."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, find: Callable[[int], Found | None]) -> Tensor:
        of_anchors, of_keys = ctx.needs_input_grad[:2]
        found = find(ANCHORS * of_anchors | KEYS * of_keys)
        if found is None:
            raise UnservedError
        value, *rows = found
        ctx.save_for_backward(*rows)
        ctx.origins = [
            (each.shape, None if each.is_contiguous() else each.stride(), each.dtype) if learns else None
            for each, learns in zip((anchors, keys), (of_anchors, of_keys))
        ]
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        anchor_rows, anchor_pixels, key_rows, key_pixels = ctx.saved_tensors
        of_anchors, of_keys = ctx.origins
        return (
            None if of_anchors is None else once(_to_source(anchor_rows, anchor_pixels, grad_value, *of_anchors)),
            None if of_keys is None else once(_to_source(key_rows, key_pixels, grad_value, *of_keys)),
            None,
        )


ANCHORS, KEYS = int(Flag.ANCHOR_GRADIENT), int(Flag.KEY_GRADIENT)


def differentiable(anchors: Tensor, keys: Tensor | None, find: Callable[[int], Found | None]) -> Tensor | None:
    """The loss that `find` finds, with its gradient where one is asked for; None where it is not served."""
    if not torch.is_grad_enabled():
        found = find(0)
        return None if found is None else found[0]
    try:
        loss: Tensor = SmallContrast.apply(anchors, keys, find)  # type: ignore[no-untyped-call]
    except UnservedError:
        return None
    return loss


def _to_source(
    rows: Tensor, pixels: Tensor | None, upstream: Tensor, size: torch.Size, stride: tuple[int, ...] | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Gradient of rows, or of the map whose pixels they are, in its layout."""
    if pixels is None:
        found = torch.empty(size, dtype=dtype)
    elif stride is None:
        found = torch.zeros(size, dtype=dtype)
    else:
        found = torch.empty_like(torch.empty_strided(size, stride, dtype=dtype)).zero_()
    torch.ops.secl_native.small_backward.default(rows, pixels, upstream.detach(), found)
    columnwise = pixels is None and stride is not None and 0 < stride[0] < stride[1]
    return found.t().contiguous().t() if columnwise else found
