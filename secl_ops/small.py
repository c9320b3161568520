# SPDX-License-Identifier: Apache-2.0
"""Few rows on a CPU: the whole loss with its gradients is one operation, and the backward pass another.

What these do not serve, and every call that breaks a rule, goes the long way, which knows each rule by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from secl_ops.autograd import once
from secl_ops.engines import native
from secl_ops.inputs import ContrastInput
from secl_ops.spec import REDUCTIONS, STRATEGIES, ContrastSpec, Flag, SampleSpec

MOST = 2
"""Similarities that are kept, for each number in the rows of both sides."""
NEVER_MANY = 1 << 14
"""So many are kept however narrow the rows: 64 KiB."""
TILE, VECTOR = 32, 16
"""What the anchors, and the numbers of a row, are padded to."""
MOST_HALVES = 1 << 25
"""Products of bf16 rows from which on a matrix unit repays that its way finds them twice."""

_NEGATIVES, _ANCHORS, _KEYS = (int(flag) for flag in (Flag.NEGATIVES, Flag.ANCHOR_GRADIENT, Flag.KEY_GRADIENT))


class Found(NamedTuple):
    """A loss, and what its gradient is but for the upstream number; empty where no gradient was asked for."""

    value: Tensor  # []
    anchor_rows: Tensor  # [n, D]
    anchor_pixels: Tensor | None  # [n] int64; None: the rows are those of the anchors
    key_rows: Tensor  # [m, D]
    key_pixels: Tensor | None  # [m]


Find = Callable[[int], Found | None]
"""Finds a loss and the gradients that the flags ask for; None where the call is not served."""


class Pixels(NamedTuple):
    """One side of a pixel step."""

    features: Tensor  # [B, D, *spatial]
    labels: Tensor  # [B, *any]
    eligible: Tensor | None  # [B, *any]
    scores: Tensor | None  # [B, *any]
    seed: int | Tensor
    stream: int = 0


def serves(options: ContrastSpec, rows: object) -> bool:
    """Whether a call with these options, on rows or a map of this dtype, may be one of few rows on a CPU."""
    return (
        not torch.compiler.is_compiling()
        and options.backend in ("auto", "native")
        and options.reduction != "none"
        and not options.validate
        and options.learned is None
        and _is_plain(rows)
        and not native.objections("cpu", rows.dtype, "info_nce")
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def info_nce(given: ContrastInput, options: ContrastSpec) -> Tensor | None:
    """The loss of few rows; None where it goes the long way."""
    if not serves(options, given.anchors) or given.positives is not None or given.positive_labels is not None:
        return None
    if given.positive_groups is not None:
        return None
    anchors, keys = given.anchors, given.keys
    others = anchors if keys is None else keys
    if not (_is_plain(others) and anchors.ndim == others.ndim == 2):
        return None
    beside = (
        given.anchor_labels, given.key_labels, given.anchor_groups, given.key_groups, given.exclude, given.weights,
    )  # fmt: skip
    if not all(value is None or _is_plain(value) for value in beside):
        return None
    learns = isinstance(given.weights, Tensor) and given.weights.requires_grad
    if learns or not _fits(anchors.shape[0], others.shape[0], anchors.shape[1], anchors.dtype):
        return None
    flags, reduction = _flags(options), REDUCTIONS.index(options.reduction)

    def find(wanted: int) -> Found | None:
        value, anchor_rows, key_rows, served = torch.ops.secl_native.info_nce.default(
            anchors.contiguous(), None if keys is None else others.contiguous(), *map(_dense, beside),
            options.normalize, options.scale, flags | wanted, reduction,
        )  # fmt: skip
        return Found(value, anchor_rows, None, key_rows, None) if served else None

    return _differentiable(anchors, None if keys is None else others, find)


def pixel_contrast(anchors: Pixels, keys: Pixels | None, sampling: SampleSpec, options: ContrastSpec) -> Tensor | None:
    """The whole pixel step of few draws; None where it goes the long way."""
    if not serves(options, anchors.features) or (sampling.strategy == "hard") != (anchors.scores is not None):
        return None
    if not (_is_side(anchors) and (keys is None or _is_side(keys)) and _draws_few(anchors, keys or anchors, sampling)):
        return None
    flags, reduction = _flags(options), REDUCTIONS.index(options.reduction)
    other = keys or Pixels(None, None, None, None, 0)  # type: ignore[arg-type]  # the operation takes an absent side

    def find(wanted: int) -> Found | None:
        *found, served = torch.ops.secl_native.pixel_contrast.default(
            anchors.features, _dense(anchors.labels), other.features, _dense(other.labels), _dense(anchors.eligible),
            _dense(other.eligible), _dense(anchors.scores), *_seeds(anchors.seed, other.seed), other.stream,
            sampling.per_class, sampling.num_classes, sampling.ignore_index, STRATEGIES.index(sampling.strategy),
            options.normalize, options.scale, flags | wanted, reduction,
        )  # fmt: skip
        return Found(*found) if served else None

    return _differentiable(anchors.features, None if keys is None else keys.features, find)


def _flags(options: ContrastSpec) -> int:
    return _NEGATIVES if options.denominator == "negatives" else 0


def _fits(rows: int, keys: int, width: int, dtype: torch.dtype) -> bool:
    """Whether the similarities are no more than the numbers in the rows, times `MOST`, and worth keeping."""
    kept = -(-rows // TILE) * TILE * keys + keys * (-width % VECTOR)
    if kept > max(MOST * (rows + keys) * width, NEVER_MANY):
        return False
    many = dtype == torch.bfloat16 and rows * keys * width > MOST_HALVES
    return not (many and torch.ops.secl_native.matrix_unit.default())


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether an operation of the extension can be called with this: a dense tensor on the CPU, of no other class."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_nested
        and not value.is_quantized
        and not native.serves_cuda(value)
    )


def _dense(value: Any) -> Tensor | None:
    return None if value is None else value.contiguous()


def _is_side(side: Pixels) -> bool:
    is_map = _is_plain(side.features) and side.features.ndim >= 3 and _is_plain(side.labels)
    beside = (side.eligible, side.scores)
    is_seed = type(side.seed) is int or _is_plain(side.seed)
    return is_map and is_seed and all(value is None or _is_plain(value) for value in beside)


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


class UnservedError(Exception):
    """This call goes the long way."""


class SmallContrast(torch.autograd.Function):
    """A loss whose gradients, but for the upstream number, are found with it."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, find: Find) -> Tensor:
        of_anchors, of_keys = ctx.needs_input_grad[:2]
        found = find(_ANCHORS * of_anchors | _KEYS * of_keys)
        if found is None:
            raise UnservedError
        ctx.save_for_backward(*found[1:])
        ctx.of_anchors = _Origin.of(anchors) if of_anchors else None
        ctx.of_keys = _Origin.of(keys) if of_keys and keys is not None else None
        return found.value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        anchor_rows, anchor_pixels, key_rows, key_pixels = ctx.saved_tensors
        return (
            None if ctx.of_anchors is None else once(ctx.of_anchors.gradient(anchor_rows, anchor_pixels, grad_value)),
            None if ctx.of_keys is None else once(ctx.of_keys.gradient(key_rows, key_pixels, grad_value)),
            None,
        )


class _Origin(NamedTuple):
    """Where rows come from, and how their gradient lies in memory."""

    size: torch.Size
    stride: tuple[int, ...] | None  # None: contiguous
    dtype: torch.dtype

    @classmethod
    def of(cls, source: Tensor) -> _Origin:
        return cls(source.shape, None if source.is_contiguous() else source.stride(), source.dtype)

    def gradient(self, rows: Tensor, pixels: Tensor | None, upstream: Tensor) -> Tensor:
        """The rows times the upstream number, as rows or in a map of zeros at their pixels."""
        if _is_batch(upstream):
            return self._batched(rows, pixels, upstream)
        found = self._empty() if pixels is None else self._map()
        torch.ops.secl_native.small_backward.default(rows, pixels, upstream.detach(), found)
        columnwise = pixels is None and self.stride is not None and 0 < self.stride[0] < self.stride[1]
        return found.t().contiguous().t() if columnwise else found

    def _batched(self, rows: Tensor, pixels: Tensor | None, upstream: Tensor) -> Tensor:
        scaled = torch.where(rows == 0, 0.0, rows * upstream).to(self.dtype)
        if pixels is None:
            return scaled
        images, width, *spatial = self.size
        place = (pixels // math.prod(spatial), pixels % math.prod(spatial))
        found = torch.zeros(images, math.prod(spatial), width, dtype=self.dtype).index_put(place, scaled)
        return found.transpose(1, 2).reshape(self.size)

    def _empty(self) -> Tensor:
        return torch.empty(self.size, dtype=self.dtype)

    def _map(self) -> Tensor:
        if self.stride is None:
            return torch.zeros(self.size, dtype=self.dtype)
        like = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")
        return torch.empty_like(like, device="cpu").zero_()


def _is_batch(upstream: Tensor) -> bool:
    """Whether it stands for many numbers, as under `is_grads_batched`, which no operation of the extension knows."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(upstream)
    return batched or torch._C._are_functorch_transforms_active()


def _differentiable(anchors: Tensor, keys: Tensor | None, find: Find) -> Tensor | None:
    """The loss that `find` finds, with its gradient where one is asked for."""
    if not torch.is_grad_enabled():
        found = find(0)
        return None if found is None else found.value
    try:
        loss: Tensor = SmallContrast.apply(anchors, keys, find)  # type: ignore[no-untyped-call]
    except UnservedError:
        return None
    return loss
