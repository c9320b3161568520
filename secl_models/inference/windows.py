# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of a volume on its own grid, a slab at a time: what validation, evaluation and prediction share.

Only a slab of probabilities exists at once, so that memory does not grow with classes times voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn
from torch.nn.functional import interpolate

from secl_models.data.labels import class_type
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.options.schema import RunConfig

WINDOWS = {2: 16, 3: 2}  # windows per forward pass; more gains nothing on a CPU
OVERLAP = {2: 0.5, 3: 0.25}
SLAB_BYTES = 1 << 26  # of probabilities of 2-D slices that are segmented together, unless one slice needs more


@dataclass(frozen=True)
class Slab:
    """Probabilities of some planes of a volume, in the network's orientation."""

    where: tuple[slice, ...]  # index into the turned volume's spatial axes
    probabilities: Tensor  # [K + 1, *slab] float32 on the CPU


def predict_volume(
    network: nn.Module,
    preprocess: Preprocess,
    config: RunConfig,
    volume: Volume,
    flips: Sequence[int] = (),
) -> Tensor:
    """Class probabilities of a whole volume, windows blended with Gaussian weights.

    Args:
        network: In evaluation mode, on any device.
        preprocess: The one of the training run.
        config: The one of the training run: `data.dims` and `data.patch` decide the windows.
        volume: Image [C, *spatial], with or without a label.
        flips: As for `predict_slabs`.

    Returns:
        Probabilities [K + 1, *spatial], float32 on the CPU, on the input's own grid; `argmax(0)` is the
        segmentation.
    """
    whole: npt.NDArray[np.float32] | None = None
    for slab in predict_slabs(network, preprocess, config, volume, flips):
        if whole is None:
            whole = np.empty((len(slab.probabilities), *volume.image.shape[1:]), np.float32)
        put(whole, slab.probabilities.numpy(), slab.where, preprocess, volume)
    assert whole is not None, "a volume has at least one plane"
    return torch.from_numpy(whole)


def segment_volume(
    network: nn.Module,
    preprocess: Preprocess,
    config: RunConfig,
    volume: Volume,
    flips: Sequence[int] = (),
    observe: Callable[[Slab], None] | None = None,
) -> npt.NDArray[np.integer[Any]]:
    """The most probable class of every voxel; never holds more probabilities than those of one slab.

    Args:
        network: In evaluation mode, on any device.
        preprocess: The one of the training run.
        config: The one of the training run.
        volume: Image [C, *spatial], with or without a label.
        flips: As for `predict_slabs`.
        observe: Called with every slab, to keep its probabilities elsewhere.

    Returns:
        Class index [*spatial] on the input's own grid, uint8 or int16 as the classes need.
    """
    label: npt.NDArray[np.integer[Any]] | None = None
    for slab in predict_slabs(network, preprocess, config, volume, flips):
        if label is None:
            label = np.empty(volume.image.shape[1:], class_type(len(slab.probabilities) - 1))
        put(label, slab.probabilities.argmax(0).numpy(), slab.where, preprocess, volume)
        if observe is not None:
            observe(slab)
    assert label is not None, "a volume has at least one plane"
    return label


def put(
    target: npt.NDArray[Any],
    values: npt.NDArray[Any],
    where: tuple[slice, ...],
    preprocess: Preprocess,
    volume: Volume,
) -> None:
    """Write a slab into an array in stored voxel order.

    Args:
        target: [..., *spatial], on the volume's grid as stored.
        values: [..., *slab].
        where: The slab's place.
        preprocess: Knows the network's orientation.
        volume: Knows its own.
    """
    spatial = volume.image.ndim - 1
    view = preprocess.turn(volume).apply(target)
    place: Any = (..., *where[:spatial])
    view[place] = values.reshape(values.shape[: values.ndim - (3 - spatial)])


@torch.no_grad()
def predict_slabs(
    network: nn.Module,
    preprocess: Preprocess,
    config: RunConfig,
    volume: Volume,
    flips: Sequence[int] = (),
) -> Iterator[Slab]:
    """Class probabilities of one volume, as slabs that follow each other along one axis.

    2-D networks: as many slices at once as `SLAB_BYTES` allow. 3-D networks: windows are blended along the axis on
    which a slab of them is smallest, and planes leave as soon as no window reaches them any more.

    Args:
        network: In evaluation mode, on any device.
        preprocess: The one of the training run.
        config: The one of the training run.
        volume: Image [C, *spatial], with or without a label.
        flips: Axes of the network's orientation; logits are averaged over all combinations of flips along them.

    Yields:
        Slabs that cover the volume once; a single slice [H, W] counts as one plane [H, W, 1].
    """
    image = preprocess.image(volume)  # [C, *grid]
    shape = preprocess.turn(volume).permuted(volume.image.shape[1:])
    if image.ndim == 3:
        image, shape = image.unsqueeze(-1), (*shape, 1)
    run = _Windows(network, config, flips)
    if config.data.dims == 2:
        yield from _slices(run, preprocess, image, shape)
    else:
        yield from _patches(run, preprocess, image, shape)


class _Windows:
    """The network over overlapping windows; logits come back on the CPU."""

    def __init__(self, network: nn.Module, config: RunConfig, flips: Sequence[int]) -> None:
        self._network, self.patch, self.dims = network, config.data.patch, config.data.dims
        self._device = next(network.parameters()).device
        self._flips = [
            [2 + axis for axis in chosen]
            for count in range(len(flips) + 1)
            for chosen in itertools.combinations(flips, count)
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K + 1, *spatial] of images [B, C, *spatial]."""
        logits = sliding_window_inference(
            images.to(self._device), self.patch, WINDOWS[self.dims], self._forward, OVERLAP[self.dims], "gaussian"
        )
        if not isinstance(logits, Tensor):
            raise TypeError(f"the network returned {type(logits).__name__} instead of one tensor of logits")
        return logits.float().cpu()

    def _forward(self, x: Tensor) -> Tensor:
        logits = [self._network(x.flip(axes)).logits.flip(axes) for axes in self._flips]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)


def _slices(run: _Windows, preprocess: Preprocess, image: Tensor, shape: tuple[int, ...]) -> Iterator[Slab]:
    """Slabs of a 2-D network: `image` [C, H, W, S] one run of slices after the other."""
    start, count = 0, 1  # how many classes there are is known after the first slice
    while start < image.shape[3]:
        stop = min(start + count, image.shape[3])
        logits = run(image[..., start:stop].movedim(-1, 0))  # [slices, K + 1, H, W]
        probabilities = logits.softmax(1).movedim(0, -1)
        probabilities = preprocess.restore(probabilities, (*shape[:2], stop - start))
        yield Slab((slice(None), slice(None), slice(start, stop)), probabilities)
        largest = max(logits[0].numel(), probabilities[..., 0].numel())
        start, count = stop, max(1, SLAB_BYTES // (4 * largest))


def _patches(run: _Windows, preprocess: Preprocess, image: Tensor, shape: tuple[int, ...]) -> Iterator[Slab]:
    """Slabs of a 3-D network: planes of `image` [C, X, Y, Z], restored to `shape`, along the cheapest axis."""
    grid = image.shape[1:]
    axis = min(range(3), key=lambda a: min(run.patch[a], grid[a]) / grid[a])
    weights = _axis_weights(grid[axis], shape[axis])  # [new, old]
    across = tuple(size for other, size in enumerate(shape) if other != axis)
    held: Tensor | None = None  # planes [K + 1, P, Q, n] whose first is number `first`
    first = done = 0
    for logits in _blended(run, image, axis):
        planes = logits.softmax(0).movedim(axis + 1, -1)
        planes = preprocess.restore(planes, (*across, planes.shape[-1]))
        held = planes if held is None else torch.cat([held, planes], -1)
        known = first + held.shape[-1]
        ready = shape[axis] if known == grid[axis] else int((weights[:, known:] != 0).any(1).int().argmax())
        if ready > done:
            result = _planes_at(held, weights[done:ready, first:known])
            where = tuple(slice(done, ready) if other == axis else slice(None) for other in range(3))
            yield Slab(where, result.movedim(-1, axis + 1))
            done = ready
        if done < shape[axis]:
            needed = int((weights[done] != 0).int().argmax())
            held, first = held[..., needed - first :], needed


def _planes_at(planes: Tensor, weights: Tensor) -> Tensor:
    """Resample the last axis: [..., old] by weights [new, old]; the identity returns its argument."""
    if weights.shape[0] == weights.shape[1] and torch.equal(weights, torch.eye(len(weights))):
        return planes
    return planes @ weights.T


def _axis_weights(old: int, new: int) -> Tensor:
    """Weights [new, old] of linear resampling, as `Preprocess.restore` applies them along one axis."""
    identity = torch.eye(old)
    if old == new:
        return identity
    # Rows of the identity are the signals whose resampled values are the weights.
    size = (old, new)
    return interpolate(identity[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0].T


def _blended(run: _Windows, image: Tensor, axis: int) -> Iterator[Tensor]:
    """Logits [K + 1, *planes] of consecutive planes along `axis`, windows blended with Gaussian weights.

    MONAI blends within a slab one window deep; here the slabs are weighed against each other by the sums of those
    windows' weights, which gives the weighted mean over all windows of the volume.
    """
    length = image.shape[axis + 1]
    size = min(run.patch[axis], length)
    starts = window_starts(length, size, OVERLAP[3])
    weight = _weight_sums((*image.shape[1 : axis + 1], size, *image.shape[axis + 2 :]), run.patch)
    left: tuple[Tensor, Tensor] | None = None  # what earlier windows put on the first planes of the next one
    for start, following in zip(starts, [*starts[1:], length], strict=True):
        logits = run(image.narrow(axis + 1, start, size)[None])[0] * weight
        sums = weight.clone()
        if left is not None:
            shared = left[1].shape[axis]
            logits.narrow(axis + 1, 0, shared).add_(left[0])
            sums.narrow(axis, 0, shared).add_(left[1])
        final = following - start  # planes that no later window reaches
        yield logits.narrow(axis + 1, 0, final) / sums.narrow(axis, 0, final)
        rest = final, size - final
        left = logits.narrow(axis + 1, *rest).clone(), sums.narrow(axis, *rest).clone()


def _weight_sums(shape: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Gaussian weights of all windows that cover each voxel of an image, as MONAI places and weighs them."""
    padded = [max(length, size) for length, size in zip(shape, patch, strict=True)]
    total = torch.zeros(padded)
    window = compute_importance_map(tuple(patch), "gaussian", 0.125)
    starts = [window_starts(length, size, OVERLAP[3]) for length, size in zip(padded, patch, strict=True)]
    for corner in itertools.product(*starts):
        total[tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))] += window
    before = [(length - own) // 2 for length, own in zip(padded, shape, strict=True)]
    return total[tuple(slice(first, first + own) for first, own in zip(before, shape, strict=True))]


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """First voxel of each window along an axis, the last one moved back to end with the axis: MONAI's rule.

    Args:
        length: Voxels.
        size: Voxels of a window, at most `length`.
        overlap: Share of a window that the next one covers as well.

    Example:
        >>> window_starts(20, 8, 0.25)
        [0, 6, 12]
        >>> window_starts(19, 8, 0.25)
        [0, 6, 11]
    """
    step = max(1, int(size * (1 - overlap)))
    return [min(start, length - size) for start in range(0, max(1, length - size + step), step)]
