# SPDX-License-Identifier: Apache-2.0
"""Exact merging over parts of the keys: of log-sum-exps, and of the positives' losses at a known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import ops
from secl_ops.spec import ContrastSpec, Pairs


class Call(NamedTuple):
    """The anchors against one part of the keys."""

    rows: Tensor
    keys: Tensor
    pairs: Pairs
    factor: Tensor | None
    options: ContrastSpec
    ordered: bool
    met: Tensor | None = None  # what an earlier pass over the part found of its order

    def run(self, known_lse: Tensor | None, gradient: bool) -> tuple[Tensor, ...]:
        """The log-sum-exp alone, or the positives at a known one; with its gradient, or without."""
        return self._run(known_lse, self.options.flags(anchors=gradient, scan=known_lse is None, ordered=self.ordered))

    def run_whole(self, gradient: bool) -> tuple[Tensor, ...]:
        """Log-sum-exp and positives in one pass, where this part is all that there is."""
        return self._run(None, self.options.flags(anchors=gradient, ordered=self.ordered))

    def _run(self, known_lse: Tensor | None, flags: int) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ops.contrast(
            self.rows, self.keys, *self.pairs, self.factor, known_lse, self.options.scale, flags,
            self.options.backend, self.met,
        )  # fmt: skip
        return found

    def key_gradient(self, push: Tensor, draw: Tensor, lse: Tensor) -> Tensor:
        """The gradient of the keys [M, D], from the factors of each anchor [N] with its upstream number in them."""
        one = torch.ones((), dtype=lse.dtype, device=lse.device).expand(lse.shape)
        flags = self.options.flags(keys=True, ordered=self.ordered)
        _, found = ops.contrast_backward(
            one, push, draw, self.rows, self.keys, *self.pairs, lse, self.options.scale, flags, self.options.backend
        )
        gradient: Tensor = found
        return gradient

    @property
    def attracts(self) -> bool:
        """Whether a key of the part may be a positive one."""
        return self.pairs.positive_start < self.keys.shape[0]

    @property
    def repels(self) -> bool:
        """Whether a key of the part may be in the denominator."""
        return self.pairs.negative_stop > 0 or (self.attracts and self.options.denominator == "all")


class Scanned(NamedTuple):
    """What the first pass finds."""

    lse: Tensor  # [N]
    mean: Tensor | None  # [N, D], its gradient where that is wanted


class Near(NamedTuple):
    """What the second pass finds of the positives."""

    loss: Tensor  # [N]
    pull: Tensor  # [N]
    # The name hides tuple.count, which nobody calls on tensors.
    count: Tensor  # type: ignore[assignment]  # [N]
    gradient: Tensor | None  # [N, D] at a constant log-sum-exp, where that is wanted


def scan(calls: Sequence[Call], wanted: bool) -> tuple[list[Call], Scanned]:
    """The calls with what they met; the log-sum-exp over all parts and, where wanted, its gradient."""
    ran = [call.run(None, wanted) if call.repels else None for call in calls]
    again = [call if each is None else call._replace(met=each[5]) for call, each in zip(calls, ran, strict=True)]
    found = [each for each in ran if each is not None]
    if not found:
        rows, wide = calls[0].rows, calls[0].rows if calls[0].rows.dtype == torch.float64 else calls[0].rows.float()
        empty = wide.new_full((rows.shape[0],), -torch.inf)
        return again, Scanned(empty, torch.zeros_like(wide) if wanted else None)
    return again, merged_scans([Scanned(each[1], each[4] if wanted else None) for each in found])


def merged_scans(parts: Sequence[Scanned]) -> Scanned:
    """What one pass over all of these would have found."""
    lse = torch.logsumexp(torch.stack([part.lse for part in parts]), dim=0)
    means = [
        weighted(part.mean, torch.where(part.lse == -torch.inf, 0.0, torch.exp(part.lse - lse)))
        for part in parts
        if part.mean is not None
    ]
    return Scanned(lse, _total(means) if means else None)


def near(calls: Sequence[Call], lse: Tensor, wanted: bool) -> Near:
    """Loss, pull and count over all positives and, where wanted, the gradient at a constant lse."""
    found = [call.run(lse, wanted) for call in calls if call.attracts]
    if not found:
        nothing = torch.zeros_like(lse)
        gradient = torch.zeros_like(calls[0].rows, dtype=lse.dtype) if wanted else None
        return Near(nothing, nothing.clone(), nothing.to(torch.int32), gradient)
    return merged_nears([Near(each[0], each[2], each[3], each[4] if wanted else None) for each in found])


def merged_nears(parts: Sequence[Near]) -> Near:
    """What one pass over all of these would have found."""
    count = _total([part.count for part in parts])
    divisor = torch.where(count > 0, count, 1).to(parts[0].loss.dtype)
    shares = [part.count / divisor for part in parts]
    loss, pull = (
        _total([torch.where(share > 0, share * value, 0.0) for share, value in zip(shares, values, strict=True)])
        for values in ([part.loss for part in parts], [part.pull for part in parts])
    )
    gradients = [
        weighted(part.gradient, share) for share, part in zip(shares, parts, strict=True) if part.gradient is not None
    ]
    return Near(loss, pull, count, _total(gradients) if gradients else None)


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def weighted(rows: Tensor, factor: Tensor) -> Tensor:
    """Each row times its factor; a factor of 0 leaves nothing of a NaN."""
    column = factor.unsqueeze(1)
    return torch.where(column == 0, 0.0, rows * column)


def chained(near: Tensor, mean: Tensor | None, grad_loss: Tensor, push: Tensor) -> Tensor:
    """Gradient of the anchors [N, D] from those of both passes; None: the log-sum-exp gives none of its own."""
    found = weighted(near, grad_loss)
    return found if mean is None else found + weighted(mean, push)


def of_counted(number: Tensor, upstream: Tensor) -> Tensor:
    """Their product; an anchor that does not count takes nothing of an infinite upstream."""
    return torch.where(number == 0, 0.0, number * upstream)
