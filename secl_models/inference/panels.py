# SPDX-License-Identifier: Apache-2.0
"""Image, label and prediction of one slice side by side, for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.inference.palette import rgb

OPACITY = 0.55  # of a structure's colour on the image
GAP = 2  # columns of black between the panels
LEAST = 160  # rows: smaller slices are magnified by whole pixels


def slice_panels(
    image: npt.NDArray[np.float32], truth: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """The slice of one volume that shows most of its structures: the image, with the label, with the prediction.

    Args:
        image: One channel [*spatial].
        truth: Class index [*spatial], -1 where nothing is said.
        prediction: Class index [*spatial].

    Returns:
        [rows, columns, 3]; the first spatial axis runs to the right and the second upwards.

    Example:
        >>> label = np.zeros((80, 60, 5), np.int64)
        >>> slice_panels(label.astype(np.float32), label, label).shape
        (180, 724, 3)
    """
    if image.ndim == 3:
        shown = (truth > 0).sum((0, 1)) if (truth > 0).any() else (prediction > 0).sum((0, 1))
        number = int(shown.argmax()) if shown.any() else image.shape[2] // 2
        image, truth, prediction = image[..., number], truth[..., number], prediction[..., number]
    low, high = np.percentile(image, (1, 99))
    grey = ((image - low) / max(high - low, 1e-6)).clip(0, 1) * 255
    base = np.repeat(grey[..., None], 3, -1)
    factor = -(-LEAST // image.shape[1])
    panels = [_upright(panel, factor) for panel in (base, _tinted(base, truth), _tinted(base, prediction))]
    gap = np.zeros((len(panels[0]), GAP, 3), np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 1)


def _tinted(base: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[Any]:
    colours = np.array([rgb(index) for index in range(max(0, int(label.max())) + 1)], float)
    share = OPACITY * (label > 0)[..., None]
    tinted: npt.NDArray[Any] = (1 - share) * base + share * colours[label.clip(0)]
    return tinted


def _upright(panel: npt.NDArray[Any], factor: int) -> npt.NDArray[np.uint8]:
    turned = panel.transpose(1, 0, 2)[::-1]
    return turned.repeat(factor, 0).repeat(factor, 1).round().astype(np.uint8)
