# SPDX-License-Identifier: Apache-2.0
"""Losses of papers that pre-train feature maps without labels: DenseCL, and the local loss of Chaitanya et al."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from secl_ops import spec
from secl_ops.compat.common import paired
from secl_ops.functional import info_nce


def chaitanya_local(
    first: Tensor,  # [B, R, D]
    second: Tensor,  # [B, R, D]
    *,
    neighbours: Tensor | None = None,  # [R, K]
    temperature: float = 0.1,
    backend: str = "auto",
) -> Tensor:
    """Pull each region to the same region of the image's other view, push it from others of both views.

    With cosine s over the temperature and N(r) the other regions of r:

        l(f, f', r) = -log(exp s(f_r, f'_r) / (exp s(f_r, f'_r) + sum over N(r) of exp s(f_r, f_n) + exp s(f_r, f'_n)))

    averaged over regions, images and both orders of the views. Source: Chaitanya et al., NeurIPS 2020,
    arXiv:2006.10511, whose loss L^D takes two images of one partition of their volumes for the views.

    Args:
        first: Rows of R regions of each image, for example from `pool_regions`.
        second: The same of the other view.
        neighbours: Numbers [R, K] of the regions N(r), as the public code lists five of each; -1, and r itself, is
            none; None: all others.
        temperature: Divides the similarity.
        backend: As in `info_nce`.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> from secl_ops.compat.dense import chaitanya_local
        >>> first, second = (torch.randn(2, 16, 12, 12, requires_grad=True) for _ in range(2))
        >>> loss = chaitanya_local(*(secl_ops.pool_regions(view, (3, 3)) for view in (first, second)))
        >>> loss.backward()
    """
    for name, rows in (("first", first), ("second", second)):
        spec.check_tensor(name, rows)
        spec.check_floating(name, rows)
        if rows.ndim != 3 or rows.shape != first.shape:
            raise ValueError(
                f"{name} must have shape [images, regions, width], as the other view; got {tuple(rows.shape)} beside "
                f"{tuple(first.shape)}"
            )
    images, regions = first.shape[:2]
    both = torch.stack([first, second])  # [2, B, R, D]
    region = torch.arange(regions, device=first.device)
    image = torch.arange(images, device=first.device)[:, None]
    if neighbours is None:
        labels, groups = (one.expand(2, images, regions).flatten() for one in (region, image))
        return info_nce(
            both.flatten(0, 2), anchor_labels=labels, anchor_groups=groups, temperature=temperature,
            denominator="all", backend=backend,
        )  # fmt: skip
    _check_neighbours(neighbours, first)
    others = torch.where(neighbours == region[:, None], -1, neighbours.long())
    seen = torch.cat([region[:, None], others], dim=1)  # [R, 1 + K], the region itself first
    count = seen.shape[1]
    group = image * regions + region  # [B, R]
    place = torch.arange(2 * images * regions, device=first.device) * count  # where the keys of a region begin
    return info_nce(
        both.flatten(0, 2), both[:, :, seen].flatten(0, 3),
        anchor_labels=region.repeat(2 * images), key_labels=seen.repeat(2 * images, 1).flatten(),
        anchor_groups=group.flatten().repeat(2), key_groups=group.flatten().repeat_interleave(count).repeat(2),
        exclude=place, temperature=temperature, denominator="all", backend=backend,
    )  # fmt: skip


def _check_neighbours(neighbours: Tensor, first: Tensor) -> None:
    spec.check_tensor("neighbours", neighbours)
    if neighbours.is_floating_point() or neighbours.dtype == torch.bool:
        raise TypeError(f"neighbours must hold numbers of regions; got {neighbours.dtype}; cast it, as with .long()")
    if neighbours.ndim != 2 or neighbours.shape[0] != first.shape[1]:
        raise ValueError(
            f"neighbours must have shape [{first.shape[1]}, K], a row for each region; got {tuple(neighbours.shape)}"
        )
    spec.check_device("neighbours", neighbours, first, "first")


def densecl(
    queries: Tensor,  # [B, D, *spatial]
    keys: Tensor,  # [B, D, *spatial]
    query_features: Tensor,  # [B, E, *spatial]
    key_features: Tensor,  # [B, E, *spatial]
    queue: Tensor,  # [K, D]
    *,
    temperature: float = 0.2,
    backend: str = "auto",
) -> Tensor:
    """Pull each cell of a view to the cell of the other view whose backbone features are most like its own (DenseCL).

    With cosine s over the temperature and p(i) = argmax over the cells j of the same image of cos(x_i, x'_j):

        L_i = -log(exp s(q_i, k_p(i)) / (exp s(q_i, k_p(i)) + sum over the queue of exp s(q_i, n)))

    averaged over all cells. To find p takes S x S numbers an image of S cells (there 49), as published. Source: Wang
    et al., CVPR 2021, arXiv:2011.09157.

    Args:
        queries: Projected map of the view that learns.
        keys: Projected map of the other view, by the momentum encoder; no gradient.
        query_features: Backbone map of the first view; no gradient.
        key_features: Backbone map of the other view; no gradient.
        queue: Rows of other images; no gradient.
        temperature: Divides the similarity.
        backend: As in `info_nce`.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.dense import densecl
        >>> queries, keys = torch.randn(2, 16, 7, 7, requires_grad=True), torch.randn(2, 16, 7, 7)
        >>> densecl(queries, keys, torch.randn(2, 32, 7, 7), torch.randn(2, 32, 7, 7), torch.randn(50, 16)).backward()
    """
    spec.check_map("queries", queries)
    spec.check_like_map("keys", keys, queries)
    if 0 in queries.shape[2:]:
        raise ValueError(f"queries must have a cell; got shape {tuple(queries.shape)}")
    spec.check_map("query_features", query_features)
    spec.check_like_map("key_features", key_features, query_features)
    for name, value in (("keys", keys), ("query_features", query_features), ("key_features", key_features)):
        if value.shape[:1] + value.shape[2:] != queries.shape[:1] + queries.shape[2:]:
            raise ValueError(
                f"{name} must have the batch and the cells of queries, {tuple(queries.shape)}; got {tuple(value.shape)}"
            )
    with torch.no_grad():
        left, right = (normalize(one.flatten(2), dim=1) for one in (query_features, key_features))
        match = torch.bmm(left.transpose(1, 2), right).argmax(dim=2)  # [B, S]
        rows = keys.flatten(2).transpose(1, 2)
        positives = rows.gather(1, match[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)
    anchors = queries.flatten(2).transpose(1, 2).flatten(0, 1)
    spec.check_rows("queue", queue, like=anchors, like_name="queries")
    return paired(anchors, positives, queue.detach(), temperature, backend)
