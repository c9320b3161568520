# SPDX-License-Identifier: Apache-2.0
"""How a loss of `secl_ops.compat` is held against the one that it stands for, in value and gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.budget import assert_within_budget
from tests.cases import rows

Loss = Callable[..., Tensor]  # of the tensors that learn


def refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    """Hold a call against its refusal, which holds this text."""
    with pytest.raises(error, match=re.escape(message)):
        call()


def nonzero_rows(n: int, d: int, seed: int) -> Tensor:
    """Random rows [n, d] of which none is zero: the gradient of one is 0 here and divided by 1e-12 elsewhere."""
    found = rows(n, d, seed)
    return torch.where((found == 0).all(dim=1, keepdim=True), 1.0, found)


def outputs(loss: Loss, leaves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The loss and the gradient of each leaf, computed in this dtype."""
    learning = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    value = loss(*learning)
    gradients = torch.autograd.grad(value.sum(), learning, allow_unused=True, materialize_grads=True)
    return [value.detach(), *gradients]


def hold(
    ours: Loss,
    original: Loss,
    leaves: Sequence[Tensor],
    temperature: float,
    *,
    terms: int = 1,
    pull: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Hold ours in `dtype` against the original in fp64, with what the original errs in that dtype as the yardstick.

    Args:
        ours: Of the leaves.
        original: The same of theirs.
        leaves: What learns.
        temperature: Divides the similarities.
        terms: How many losses are added up without a mean.
        pull: Of the gradient's terms the largest, where they may cancel to nothing.
        dtype: Of the rows that ours gets.
    """
    rounded = [leaf.to(dtype) for leaf in leaves]  # the same values for all three
    found = outputs(ours, rounded, dtype)
    truth, plain = (outputs(original, rounded, kind) for kind in (torch.float64, dtype))
    for number, (actual, true, near) in enumerate(zip(found, truth, plain, strict=True)):
        assert_within_budget(
            f"output {number}", actual, true, near, amplification=4 / temperature,
            magnitude=pull if number else terms / temperature,
        )  # fmt: skip
    return found
