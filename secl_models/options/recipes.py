# SPDX-License-Identifier: Apache-2.0
"""Options of the terms that contrast near the output, on top of copy-paste: a section for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secl_models.options.checks import require_positive, require_range


@dataclass(frozen=True)
class PrototypeConfig:
    """A second prediction by prototypes, inside the mixed loss (values of Bi et al., arXiv:2503.14343)."""

    weight: float = 0.5  # of the second prediction's loss
    contrast: float = 0.001  # weight of the contrast of pixels with all prototypes
    count: int = 3  # prototypes of each class
    decay: float = 0.999  # of their moving average
    confidence: float = 0.9  # teacher probability from which an unlabelled pixel moves them
    temperature: float = 0.1
    per_class: int = 32  # pixels per class and image that move them and are contrasted

    def __post_init__(self) -> None:
        for name in ("weight", "contrast"):
            require_range(f"prototype.{name}", getattr(self, name), 0, math.inf)
        for name in ("count", "per_class"):
            require_range(f"prototype.{name}", getattr(self, name), 1, math.inf)
        for name in ("decay", "confidence"):
            require_range(f"prototype.{name}", getattr(self, name), 0, 1)
        require_positive("prototype.temperature", self.temperature, 0.1)


@dataclass(frozen=True)
class CentroidConfig:
    """Contrast of uncertain pixels with centroids of many images (values of SPCL, arXiv:2602.00174)."""

    weight: float = 0.1
    unsure: float = 0.75  # highest probability of the student up to which a pixel is an anchor
    bank: int = 400  # centroids kept of each class and part, one an image
    temperature: float = 0.5  # inside the structures
    boundary: float = 0.1  # weight of the boundaries' part
    boundary_temperature: float = 0.07
    reach: int = 1  # pixels from another class up to which a pixel belongs to the boundary

    def __post_init__(self) -> None:
        for name in ("weight", "boundary"):
            require_range(f"centroid.{name}", getattr(self, name), 0, math.inf)
        for name in ("bank", "reach"):
            require_range(f"centroid.{name}", getattr(self, name), 1, math.inf)
        require_range("centroid.unsure", self.unsure, 0, 1)
        for name in ("temperature", "boundary_temperature"):
            require_positive(f"centroid.{name}", getattr(self, name), 0.5)


@dataclass(frozen=True)
class DisagreementConfig:
    """Pull to class prototypes where only one of student and teacher is sure (after ALHVR, ICCV 2025)."""

    weight: float = 0.1
    share: float = 0.8  # lowest part of all confidences, whose mean divides sure from unsure
    dropout: float = 0.5  # share of the channels that the student's perturbed view loses

    def __post_init__(self) -> None:
        require_range("disagreement.weight", self.weight, 0, math.inf)
        require_range("disagreement.share", self.share, 0, 1)
        require_range("disagreement.dropout", self.dropout, 0, 0.99)
