# SPDX-License-Identifier: Apache-2.0
"""What several families share: labels of which any integer is a class, counts of pairs, the loss of two views."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secl_ops import spec
from secl_ops.functional import info_nce


def raised(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [n] and [m] of any size as small ones from 0 up, of which `info_nce` ignores none; whether they differ.

    Example:
        >>> import torch
        >>> [each.tolist() for each in raised(torch.tensor([-1, 4]), torch.tensor([2**40]))]
        [[0, 1], [2], True]
    """
    both = torch.cat([labels.long(), others.long()])
    if both.numel() == 0:
        return both, both, torch.zeros((), dtype=torch.bool, device=both.device)
    ordered = both.sort().values
    place = torch.searchsorted(ordered, both)  # where its class begins
    return place[: len(labels)], place[len(labels) :], ordered[0] != ordered[-1]


def alike(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the others [m] have the label of each of [n], and the sum of the places where these stand.

    Example:
        >>> import torch
        >>> [each.tolist() for each in alike(torch.tensor([2, 5]), torch.tensor([5, 1, 5]))]
        [[0, 2], [0, 2]]
    """
    ordered, place = others.sort(stable=True)
    first, last = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
    total = torch.nn.functional.pad(place.cumsum(0), (1, 0))
    return last - first, total[last] - total[first]


def two_views(
    first: Tensor,  # [B, D]
    second: Tensor,  # [B, D]
    names: tuple[str, str],
    temperature: float | Tensor,
    backend: str,
    labels: Tensor | None = None,  # [B], from 0 up
) -> Tensor:
    """SupCon over two views whose rows of one number, or of one label, are positives; the first is checked."""
    spec.check_rows(names[1], second, like=first, like_name=names[0])
    if second.shape != first.shape:
        raise ValueError(
            f"{names[1]} must have the shape of {names[0]}, {tuple(first.shape)}; got {tuple(second.shape)}"
        )
    one = torch.arange(first.shape[0], device=first.device) if labels is None else labels
    return info_nce(
        torch.cat([first, second]), anchor_labels=one.repeat(2), temperature=temperature, denominator="all",
        backend=backend,
    )  # fmt: skip


def paired(
    anchors: Tensor,  # [N, D]
    positives: Tensor,  # [N, D]
    others: Tensor,  # [M, D]
    temperature: float | Tensor,
    backend: str,
) -> Tensor:
    """InfoNCE of each anchor with the positive of its number against the same other rows."""
    own = torch.arange(anchors.shape[0], device=anchors.device)
    return info_nce(
        anchors, others.to(anchors.dtype), anchor_labels=own,
        key_labels=torch.full((others.shape[0],), anchors.shape[0], device=anchors.device), positives=positives,
        positive_labels=own, temperature=temperature, backend=backend,
    )  # fmt: skip


def check_base(base_temperature: object) -> None:
    """Refuse a base temperature that is no number above 0."""
    if isinstance(base_temperature, bool) or not isinstance(base_temperature, (int, float)):
        raise TypeError(f"base_temperature must be a float; got {type(base_temperature).__name__}")
    if not 0 < base_temperature < math.inf:
        raise ValueError(f"base_temperature must be finite and above 0; got {base_temperature}")
