# SPDX-License-Identifier: Apache-2.0
"""Pixel-level InfoNCE over sampled anatomical regions: fused, exact, deterministic, without host synchronisation."""

from secl_ops.backends.select import backends
from secl_ops.functional import PixelSample, class_means, gather_pixels, info_nce, pool_regions, sample_pixels
from secl_ops.pixel_contrast import PixelContrastLoss, pixel_contrast
from secl_ops.queue import ClassQueue
from secl_ops.version import __version__

__all__ = [
    "ClassQueue",
    "PixelContrastLoss",
    "PixelSample",
    "__version__",
    "backends",
    "class_means",
    "gather_pixels",
    "info_nce",
    "pixel_contrast",
    "pool_regions",
    "sample_pixels",
]
