# SPDX-License-Identifier: Apache-2.0
"""Feature rows of a trained network and the plane of their first two principal components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from secl_models.data.volumes import Volume
from secl_models.method.checkpoint import LoadedModel

ROWS_PER_CLASS = 300  # dots per class
MOST_SLICES = 8  # 2-D: slices of one case, spread over its structures


def principal_plane(
    model: LoadedModel, volumes: Sequence[Volume], structures: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """Unit feature rows of the first tapped layer in the plane of their first two principal components.

    Args:
        model: A loaded checkpoint.
        volumes: Labelled volumes that the rows are taken from.
        structures: K, the number of structures.

    Returns:
        Points [N, 2] and the true class index [N], at most `ROWS_PER_CLASS` per class; None where the network
        has no tapped layer or there are too few rows.
    """
    gathered = [found for volume in volumes if (found := feature_rows(model, volume)) is not None]
    if not gathered:
        return None
    rows, index = (torch.cat(parts) for parts in zip(*gathered, strict=True))
    keep = torch.cat([_evenly(torch.nonzero(index == number).flatten()) for number in range(structures + 1)])
    if len(keep) < 3:
        return None
    unit = normalize(rows[keep].double())  # the contrastive loss sees directions only
    centred = unit - unit.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # [2, C]
    return (centred @ axes.T).numpy(), index[keep].numpy()


def _evenly(places: Tensor) -> Tensor:
    count = min(len(places), ROWS_PER_CLASS)
    return places[torch.linspace(0, max(0, len(places) - 1), count).long()]


@torch.no_grad()
def feature_rows(model: LoadedModel, volume: Volume) -> tuple[Tensor, Tensor] | None:
    """Rows of the first tapped map in a patch around the structures of one volume.

    Args:
        model: A loaded checkpoint.
        volume: A labelled volume.

    Returns:
        Rows [n, C] and their true class index [n]; None where nothing is labelled or no layer is tapped.
    """
    image = model.preprocess.image(volume)  # [C, *grid]
    label = model.preprocess.label(volume).long()  # [*grid]
    if label.ndim == 2:
        image, label = image[..., None], label[..., None]
    if not (label > 0).any():
        return None
    image, label = _patch(image, label, model.config.data.patch)
    if model.config.data.dims == 2:
        shown = torch.nonzero((label > 0).flatten(0, 1).any(0)).flatten()
        shown = shown[torch.linspace(0, len(shown) - 1, min(len(shown), MOST_SLICES)).long()]
        images, labels = image[..., shown].movedim(-1, 0), label[..., shown].movedim(-1, 0)
    else:
        images, labels = image[None], label[None]
    features = model.network(images).features
    if not features:
        return None
    small = interpolate(labels[:, None].double(), size=features[0].shape[2:], mode="nearest-exact")
    index = small.long().flatten()
    return features[0].movedim(1, -1).flatten(0, -2)[index >= 0], index[index >= 0]


def _patch(image: Tensor, label: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cut or pad the first axes to the patch, centred on the structures; padding has label -1.

    Args:
        image: [C, X, Y, Z].
        label: [X, Y, Z], not all background.
        patch: Size of the first two or all three axes.

    Returns:
        Image and label of the patch.
    """
    centre = torch.nonzero(label > 0).double().mean(0).round().long()
    margins = [0, 0] * (label.ndim - len(patch))
    for axis, size in reversed(list(enumerate(patch))):
        length = label.shape[axis]
        start = int((centre[axis] - size // 2).clamp(0, max(0, length - size)))
        image = image.narrow(axis + 1, start, min(size, length))
        label = label.narrow(axis, start, min(size, length))
        margins += [0, max(0, size - length)]
    return pad(image, margins), pad(label, margins, value=-1)
