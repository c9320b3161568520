# SPDX-License-Identifier: Apache-2.0
"""How far probabilities can be believed: temperature, calibration error, and the Dice that they expect.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15
HOTTEST = 20.0
FLOOR = 1e-12  # of a probability, whose logarithm is taken


@dataclass(frozen=True)
class Reliability:
    """Voxels by how sure the network is of its class, in `BINS` equal bins.

    Attributes:
        voxels: In each bin.
        confidence: Mean probability of the class in each bin; 0 where it is empty.
        accuracy: Share of the bin that is right; 0 where it is empty.
    """

    voxels: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of |confidence - accuracy| of their bin."""
        gaps = np.abs(np.subtract(self.confidence, self.accuracy))
        return float(np.average(gaps, weights=self.voxels)) if sum(self.voxels) else 0.0


def scaled(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T): the class of highest probability stays the same.

    Args:
        probabilities: [K + 1, *spatial].
        temperature: T; above 1 the network is less sure.

    Example:
        >>> [round(p, 3) for p in scaled(torch.tensor([0.9, 0.1]), 2.0).tolist()]
        [0.75, 0.25]
    """
    return (probabilities.clamp_min(FLOOR).log() / temperature).softmax(0)


def entropy(probabilities: Tensor) -> Tensor:
    """- sum p log p over the classes, nats: 0 where the network is sure, log(K + 1) where it knows nothing.

    Args:
        probabilities: [K + 1, *spatial].

    Returns:
        [*spatial].
    """
    found: Tensor = torch.special.entr(probabilities).sum(0)
    return found


def expected_dice(inside: float, called: float, total: float) -> float | None:
    """2 sum over P of p / (|P| + sum of p): the Dice that the probabilities p of a structure expect of its mask P.

    Borges et al., Soft Dice Confidence, arXiv:2402.10665.

    Args:
        inside: Sum of p over the mask.
        called: Voxels of the mask.
        total: Sum of p over the image.

    Returns:
        In [0, 1]; None where nothing is called so and nothing expected, less than half a voxel.

    Example:
        >>> expected_dice(inside=90.0, called=100, total=100.0)
        0.9
    """
    return 2.0 * inside / (called + total) if called or total >= 0.5 else None


def fit_temperature(probabilities: Tensor, truth: Tensor) -> float:
    """The temperature at which the truth is most probable: least mean of -log p of the true class.

    Args:
        probabilities: [K + 1, n].
        truth: [n] class index.

    Returns:
        Between 1 / 20 and 20; 1 without a voxel.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at 0x...>
        >>> logits = torch.randn(3, 4000)
        >>> truth = torch.distributions.Categorical(logits=logits.T).sample()
        >>> 3.7 < fit_temperature((4.0 * logits).softmax(0), truth) < 4.3
        True
    """
    if not truth.numel():
        return 1.0
    logits = probabilities.clamp_min(FLOOR).log().double()

    def cost(log_temperature: float) -> float:
        log_p = (logits / float(np.exp(log_temperature))).log_softmax(0)
        return -float(log_p.gather(0, truth.unsqueeze(0)).mean())

    reach = float(np.log(HOTTEST))
    found: Any = minimize_scalar(cost, bounds=(-reach, reach), method="bounded")
    return float(np.exp(found.x))


def reliability(probabilities: Tensor, truth: Tensor) -> Reliability:
    """Sort voxels by the probability of their class.

    Args:
        probabilities: [K + 1, n].
        truth: [n] class index.
    """
    confidence, called = (value.numpy() for value in probabilities.max(0))
    right = called == truth.numpy()
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, weights=values, minlength=BINS) for values in (confidence, right))
    means = (tuple((each / np.maximum(count, 1)).tolist()) for each in sums)
    return Reliability(tuple(count.tolist()), *means)
