# SPDX-License-Identifier: Apache-2.0
"""Segment a NIfTI image with an exported network: `python run.py model_folder in.nii.gz out.nii.gz`.

Needs onnxruntime, numpy, scipy and nibabel alone. Channels are one 4-D file, or several files before the last name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import zlib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
from scipy import ndimage

NUMBERS = 1 << 24  # probabilities of slices that are segmented together
UNITS = {1: 1000.0, 3: 0.001}  # NIfTI's codes of metre and micron in mm; all others are read as mm
nifti: Any = nibabel


def segment(folder: Path, sources: Sequence[Path], target: Path) -> None:
    """Write the class of every voxel on the grid of the image; the file appears whole or not at all."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    network = onnxruntime.InferenceSession(folder / "model.onnx", providers=onnxruntime.get_available_providers())
    require(not target.exists(), f"{target} exists already")
    image, values, sides = read(sources, model)
    order, flipped = turn(image, model["orientation"])
    turned = np.flip(values, tuple(1 + axis for axis in flipped)).transpose(0, *(1 + axis for axis in order))
    turned = normalised(turned, model)
    grid, dims = list(turned.shape[1:]), model["dims"]
    if model["size"]:
        grid[:dims] = model["size"]
    elif model["spacing"]:
        pairs = zip(grid[:dims], sides[list(order[:dims])], model["spacing"], strict=True)
        grid[:dims] = [max(1, round(n * own / wanted)) for n, own, wanted in pairs]
    turned = resampled(turned, grid)
    label = np.zeros(values.shape[1:], np.min_scalar_type(len(model["labels"])))
    view = np.flip(label, flipped).transpose(order)
    # [B, C, *grid] and [B, *shape]: the slices of a volume side by side, or the volume alone.
    images, targets = (np.moveaxis(x, -1, 0) if dims == 2 else x[None] for x in (turned, view))
    together = max(1, min(16, NUMBERS // (targets[0].size * len(model["labels"]))))
    for first in range(0, len(images), together):
        some = slice(first, first + together)
        targets[some] = classes(logits(network, images[some], model), targets.shape[1:])
    keep_largest(label, model["largest_component"])
    stored = np.array([entry["value"] for entry in model["labels"]], model["dtype"])
    write(stored[label].reshape(image.shape[:3]), image, target)


def require(right: bool, otherwise: str) -> None:
    """End with a sentence where something is wrong."""
    if not right:
        sys.exit(f"run.py: {otherwise}")


def read(sources: Sequence[Path], model: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The first image, the intensities [C, X, Y, Z] of all, and the voxel sides in mm; a slice is one plane."""
    images = [nifti.load(source) for source in sources]
    arrays = [np.asanyarray(image.dataobj) for image in images]
    arrays = [array.reshape(*(*array.shape, 1, 1)[:3], -1) for array in arrays]
    require(len({array.shape[:3] for array in arrays}) == 1, "the channels differ in shape")
    corners = np.array(list(itertools.product(*((0, size - 1) for size in arrays[0].shape[:3]), [1.0])))
    apart = max(np.abs(corners @ (image.affine - images[0].affine).T).max() for image in images)
    smallest = np.linalg.norm(images[0].affine[:3, :3], axis=0).min()
    require(apart <= 0.05 * smallest, f"the channels lie {apart:.3g} apart by their affines")
    values = np.concatenate([np.moveaxis(array, -1, 0).astype(np.float32) for array in arrays])
    require(len(values) == model["channels"], f"the network takes {model['channels']} channel(s), not {len(values)}")
    require(bool(np.isfinite(values).all()), "an intensity is NaN or infinite")
    header = images[0].header
    scale = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    sides, pixdim = np.linalg.norm(images[0].affine[:3, :3], axis=0) * scale, np.abs(header["pixdim"][1:4]) * scale
    stored = (pixdim > 0) & (np.arange(3) < images[0].ndim)
    unlike = stored & (np.abs(sides - pixdim) > 0.01 * np.minimum(sides, pixdim))
    require(model["spacing_from"] != "auto" or not unlike.any(), f"sides {sides} of the affine, {pixdim} of pixdim")
    if model["spacing_from"] == "auto" and header["sform_code"] > 0 and header["qform_code"] > 0:
        with contextlib.suppress(ValueError):  # no quaternion: the sform counts
            forms = (form[:3, :3] for form in (header.get_sform(), header.get_qform()))
            axes = [form / np.linalg.norm(form, axis=0) for form in forms]
            require(bool((np.sum(axes[0] * axes[1], 0) >= 0.7).all()), "sform and qform run in different directions")
    return images[0], values, pixdim if model["spacing_from"] == "pixdim" else sides


def turn(image: Any, orientation: list[float] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order and the flips of the stored axes that bring them nearest to those of the training images."""
    if orientation is None or image.ndim < 3:
        return (0, 1, 2), ()
    axes = (image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)).round(4)
    cosines = np.reshape(orientation, (3, 3)) @ axes  # [wanted axis, stored axis]
    order = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(cosines[range(3), axes])))
    return order, tuple(axis for wanted, axis in enumerate(order) if cosines[wanted, axis] < 0)


def normalised(image: Any, model: dict[str, Any]) -> Any:
    """Intensities [C, X, Y, Z] on the scale of the training."""
    image = np.array(image, order="C")
    if model["normalize"] == "window":
        low, high = model["window"]
        return ((np.clip(image, low, high) - (low + high) / 2.0) / ((high - low) / 12**0.5)).astype(np.float32)
    for channel in image:
        for part in np.moveaxis(channel, -1, 0) if model["normalize"] == "slice" else [channel]:
            np.clip(part, *np.percentile(part, model["percentiles"]), out=part)
            exact = part.astype(np.float64)
            spread = exact.std()
            part[...] = (exact - exact.mean()) / spread if spread > 1e-8 * abs(exact).max() else 0
    return image


def resampled(values: Any, grid: Sequence[int]) -> Any:
    """Linear resampling of [..., *spatial], edge to edge, smoothed where the grid gets coarser."""
    for axis, new in enumerate(grid, start=values.ndim - len(grid)):
        if (old := values.shape[axis]) != new:
            centres = (np.arange(new)[:, None] + 0.5) * old / new
            weights = np.maximum(0, 1 - abs(np.arange(old) + 0.5 - centres) / max(old / new, 1))  # [new, old]
            weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def logits(network: Any, images: Any, model: dict[str, Any]) -> Any:
    """Logits [B, K + 1, *grid] of [B, C, *grid]: overlapping windows, each weighed by a Gaussian, and their flips."""
    patch, grid = model["patch"], images.shape[2:]
    lacking = [max(0, size - length) for size, length in zip(patch, grid, strict=True)]
    images = np.pad(images, [(0, 0), (0, 0), *((lack // 2, lack - lack // 2) for lack in lacking)])
    steps = [max(1, int(size * (1 - model["overlap"]))) for size in patch]
    starts = [
        [min(start, length - size) for start in range(0, max(1, length - size + step), step)]
        for length, size, step in zip(images.shape[2:], patch, steps, strict=True)
    ]
    bells = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (0.125 * size)) ** 2) for size in patch]
    weight = reduce(np.multiply.outer, bells)
    weight = np.maximum(weight, max(weight.min(), 1e-3)).astype(np.float32)
    padded = images.shape[2:]
    total, sums = np.zeros((len(images), len(model["labels"]), *padded), np.float32), np.zeros(padded, np.float32)
    for corner in itertools.product(*starts):
        place = tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
        window = images[:, :, *place]
        views = [tuple(2 + axis for axis in axes) for axes in model["views"]]  # those that are mirrored
        found = [np.flip(network.run(None, {"image": np.flip(window, axes)})[0], axes) for axes in views]
        total[:, :, *place] += np.mean(found, 0) * weight
        sums[place] += weight
    inside = tuple(slice(lack // 2, lack // 2 + length) for lack, length in zip(lacking, grid, strict=True))
    return (total / sums)[:, :, *inside]


def classes(scores: Any, shape: Sequence[int]) -> Any:
    """The most probable class [B, *shape] by logits [B, K + 1, *grid]."""
    chances = np.exp(scores - scores.max(1, keepdims=True))
    return resampled(chances / chances.sum(1, keepdims=True), shape).argmax(1)


def keep_largest(label: Any, structures: Sequence[int]) -> None:
    """Make all but the largest part of these structures background, in place."""
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is not None and index in structures:
            parts, _ = ndimage.label(label[box] == index, np.ones((3, 3, 3)))
            sizes = np.bincount(parts.ravel(), minlength=2)
            label[box][(parts > 0) & (parts != 1 + sizes[1:].argmax())] = 0


def write(label: Any, image: Any, target: Path) -> None:
    """Write label values with the grid of an image and nothing else that its header says."""
    header = image.header.copy()
    header.extensions.clear()
    header.set_data_dtype(label.dtype)
    for name in ("descrip", "aux_file", "intent_code", "cal_max", "cal_min"):
        header[name] = header.default_structarr()[name]
    partial = target.with_name(f".{os.getpid()}.{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        nifti.save(type(image)(label, image.affine, header), partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    require(len(sys.argv) > 3, "python run.py model_folder in.nii.gz [second_channel.nii.gz ...] out.nii.gz")
    try:
        segment(Path(sys.argv[1]), list(map(Path, sys.argv[2:-1])), Path(sys.argv[-1]))
    except (OSError, EOFError, zlib.error, nifti.filebasedimages.ImageFileError) as error:
        sys.exit(f"run.py: {error}")
