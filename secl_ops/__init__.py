# SPDX-License-Identifier: Apache-2.0
"""Pixel-level InfoNCE over sampled anatomical regions: fused, exact, deterministic, without host synchronisation."""

from secl_ops.engines.select import backends
from secl_ops.functional import info_nce, info_nce_parts
from secl_ops.library import cuda_absence, cuda_archs
from secl_ops.maps import pixel_contrast
from secl_ops.modules import PixelContrastLoss
from secl_ops.pixel_sigmoid import PixelSigmoidLoss
from secl_ops.pixels import PixelSample, class_means, gather_pixels, pool_regions, sample_pixels
from secl_ops.queue import ClassQueue
from secl_ops.shards import ContrastParts
from secl_ops.sigmoid import sigmoid_contrast
from secl_ops.tapping import Tap, tap
from secl_ops.version import __version__

__all__ = [
    "ClassQueue",
    "ContrastParts",
    "PixelContrastLoss",
    "PixelSample",
    "PixelSigmoidLoss",
    "Tap",
    "__version__",
    "backends",
    "class_means",
    "cuda_absence",
    "cuda_archs",
    "gather_pixels",
    "info_nce",
    "info_nce_parts",
    "pixel_contrast",
    "pool_regions",
    "sample_pixels",
    "sigmoid_contrast",
    "tap",
]
