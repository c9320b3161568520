# SPDX-License-Identifier: Apache-2.0
"""From a volume as stored to network input and back: intensities, grid, and what a preset left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from secl_models.data.cases import DataSet
from secl_models.data.labels import class_type
from secl_models.data.orientation import Turn, reference, turn_to
from secl_models.data.volumes import Volume
from secl_models.options.errors import InputError
from secl_models.options.schema import DataConfig, RunConfig

ROBUST = (
    0.5,
    99.5,
)  # percentiles that bound an intensity: above them lie vessels, metal and reconstruction errors
LARGEST_PATCH = {2: 160, 3: 80}  # voxels along one axis that a patch chosen here may have
# A slice above that is made coarser, so that a patch shows all of it: far mistakes are those of patches.
COARSE = 128  # voxels along its longer axis then
COARSEST = 4.0  # times the voxel sides of the files, at most
PIECE = 1 << 21  # voxels
CONSTANT = 1e-8  # standard deviation, as a share of the largest intensity, below which an image counts as constant


@dataclass(frozen=True)
class Preprocess:
    """What turns a volume into network input; kept in every checkpoint, so that prediction repeats it.

    Attributes:
        dims: 2 resamples in plane only and leaves the last axis, the slices, alone; 3 resamples every axis.
        size: Grid that every slice (or volume) is resized to, or None.
        spacing: Voxel sides in mm that every volume is resampled to, or None. With neither the grid stays.
        normalize: "volume" or "slice" (clip to robust percentiles, zero mean and unit variance) or "window".
        window: Intensities between which "window" spreads a uniform variable of zero mean and unit variance.
        orientation: Every volume is turned to lie like it first, by flips and permutations of its axes alone, see
            `turn_to`; None (also in checkpoints from before this option) leaves the voxel order alone.

    Example:
        >>> preprocess = Preprocess.from_config(DataConfig(size=(96, 96), normalize="volume", orientation=None))
        >>> preprocess.restore(torch.rand(4, 96, 96, 10), (256, 216, 10)).shape
        torch.Size([4, 256, 216, 10])
    """

    dims: int
    size: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    normalize: str
    window: tuple[float, float] | None
    orientation: tuple[float, ...] | None = None

    @classmethod
    def from_config(cls, config: DataConfig) -> Preprocess:
        """Take over the options of a resolved configuration.

        Raises:
            ValueError: `resolve` has not been called yet, so that one of the options is still open.
        """
        if config.normalize == "auto" or config.spacing == () or config.orientation == ():
            raise ValueError(
                "data.normalize, data.spacing or data.orientation is still open: "
                "call resolve(config, data, labeled) first"
            )
        return cls(config.dims, config.size, config.spacing, config.normalize, config.window, config.orientation)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with lists for tuples, for a checkpoint or json."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def turn(self, volume: Volume) -> Turn:
        """What brings the stored voxel order into the network's."""
        return turn_to(self.orientation, volume)

    def image(self, volume: Volume) -> Tensor:
        """Turn, normalise and resample the image linearly, smoothing first where the grid gets coarser.

        Returns:
            `[C, *grid]` float32 on the CPU.

        Raises:
            InputError: The volume stores no spacing where one is needed, or has fewer axes than `dims`.
        """
        array = np.array(self.turn(volume).apply(volume.image), np.float32, order="C")
        self._normalize(array)
        return _resample_linear(torch.from_numpy(array), self.grid(volume))

    def label(self, volume: Volume) -> Tensor:
        """Class indices `[*grid]` of the nearest stored voxels, as `image` lies, -1 where nothing is said.

        Returns:
            On the CPU; uint8 where that holds all of them, else int16.

        Raises:
            InputError: As for `image`, or the volume has no label.
        """
        if volume.label is None:
            raise InputError(
                volume.case.name, rule="a labelled case has a label", got="none", cure="give its label file"
            )
        turned = self.turn(volume).apply(volume.label)
        kind = np.int16 if turned.min() < 0 else class_type(int(turned.max()))
        stored = torch.from_numpy(np.ascontiguousarray(turned, dtype=kind))
        grid = self.grid(volume)
        if tuple(stored.shape) == grid:
            return stored
        # Plain "nearest" of torch takes the voxel below, half a voxel off the linear image.
        if stored.dtype == torch.uint8:
            return interpolate(stored[None, None], size=grid, mode="nearest-exact")[0, 0]
        # torch resamples no int16; float32 holds it exactly.
        return interpolate(stored[None, None].float(), size=grid, mode="nearest-exact")[0, 0].to(stored.dtype)

    def restore(self, probabilities: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Bring probabilities from the network's grid back to the input's own, still in the network's orientation.

        Args:
            probabilities: `[K + 1, *grid]` floating.
            shape: Spatial shape of the turned input in voxels.

        Returns:
            `[K + 1, *shape]`; the arg-max over the classes is the segmentation.
        """
        return _resample_linear(probabilities, shape)

    def grid(self, volume: Volume) -> tuple[int, ...]:
        """Spatial shape of a volume after turning and resampling.

        Raises:
            InputError: The volume stores no spacing where one is needed, or has fewer axes than `dims`.
        """
        turn, name = self.turn(volume), volume.case.name
        shape = turn.permuted(volume.image.shape[1:])
        if len(shape) < self.dims:
            got, cure = f"single slices of shape {tuple(shape)}", "set data.dims to 2 for this data set"
            raise InputError(name, rule="data.dims=3 needs volumes of three axes", got=got, cure=cure)
        if self.size is not None:
            return (*self.size, *shape[self.dims :])
        if self.spacing is None:
            return tuple(shape)
        if volume.spacing is None:
            cure = "set data.spacing to null, or data.size to a fixed grid"
            raise InputError(name, rule="data.spacing needs files that store a voxel spacing", got="none", cure=cure)
        pairs = zip(shape, turn.permuted(volume.spacing), self.spacing, strict=False)  # in plane only when dims is 2
        return (*(max(1, round(n * own / target)) for n, own, target in pairs), *shape[self.dims :])

    def _normalize(self, image: npt.NDArray[np.float32]) -> None:
        """Clip and scale intensities `[C, *spatial]` in place."""
        if self.normalize == "window" and self.window is not None:
            low, high = self.window
            np.clip(image, low, high, out=image)
            # A uniform variable on [low, high] has mean (low + high) / 2 and variance (high - low)^2 / 12.
            _scale(image, (low + high) / 2, (high - low) / 12**0.5)
            return
        slices = self.normalize == "slice" and image.ndim == 4
        for channel in image:
            for part in np.moveaxis(channel, -1, 0) if slices else [channel]:
                _standardize(part)


def _standardize(values: npt.NDArray[np.float32]) -> None:
    """Clip to robust percentiles, then zero mean and unit variance, in place; a constant becomes 0."""
    low, high = np.percentile(values, ROBUST)
    np.clip(values, low, high, out=values)
    mean = float(values.mean(dtype=np.float64))
    squares = sum(float(np.square(piece.astype(np.float64) - mean).sum()) for piece in _pieces(values))
    spread = (squares / values.size) ** 0.5
    if spread > CONSTANT * max(abs(float(values.min())), abs(float(values.max()))):
        _scale(values, mean, spread)
    else:
        values[...] = 0


def _scale(values: npt.NDArray[np.float32], centre: float, spread: float) -> None:
    for piece in _pieces(values):
        piece[...] = (piece.astype(np.float64) - centre) / spread


def _pieces(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Views of an array that are small enough to be taken to float64 one at a time."""
    return np.array_split(values, max(1, values.size // PIECE))


def _resample_linear(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Separable linear resampling of `[C, *spatial]`; both grids span the same extent, edge to edge."""
    if tuple(values.shape[1:]) == grid:
        return values
    slices_last = values.movedim(3, 1) if values.dim() == 4 else values.unsqueeze(1)  # [C, S, H, W]
    plane = _resample_planes(slices_last, grid[0], grid[1])
    if len(grid) == 2:
        return plane.squeeze(1)
    columns = plane.flatten(2).transpose(1, 2).unsqueeze(0)  # [1, C, H * W, S]
    if grid[2] != columns.shape[3]:
        size = (columns.shape[2], grid[2])
        columns = interpolate(columns, size=size, mode="bilinear", align_corners=False, antialias=True)
    return columns[0].reshape(values.shape[0], *grid).contiguous()


def _resample_planes(planes: Tensor, height: int, width: int) -> Tensor:
    """Both axes of `[C, S, H, W]`."""
    if width > 1:
        return interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return _resample_last(_resample_last(planes, width).transpose(2, 3), height).transpose(2, 3)


def _resample_last(planes: Tensor, length: int) -> Tensor:
    """The last axis of `[C, S, H, W]`."""
    # To one column torch, up to 2.13 at least, resamples the height wrongly; two columns that are equal stay so.
    twice = planes.flatten(1, 2).unsqueeze(3).expand(-1, -1, -1, 2)  # [C, S * H, W, 2]
    resampled = interpolate(twice, size=(length, 2), mode="bilinear", align_corners=False, antialias=True)
    return resampled[..., 0].reshape(*planes.shape[:3], length)


def resolve(config: RunConfig, data: DataSet, labeled: Sequence[Volume]) -> RunConfig:
    """Settle from the method and the labelled volumes what the configuration left open, so that its echo is complete.

    An empty `orientation` becomes that of most labelled volumes. `normalize` "auto" becomes "window" for
    CT (percentiles of the labelled structures when no window is given), "slice" where the files are single slices,
    else "volume". An empty spacing becomes the median, or None where files store none. An empty patch of slices becomes
    the largest grid, of volumes the median one, rounded up to the network's stride, at most `LARGEST_PATCH`. Where both
    are empty, slices that are larger than that are resampled to about `COARSE` voxels on their longer axis. The
    contrast gets the weight and the way to draw anchors that suit the method, if it is one that contrasts.

    Args:
        config: As loaded.
        data: Names the modality of each channel.
        labeled: The labelled training volumes, one or more.

    Raises:
        InputError: No labelled volume, or volumes that do not fit `data.dims`.
    """
    if not labeled:
        raise InputError("labelled cases", rule="one or more", got=0, cure="raise --labeled")
    options = config.data
    if options.orientation == ():
        options = replace(options, orientation=reference(labeled))
    if options.normalize == "auto":
        options = _choose_normalization(options, data, labeled)
    stride = config.network.stride
    if options.spacing == ():
        options = replace(options, spacing=_median_spacing(options, labeled))
        if options.patch == () and options.dims == 2 and options.size is None:
            options = _coarsened(options, labeled, stride)
    if options.patch == ():
        cap = max(2, LARGEST_PATCH[options.dims] // stride) * stride
        grids = _grids(options, labeled)
        largest = grids.max(0) if options.dims == 2 else np.median(grids, axis=0)
        blocks = np.ceil(largest / stride).astype(int)
        options = replace(options, patch=tuple(int(min(cap, max(2, count) * stride)) for count in blocks))
    return replace(config, data=options, contrast=config.contrast.settled(config.train.method))


def _grids(options: DataConfig, labeled: Sequence[Volume]) -> npt.NDArray[np.int64]:
    preprocess = Preprocess.from_config(options)
    return np.array([preprocess.grid(volume)[: options.dims] for volume in labeled])


def _coarsened(options: DataConfig, labeled: Sequence[Volume], stride: int) -> DataConfig:
    """Slices on a grid that a patch can show whole: a wider spacing, or one size where files store no spacing."""
    grid = np.median(_grids(options, labeled), axis=0)
    if grid.max() <= LARGEST_PATCH[2]:
        return options
    factor = min(float(grid.max()) / COARSE, COARSEST)
    if options.spacing is not None:
        return replace(options, spacing=tuple(round(side * factor, 4) for side in options.spacing))
    return replace(options, size=tuple(stride * max(2, round(length / factor / stride)) for length in grid))


def _median_spacing(options: DataConfig, labeled: Sequence[Volume]) -> tuple[float, ...] | None:
    turned = [
        turn_to(options.orientation, volume).permuted(volume.spacing)
        for volume in labeled
        if volume.spacing is not None
    ]
    stored = [spacing[: options.dims] for spacing in turned]
    if options.size is not None or len(stored) < len(labeled):
        return None
    return tuple(round(float(side), 4) for side in np.median(stored, axis=0))  # headers differ by rounding


def _choose_normalization(options: DataConfig, data: DataSet, labeled: Sequence[Volume]) -> DataConfig:
    computed = all(modality.upper() == "CT" for modality in data.modality)
    if options.window is not None or computed:
        window = options.window or _structure_window(labeled)
        return replace(options, window=window, normalize="window")
    single_slices = any(volume.image.ndim == 3 for volume in labeled)
    return replace(options, normalize="slice" if single_slices else "volume")


def _structure_window(labeled: Sequence[Volume]) -> tuple[float, float]:
    """Robust percentiles of all labelled voxels, or of everything where no voxel is labelled."""
    inside = [volume.image[:, volume.label > 0].ravel() for volume in labeled if volume.label is not None]
    if not any(part.size for part in inside):
        inside = [volume.image.ravel() for volume in labeled]
    low, high = np.percentile(np.concatenate(inside), ROBUST)
    return float(np.floor(low)), float(max(np.ceil(high), np.floor(low) + 1))
