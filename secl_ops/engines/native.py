# SPDX-License-Identifier: Apache-2.0
"""The compiled backend: the operations of `reference` over the extension, in O((N + M) D) memory: C++ and CUDA.

Nothing here may wait for a GPU: no value of a tensor is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secl_ops import library
from secl_ops.engines import ordering
from secl_ops.engines.reference import ContrastState, Origin, Reduction, SigmoidState
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import REDUCTIONS, STRATEGIES, WEIGHTED_KEYS, Flag, Pairs

_CUDA_LABELS = (torch.int64, torch.int32, torch.uint8)  # what the CUDA kernels read as it is


_KERNELS = {
    "info_nce": ("unit_rows", "row_inverse", "unit_rows_backward", "contrast_forward", "contrast_backward", "reduce"),
    WEIGHTED_KEYS: ("contrast_forward", "contrast_backward", "reduce"),
    "sigmoid_contrast": ("unit_rows", "row_inverse", "unit_rows_backward", "sigmoid_forward", "sigmoid_backward"),
    "reduce": ("reduce",),  # of losses, which are fp32 whatever the rows are
    "gather_pixels": ("gather", "gather_backward"),
    "sample_pixels": ("sample",),
}
_MULTIPLIED = ("info_nce", WEIGHTED_KEYS, "sigmoid_contrast")  # on tensor cores


def objections(device: str, dtype: torch.dtype, operation: str) -> list[str]:
    """Reasons against this backend: not built, no code for this GPU, float64, float32 products on a GPU."""
    if library.ABSENCE:
        reasons = [library.ABSENCE]
    elif device == "cuda":
        reasons = library.cuda_objections(_KERNELS[operation])
    else:
        reasons = [] if device == "cpu" else [f"there are no kernels for {device}"]
    if dtype == torch.float64:
        reasons.append("fp64 is served by the reference backend")
    if device == "cuda" and operation in _MULTIPLIED and dtype == torch.float32:
        reasons.append("its CUDA kernels multiply fp16 and bf16 rows, as under autocast")
    return reasons


def _operations() -> Any:
    return torch.ops.secl_native


def serves_cuda(tensor: Tensor) -> bool:
    """Whether the CUDA kernels serve this tensor."""
    return tensor.is_cuda


def _dense(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _dense_pairs(pairs: Pairs) -> list[Tensor | int | None]:
    return [_dense(value) if isinstance(value, Tensor) else value for value in pairs]


def _dense_factors(factors: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    """Factor [n] and upstream [n]; the kernels read the latter at any stride, as one number for all rows has."""
    return (None, None) if factors is None else (factors[0].float().contiguous(), factors[1].float())


def contrast_forward(
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    scale: float,
    flags: Flag,
    known_lse: Tensor | None = None,
    key_inverse: Tensor | None = None,
    met: Tensor | None = None,
) -> ContrastState:
    """Loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the reference for the other arguments."""
    order = ordering.by_class(pairs, flags) if serves_cuda(anchors) and ordering.pays(anchors, keys, flags) else None
    if order is not None:
        anchors, keys, pairs = anchors[order.anchors], keys[order.keys], order.pairs(pairs)
        known_lse, key_inverse = ordering.taken(known_lse, order.anchors), ordering.taken(key_inverse, order.keys)
    found = _operations().contrast_forward(
        anchors.contiguous(), keys.contiguous(), *_dense_pairs(pairs), _dense(key_inverse), _dense(known_lse), scale,
        int(flags),
    )  # fmt: skip
    if order is not None:
        found = (ordering.restored(values, order.anchors) for values in found)
    return ContrastState(*found)


def contrast_backward(
    factors: tuple[Tensor, Tensor, Tensor],
    anchors: Tensor,
    keys: Tensor,
    pairs: Pairs,
    lse: Tensor,
    scale: float,
    flags: Flag,
    met: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i grad_loss_i L_i: of the anchors [N, D] and of the keys [M, D], [0, D] where not asked for.

    The factors are grad_loss, push and draw, [N] each; an anchor whose push and draw are 0 does not count.
    """
    if serves_cuda(anchors):
        return _cuda_backward(factors, anchors, keys, pairs, lse, scale, flags)
    counted = (factors[1] != 0) | (factors[2] != 0)
    if Flag.SELF not in flags:  # a row that the kernels do not read can carry no NaN into the keys
        pairs = pairs._replace(anchor_labels=torch.where(counted, pairs.anchor_labels, -1))
    grad_anchors, grad_keys = _operations().contrast_backward(
        *(value.float().contiguous() for value in factors), anchors.contiguous(), keys.contiguous(),
        *_dense_pairs(pairs), lse.contiguous(), scale, int(flags),
    )  # fmt: skip
    if Flag.SELF in flags:
        grad_anchors.masked_fill_(~counted.any(), 0.0)
    return grad_anchors, grad_keys


def _cuda_backward(
    factors: tuple[Tensor, Tensor, Tensor], anchors: Tensor, keys: Tensor, pairs: Pairs, lse: Tensor,
    scale: float, flags: Flag,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernels see for themselves which anchors count, and read grad_loss at any stride."""
    grad_loss, push, draw = factors
    order = ordering.by_class(pairs, flags) if ordering.pays(anchors, keys, flags) else None
    if order is not None:
        grad_loss, push, draw, lse, anchors = (value[order.anchors] for value in (grad_loss, push, draw, lse, anchors))
        keys, pairs = keys[order.keys], order.pairs(pairs)
    grad_anchors, grad_keys = _operations().contrast_backward(
        grad_loss.float(), push.float().contiguous(), draw.float().contiguous(), anchors.contiguous(),
        keys.contiguous(), *_dense_pairs(pairs), lse.contiguous(), scale, int(flags),
    )  # fmt: skip
    if order is not None:
        grad_anchors = ordering.restored(grad_anchors, order.anchors)
        grad_keys = ordering.restored(grad_keys, order.keys)
    return grad_anchors, grad_keys


def _logit(logit: Logit, like: Tensor) -> tuple[float, float, Tensor | None, Tensor | None]:
    """Scale and bias as the kernels take them: read on a CPU, left on a GPU where they lie."""
    if not serves_cuda(like):
        return *logit.numbers(), None, None
    scale, bias, *learned = logit.arguments()
    learned_scale, learned_bias = (None if each is None else each.detach().reshape(1).float() for each in learned)
    return scale, bias, learned_scale, learned_bias


def sigmoid_forward(
    anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag, key_inverse: Tensor | None = None
) -> SigmoidState:
    """Sigmoid loss of every anchor [N] from anchors [N, D] and keys [M, D]; see the reference."""
    order = ordering.by_class(pairs, flags) if serves_cuda(anchors) and ordering.pays(anchors, keys, flags) else None
    if order is not None:
        anchors, keys, pairs = anchors[order.anchors], keys[order.keys], order.pairs(pairs)
        key_inverse = ordering.taken(key_inverse, order.keys)
    found = _operations().sigmoid_forward(
        anchors.contiguous(), keys.contiguous(), *_dense_pairs(pairs)[:7], _dense(key_inverse),
        *_logit(logit, anchors), int(flags),
    )  # fmt: skip
    if order is not None:
        found = (ordering.restored(values, order.anchors) for values in found)
    return SigmoidState(*found)


def sigmoid_backward(weight: Tensor, anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag) -> Tensor:
    """Gradient of the keys [M, D] over the scale from each anchor's weight [N].

    An anchor of weight 0 does not count: nothing of its row reaches a key, but under SELF, where it is a key as well.
    """
    shared, on_cuda, given = Flag.SELF in flags, serves_cuda(anchors), weight
    if on_cuda and not shared:  # an anchor that does not count is no anchor: no NaN of its row reaches a key
        pairs = pairs._replace(anchor_labels=torch.where(weight == 0, -1, pairs.anchor_labels))
    order = ordering.by_class(pairs, flags) if on_cuda and ordering.pays(anchors, keys, flags) else None
    if order is not None:
        weight, anchors, keys = weight[order.anchors], anchors[order.anchors], keys[order.keys]
        pairs = order.pairs(pairs)
    found: Tensor = _operations().sigmoid_backward(
        weight.float().contiguous(), anchors.contiguous(), keys.contiguous(), *_dense_pairs(pairs)[:7],
        *_logit(logit, anchors), int(flags),
    )  # fmt: skip
    if order is not None:
        found = ordering.restored(found, order.keys)
    return found.masked_fill_(~(given != 0).any(), 0.0) if shared else found


def unit_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, D] over their norms, and 1 / norm [n]; a zero row and an ignored row give zeros."""
    found: tuple[Tensor, Tensor] = _operations().unit_rows(rows.contiguous(), labels.contiguous())
    return found


def row_inverse(rows: Tensor, labels: Tensor) -> Tensor:
    """1 / norm [n] of rows [n, D]; 0 for a zero row and an ignored row."""
    found: Tensor = _operations().row_inverse(rows.contiguous(), labels.contiguous())
    return found


def unit_rows_backward(grad: Tensor, factors: tuple[Tensor, Tensor] | None, unit: Tensor, inverse: Tensor) -> Tensor:
    """(g - u <u, g>) / norm for each row g of the scaled gradient, in the dtype of `unit`; 0 where the gradient is."""
    found: Tensor = _operations().unit_rows_backward(
        grad.float().contiguous(), *_dense_factors(factors), unit.contiguous(), inverse.contiguous()
    )
    return found


def gather(features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [n, D] of a map [B, D, *spatial] at index [n] into B * prod(spatial), and 1 / norm where normalised."""
    rows = features.new_empty((index.shape[0], features.shape[1]), dtype=dtype)
    inverse = features.new_empty(index.shape[0] if normalize else 0, dtype=torch.float32)
    if features.numel() == 0:
        return rows.zero_(), inverse.zero_()
    _operations().gather(features, index.contiguous(), rows, inverse if normalize else None)
    return rows, inverse


def gather_backward(
    grad: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    index: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    unique: bool,
    like: Origin,
) -> Tensor:
    """Gradient of the map from that of its rows, through their norm where there is one; a pixel's draws are summed."""
    result = grad.new_empty_strided(like.size, like.stride, dtype=like.dtype).zero_()
    unit, inverse = (None, None) if norm is None else norm
    if result.numel():
        _operations().gather_backward(
            grad.contiguous(), *_dense_factors(factors), index.contiguous(), _dense(unit), _dense(inverse), unique,
            result,
        )  # fmt: skip
    return result


def reduce(loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str) -> Reduction:
    """Value of the weighted losses [N] under a reduction, and what it makes of each anchor."""
    given = None if weights is None else weights.float().contiguous()
    found = _operations().reduce(
        loss.contiguous(), pull.contiguous(), count.contiguous(), given, REDUCTIONS.index(reduction)
    )
    return Reduction(*found)


def sample(
    labels: Tensor,
    eligible: Tensor | None,
    scores: Tensor | None,
    seed: Tensor,
    per_class: int,
    num_classes: int,
    ignore_index: int,
    strategy: str,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Index and label [num_classes * B * per_class] of pixels drawn from labels [B, *spatial]; padding is -1."""
    on_cuda = serves_cuda(labels)
    wide = labels if on_cuda and labels.dtype in _CUDA_LABELS else labels.long()
    ranked = None if scores is None else scores.to(torch.float32 if on_cuda else torch.float64).contiguous()
    found: tuple[Tensor, Tensor] = _operations().sample(
        wide.contiguous(), _dense(eligible), ranked, seed.reshape(1), per_class, num_classes, ignore_index,
        STRATEGIES.index(strategy), stream,
    )  # fmt: skip
    return found
