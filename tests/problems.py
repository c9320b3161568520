# SPDX-License-Identifier: Apache-2.0
"""Calls of the contrast operations for the CUDA kernels, and the check of all that they return against fp64 truth."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops.engines import native, reference
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw

HALVES = [torch.bfloat16, torch.float16]
MODES = [Flag(0), Flag.NEGATIVES, Flag.UNIT, Flag.UNIT | Flag.NEGATIVES]
NAMES = ("loss", "lse", "pull", "count", "forward anchor gradient", "anchor gradient", "key gradient")
ANCHORS, KEYS = Flag.ANCHOR_GRADIENT, Flag.KEY_GRADIENT


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(draw(count, width, seed=seed), dim=1).to(dtype)


def integers(low: int, high: int, size: int, seed: int) -> Tensor:
    return torch.randint(low, high, (size,), generator=torch.Generator().manual_seed(seed))


def mixed(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Classes in any order, some rows ignored."""
    labels = integers(-1, 4, anchors, 1).int()
    return Pairs(labels, labels if shared else integers(-1, 4, keys, 2).int(), None, None, None, 0, keys)


def sorted_classes(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Class by class: tiles without a positive, without a negative, and without need of a mask."""
    labels = (torch.arange(anchors) * 3 // anchors).int()
    key_labels = labels if shared else (torch.arange(keys) * 3 // keys).int()
    return Pairs(labels, key_labels, None, None, None, 0, keys)


def every_rule(anchors: int, keys: int, *, shared: bool = False) -> Pairs:
    """Ignored rows, groups, exclusions, keys that are no positives and keys that are no negatives."""
    pairs = mixed(anchors, keys, shared=shared)
    groups = integers(-1, 1, anchors, 3).int()
    key_groups = groups if shared else integers(-1, 1, keys, 4).int()
    return pairs._replace(
        anchor_groups=groups, key_groups=key_groups, exclude=integers(-1, keys, anchors, 5),
        positive_start=keys // 4, negative_stop=keys - keys // 3,
    )  # fmt: skip


def prototypes(anchors: int, keys: int) -> Pairs:
    """The last four keys are the classes' prototypes, the only positives, and no negatives."""
    pairs = sorted_classes(anchors, keys)
    assert pairs.key_labels is not None
    pairs.key_labels[-4:] = torch.arange(4).int()
    return pairs._replace(positive_start=keys - 4, negative_stop=keys - 4)


class Problem(NamedTuple):
    anchors: Tensor  # [N, D]
    keys: Tensor  # [M, D]
    pairs: Pairs
    scale: float
    flags: Flag
    known_lse: Tensor | None = None  # [N]
    key_inverse: Tensor | None = None  # [M]

    def run(self, backend: Any, *, wide: bool = False) -> list[Tensor]:
        """Every output of the forward pass and, where it has one, of the backward pass."""
        rows = (self.anchors.double(), self.keys.double()) if wide else (self.anchors, self.keys)
        state = backend.contrast_forward(
            *rows, self.pairs, self.scale, self.flags | ANCHORS, self.known_lse, self.key_inverse
        )
        if self.key_inverse is not None or Flag.SCAN in self.flags:  # frozen keys, and sums without a backward pass
            return [*state[:5]]
        factors = (weight_of_anchors(self).to(state.loss.dtype), *push_and_draw(state))
        both = self.flags | ANCHORS | KEYS
        return [*state[:5], *backend.contrast_backward(factors, *rows, self.pairs, state.lse, self.scale, both)]


def forward(problem: Problem) -> reference.ContrastState:
    given = problem.anchors, problem.keys, problem.pairs, problem.scale, problem.flags | ANCHORS
    return native.contrast_forward(*given, problem.known_lse, problem.key_inverse)


def weight_of_anchors(problem: Problem) -> Tensor:
    return draw(problem.anchors.shape[0], seed=6)


def check(problem: Problem, *, cancels: bool = False) -> list[Tensor]:
    """Hold every output against fp64, beside plain torch on the same rows.

    Where gradients cancel, what the value product rounds is far larger than what is left of it.
    """
    found, plain, truth = problem.run(native), problem.run(reference), problem.run(reference, wide=True)
    lengths = [float(rows.float().norm(dim=1).nan_to_num(0.0).max()) if len(rows) else 0.0 for rows in problem[:2]]
    peak = problem.scale * lengths[0] * (lengths[1] if problem.key_inverse is None else 1.0)
    # The weights of the value product take the rows' dtype.
    rounding = torch.finfo(problem.anchors.dtype).eps / torch.finfo(torch.float32).eps
    for name, actual, rough, exact in zip(NAMES, found, plain, truth, strict=False):
        assert torch.equal(actual.isneginf(), exact.isneginf()), name
        # A pair's exponential errs by the rounding of its logit, and may meet an attraction that cancels it.
        weights = weight_of_anchors(problem)
        largest = problem.scale * float(weights.abs().max()) if len(weights) and exact.ndim == 2 else 1.0
        magnitude = max(peak, largest * (rounding if cancels else peak))
        amplification = max(4 * peak, rounding if exact.ndim == 2 else 1.0)
        values = (
            shown.nan_to_num(nan=torch.nan, neginf=0.0) for shown in (actual.float(), exact.double(), rough.float())
        )
        assert_within_budget(name, *values, amplification=amplification, magnitude=magnitude)
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit, NaN included."""
    return all(
        torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
        for a, b in zip(first, second, strict=True)
    )
