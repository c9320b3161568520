# SPDX-License-Identifier: Apache-2.0
"""Pixels of feature maps: drawn by label, gathered as rows, averaged over regions and classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import ops, spec
from secl_ops.autograd import Gather, apply
from secl_ops.spec import SampleSpec


class PixelSample(NamedTuple):
    """Pixels drawn from a batch of label maps; a free place holds -1 in both."""

    # Its public name; it hides tuple.index, which nobody calls on a pair of tensors.
    index: Tensor  # type: ignore[assignment]  # [num_classes * B * per_class] int64 into B * prod(spatial)
    label: Tensor  # [same] int32


def sample_pixels(
    labels: Tensor,  # [B, *spatial] integer
    per_class: int,
    *,
    num_classes: int,
    ignore_index: int = -1,
    eligible: Tensor | None = None,  # [B, *spatial] bool
    scores: Tensor | None = None,  # [B, *spatial] floating
    strategy: str = "uniform",
    seed: int | Tensor,
    backend: str = "auto",
    validate: bool = False,
) -> PixelSample:
    """Draw exactly min(per_class, available) pixels of each class of each image, without replacement.

    "uniform": every eligible pixel is equally likely. "stratified": still equally likely each, but the draws are spread
    over a 4 x 4 (x 4) grid of the image in proportion to what each cell holds (after ARCO, NeurIPS 2023,
    arXiv:2302.01735). "hard": half of the budget goes to the pixels of the lowest `scores`, chance draws the rest
    (ContrastiveSeg, arXiv:2101.11939). Shapes follow from the arguments alone: nothing waits for the device.

    Args:
        labels: Class of every pixel [B, *spatial], with 1 to 3 spatial axes.
        per_class: Pixels of each class and image, at most.
        num_classes: Classes 0 .. num_classes - 1 are drawn.
        ignore_index: This label is never drawn.
        eligible: Only pixels that are True are drawn.
        scores: For "hard": for example the probability of the true class.
        strategy: "uniform", "stratified" or "hard".
        seed: The same seed draws the same pixels. An int, or a one-element int64 tensor on the labels' device.
        backend: "auto", "reference", "native" or "triton".
        validate: Also refuse labels that are neither a class nor ignored, which waits for the device.

    Returns:
        `PixelSample(index, label)`, both [num_classes * B * per_class], ordered by class, then image, so that
        the positives of an anchor lie in one run; -1 where fewer pixels exist.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.
        RuntimeError: A named backend cannot run here.

    Example:
        >>> import torch, secl_ops
        >>> labels = torch.tensor([[[0, 1], [1, 1]]])
        >>> sample = secl_ops.sample_pixels(labels, 2, num_classes=2, seed=0)
        >>> sample.label.tolist(), sample.index[:2].tolist()
        ([0, -1, 1, 1], [0, -1])
    """
    options = SampleSpec(per_class, num_classes, ignore_index, strategy, backend, validate)
    spec.check_label_map("labels", labels)
    spec.check_drawn_from(labels, eligible, scores)
    if validate:
        spec.check_classes("labels", labels, eligible, options)
    return draw_pixels(labels, options, eligible=eligible, scores=scores, seed=seed)


def draw_pixels(
    labels: Tensor,  # [B, *spatial]
    options: SampleSpec,
    *,
    eligible: Tensor | None,  # [B, *spatial]
    scores: Tensor | None,  # [B, *spatial]
    seed: int | Tensor,
    stream: int = 0,
) -> PixelSample:
    """`sample_pixels` of checked maps; the same seed draws apart in another stream."""
    if (options.strategy == "hard") != (scores is not None):
        raise ValueError(
            f'scores go with strategy="hard" and with it alone; got {options.strategy!r}, scores={scores is not None}'
        )
    spec.check_places("B * num_classes * per_class", labels.shape[0] * options.num_classes * options.per_class)
    found = ops.sample(
        labels, eligible, scores, seed_tensor("seed", seed, labels), options.per_class, options.num_classes,
        options.ignore_index, options.strategy, stream, options.backend,
    )  # fmt: skip
    return PixelSample(*found)


def nearest(values: Tensor, size: torch.Size) -> Tensor:
    """The value at the centre of each cell of the new grid [B, *size]; integers stay exact."""
    for axis, new in enumerate(size, start=1):
        old = values.shape[axis]
        if old != new:
            centre = (2 * torch.arange(new, device=values.device) + 1) * old // (2 * new)
            values = values.index_select(axis, centre)
    return values


def check_seed(name: str, seed: int | Tensor, labels: Tensor) -> None:
    """Refuse what is no seed of a draw from these labels."""
    rule = f"{name} must be an int or an int64 tensor of one element"
    if isinstance(seed, Tensor):
        spec.check_tensor(name, seed)
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"{rule}; got {seed.dtype}, {seed.numel()}")
        spec.check_device(name, seed, labels, "labels")
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{rule}; got {type(seed).__name__}")


def seed_tensor(name: str, seed: int | Tensor, labels: Tensor) -> Tensor:
    """A checked seed as the ops take it, int64 [1] on the device of the labels."""
    check_seed(name, seed, labels)
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    return torch.full((1,), (seed + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=labels.device)


def gather_pixels(
    features: Tensor,  # [B, D, *spatial] floating
    index: Tensor,  # [n] int64
    *,
    normalize: bool = False,
    dtype: torch.dtype | None = None,
    unique: bool = False,
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Read the rows of a feature map at the drawn pixels, without a copy of the map.

    row_r = features[b, :, pixel] with index_r = b * prod(spatial) + pixel, over its norm under `normalize`;
    index -1 gives a zero row without gradient.

    Args:
        features: Map [B, D, *spatial] in any memory layout, with 1 to 3 spatial axes.
        index: Numbers [n] from `sample_pixels`.
        normalize: Divide each row by its L2 norm, in the same pass; a zero row stays zero.
        dtype: Of the rows; None: that of the map. The norm is that of the map's own numbers.
        unique: A promise that no pixel stands twice in the index, as after `sample_pixels`: the gradient then needs no
            sort. If it is broken, that pixel's gradient is undefined.
        backend: "auto", "reference", "native" or "triton".
        validate: Also check the range of the index and the promise, which waits for the device.

    Returns:
        Rows [n, D]. The gradient comes back in the map's own layout; a pixel that stands twice in the index gets the
        sum, in a fixed order.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.
        RuntimeError: A named backend cannot run here.

    Example:
        >>> import torch, secl_ops
        >>> features = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> secl_ops.gather_pixels(features, torch.tensor([3, -1])).tolist()
        [[3.0, 7.0], [0.0, 0.0]]
        >>> secl_ops.gather_pixels(features, torch.tensor([0]), normalize=True).tolist()
        [[0.0, 1.0]]
    """
    spec.check_map("features", features)
    spec.check_choice("backend", backend, spec.BACKENDS)
    spec.check_bool("validate", validate)
    spec.check_gather(normalize, dtype, unique)
    spec.check_index(index, features, unique=unique, validate=validate)
    rows: Tensor = apply(
        Gather, features, index, normalize, features.dtype if dtype is None else dtype, unique, backend
    )
    return rows


def pool_regions(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a feature map over the cells of a grid.

    row_{b, r} = mean of features[b, :, pixel] over the pixels of cell r; the cell of coordinate x is floor(x g / size).

    Args:
        features: Map [B, D, *spatial].
        grid: Cells along each spatial axis, none more than the map has pixels there.

    Returns:
        Rows [B, R, D] with R = prod(grid), in the dtype of the map; the last axis of the grid runs fastest.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> secl_ops.pool_regions(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), (1, 2)).tolist()
        [[[3.0], [5.0]]]
    """
    spec.check_map("features", features)
    spec.check_grid(grid, features)
    pooled = features if features.dtype == torch.float64 else features.float()
    for axis, cells in enumerate(grid, start=2):
        pooled = torch.stack(
            [part.mean(dim=axis) for part in torch.split(pooled, _cell_sizes(axis, cells, features), axis)], axis
        )
    return pooled.flatten(2).transpose(1, 2).to(features.dtype)


def _cell_sizes(axis: int, cells: int, features: Tensor) -> list[int]:
    """Pixels of each cell along an axis; adaptive pooling has no deterministic gradient, means of parts have."""
    size = features.shape[axis]
    starts = [-(-cell * size // cells) for cell in range(cells + 1)]
    return [stop - start for start, stop in itertools.pairwise(starts)]


def class_means(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Average the rows of each class, for prototypes.

    mean_c = sum of rows with label c / count_c; a class without a row gives zeros, one with a NaN or infinity NaN.

    Args:
        rows: Rows [n, D].
        labels: Integers [n]; anything outside 0 .. num_classes - 1 is left out.
        num_classes: C.

    Returns:
        (means [C, D] in the dtype of the rows, count [C] int64).

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> means, count = secl_ops.class_means(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([1, 1, -1]), 2)
        >>> means.tolist(), count.tolist()
        ([[0.0], [2.0]], [0, 2])
    """
    spec.check_rows("rows", rows)
    spec.check_integers("labels", labels, rows.shape[0], rows, "rows")
    spec.check_positive_int("num_classes", num_classes)
    spec.check_places("num_classes times the number of rows", num_classes * max(1, rows.shape[0]))
    wide = rows if rows.dtype == torch.float64 else rows.float()
    member = labels.long()[None, :] == torch.arange(num_classes, device=rows.device)[:, None]  # [C, n]
    count = member.sum(dim=1)
    # Products with 0 would carry a NaN into every class: only finite numbers are multiplied.
    finite, member = wide.isfinite(), member.to(wide.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        means = (member @ wide.masked_fill(finite.logical_not(), 0.0)) / count.clamp(min=1)[:, None].to(wide.dtype)
        spoiled = member @ finite.logical_not().to(wide.dtype) > 0
    return means.masked_fill(spoiled, torch.nan).to(rows.dtype), count
