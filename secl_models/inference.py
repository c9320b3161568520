# SPDX-License-Identifier: Apache-2.0
"""Probabilities of a whole volume on its own grid: what validation, evaluation and prediction share."""

from __future__ import annotations

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from secl_models.config import RunConfig
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.networks import SegmentationNetwork

WINDOWS = {2: 16, 3: 2}  # windows per forward pass; more gains nothing on a CPU
OVERLAP = {2: 0.5, 3: 0.25}


@torch.no_grad()
def predict_volume(network: SegmentationNetwork, preprocess: Preprocess, config: RunConfig, volume: Volume) -> Tensor:
    """Class probabilities of one volume, windows blended with Gaussian weights.

    Args:
        network: In evaluation mode, on any device.
        preprocess: The one of the training run.
        config: The one of the training run: `data.dims` and `data.patch` decide the windows.
        volume: Image [C, *spatial], with or without a label.

    Returns:
        Probabilities [K + 1, *spatial], float32 on the CPU, on the input's own grid; `argmax(0)` is the
        segmentation.
    """
    device = next(network.parameters()).device
    image = torch.as_tensor(preprocess.image(volume))  # [C, *grid]
    dims = config.data.dims
    flat = image.ndim - 1 < 3
    if flat:
        image = image.unsqueeze(-1)
    windows = image.movedim(-1, 0) if dims == 2 else image.unsqueeze(0)  # [S, C, H, W] or [1, C, H, W, S]
    logits = sliding_window_inference(
        windows.to(device),
        config.data.patch,
        WINDOWS[dims],
        lambda x: network(x).logits,
        overlap=OVERLAP[dims],
        mode="gaussian",
    )
    if not isinstance(logits, Tensor):
        raise TypeError(f"the network returned {type(logits).__name__} instead of one tensor of logits")
    probabilities = logits.float().softmax(1).cpu()
    probabilities = probabilities.movedim(0, -1) if dims == 2 else probabilities[0]  # [K + 1, *grid]
    if flat:
        probabilities = probabilities.squeeze(-1)
    return preprocess.restore(probabilities, tuple(volume.image.shape[1:]))
