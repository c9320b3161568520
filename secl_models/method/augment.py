# SPDX-License-Identifier: Apache-2.0
"""Random views of a batch on its device: one geometry for image and label, intensity for the strong view."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from secl_models.data.batch import Batch
from secl_models.data.labels import IGNORED
from secl_models.data.sampling import WHOLE, Share
from secl_models.options.schema import AugmentConfig

_SMALLEST_RANGE = 1e-6  # of intensities: below it a patch counts as constant, and gamma must not divide by zero


@dataclass(frozen=True)
class Views:
    """The weak and the strong view of one batch, pixel for pixel the same place, and the label of both."""

    weak: Tensor  # [B, C, *patch] float32, geometry only
    strong: Tensor  # [B, C, *patch] float32, the same geometry with changed intensities
    label: Tensor  # [B, *patch] int64, -1 where nothing is known


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator, share: Share = WHOLE) -> Views:
    """Move each sample by a random affine map, image and label alike, and change the intensities of a copy.

    Outside the patch the image repeats its border and the label is -1.

    Args:
        batch: Images `[B, C, *patch]` and labels `[B, *patch]`, two or three spatial axes.
        config: Ranges of every change; zeros everywhere and no flips leave a batch as it is.
        generator: Source of all randomness; on the device of the batch, so that nothing waits for the host.
        share: The part of a joined batch that this one is; every part draws for all, so that its changes are
            those of the joined batch.

    Returns:
        The two views and the moved label, new tensors on the device of the batch.

    Example:
        >>> image, label = torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
        >>> batch = Batch(image, label, position=torch.zeros(2))
        >>> augment(batch, AugmentConfig(), torch.Generator().manual_seed(0)).strong.shape
        torch.Size([2, 1, 8, 8])
    """
    if batch.image.shape[0] == 0:
        return Views(batch.image, batch.image, batch.label)
    weak, label = _move(batch, config, generator, share)
    return Views(weak, _recolour(weak, config, generator, share), label)


def _move(batch: Batch, config: AugmentConfig, generator: torch.Generator, share: Share) -> tuple[Tensor, Tensor]:
    """One affine map per sample on image `[B, C, *patch]` (linear) and label `[B, *patch]` (nearest)."""
    image, joined = batch.image, batch.image.shape[0] * share.count
    maps = random_affine(joined, tuple(image.shape[2:]), config, generator)[share.of(joined)].to(image.device)
    grid = affine_grid(maps, list(image.shape), align_corners=False)  # [B, *patch, dims]
    moved = grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Zero is what grid_sample writes outside the patch: shifting the labels makes it mean "ignored".
    shifted = (batch.label - IGNORED).to(grid.dtype).unsqueeze(1)
    label = grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, label.squeeze(1).round().to(torch.int64) + IGNORED


def random_affine(count: int, patch: tuple[int, ...], config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw the maps from output to input coordinates that `affine_grid` takes.

    Flips, then a rotation in the plane of the first two axes, then scale and shift; rotation acts on voxels,
    so a patch that is not square is not sheared.

    Args:
        count: Number of samples B.
        patch: Spatial shape in voxels, 2 or 3 axes.
        config: Ranges and allowed flips.
        generator: Source of randomness.

    Returns:
        Maps `[B, dims, dims + 1]` on the generator's device, axes as `affine_grid` orders them (last first).
    """
    dims, device = len(patch), generator.device
    angle = _uniform((count,), math.radians(config.rotate), generator)
    zoom = 1 + _uniform((count,), config.scale, generator)
    cosine, sine = angle.cos(), angle.sin()
    turned = {(0, 0): cosine, (0, 1): -sine, (1, 0): sine, (1, 1): cosine, (2, 2): torch.ones_like(angle)}
    sides = {axis: 1 - 2 * torch.randint(0, 2, (count,), generator=generator, device=device) for axis in config.flip}
    shift = 2 * _uniform((count, dims), config.shift, generator)  # affine_grid spans -1 to 1
    nothing, entries = torch.zeros_like(angle), []
    for row in reversed(range(dims)):
        for column in reversed(range(dims)):
            entry = turned.get((row, column), nothing)
            entry = entry * sides[column] if column in sides else entry
            # Dividing by the zoom enlarges: the map says where an output voxel is read.
            entries.append(entry / zoom * (patch[column] / patch[row]))
        entries.append(shift[:, row])
    return torch.stack(entries, 1).view(count, dims, dims + 1)


def _recolour(image: Tensor, config: AugmentConfig, generator: torch.Generator, share: Share) -> Tensor:
    """Random gamma, contrast, brightness and noise per sample and channel of `[B, C, *patch]`."""
    joined = image.shape[0] * share.count
    own = share.of(joined)
    per_channel = (joined, image.shape[1], *(1 for _ in image.shape[2:]))
    space = tuple(range(2, image.dim()))

    def draw(reach: float) -> Tensor:
        return _uniform(per_channel, reach, generator)[own].to(image.device)

    low, high = image.amin(space, keepdim=True), image.amax(space, keepdim=True)
    reach = (high - low).clamp_min(_SMALLEST_RANGE)
    strong = ((image - low) / reach).clamp(0, 1) ** torch.exp2(draw(config.gamma)) * reach + low
    mean = strong.mean(space, keepdim=True)
    strong = (strong - mean) * (1 + draw(config.contrast)) + mean
    spread = image.std(space, keepdim=True, correction=0)
    strong = strong + draw(config.brightness) * spread
    noise = torch.randn((joined, *image.shape[1:]), generator=generator, device=generator.device)[own].to(image.device)
    return strong + noise * draw(config.noise).abs() * spread


def _uniform(shape: tuple[int, ...], reach: float, generator: torch.Generator) -> Tensor:
    """Numbers in `[-reach, reach)` on the generator's device."""
    return (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * reach
