# SPDX-License-Identifier: Apache-2.0
"""How far probabilities can be believed: temperature, calibration error, and the Dice that they expect.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class Seen:
    """Voxels of one case whose probabilities are held against the truth.

    Attributes:
        probabilities: [K + 1, n].
        truth: [n] class index; 0 also where it may be a structure that the label leaves out.
        unlabeled: Class indices of those structures.
    """

    probabilities: Tensor
    truth: Tensor
    unlabeled: Sequence[int] = ()

    def told_apart(self, temperature: float) -> Tensor:
        """Log-probabilities at a temperature of what the label tells apart: background is all that it leaves out.

        Args:
            temperature: T of `scaled`.

        Returns:
            [K + 1, n] float64, -inf for the structures that are left out.

        Example:
            >>> p = torch.tensor([[0.5], [0.2], [0.3]])
            >>> Seen(p, torch.tensor([0]), unlabeled=[2]).told_apart(1.0).exp().squeeze(1).numpy().round(3).tolist()
            [0.8, 0.2, 0.0]
        """
        log_p = (self.probabilities.clamp_min(FLOOR).log().double() / temperature).log_softmax(0)
        background = log_p[[0, *self.unlabeled]].logsumexp(0)
        log_p[[0, *self.unlabeled]] = -torch.inf
        log_p[0] = background
        return log_p


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


def fit_temperature(seen: Sequence[Seen]) -> float:
    """The temperature at which the truth is most probable: least mean of -log p of the true class.

    Args:
        seen: Of each case.

    Returns:
        Between 1 / 20 and 20; 1 without a voxel.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at 0x...>
        >>> logits = torch.randn(3, 4000)
        >>> truth = torch.distributions.Categorical(logits=logits.T).sample()
        >>> 3.7 < fit_temperature([Seen((4.0 * logits).softmax(0), truth)]) < 4.3
        True
    """
    if not sum(case.truth.numel() for case in seen):
        return 1.0

    def cost(log_temperature: float) -> float:
        told = ((case.told_apart(float(np.exp(log_temperature))), case.truth) for case in seen)
        return -sum(float(log_p.gather(0, truth.unsqueeze(0)).sum()) for log_p, truth in told)

    reach = float(np.log(HOTTEST))
    found: Any = minimize_scalar(cost, bounds=(-reach, reach), method="bounded")
    return float(np.exp(found.x))


def reliability(seen: Sequence[Seen], temperature: float = 1.0) -> Reliability:
    """Sort voxels by the probability of their class.

    Args:
        seen: Of each case.
        temperature: T of `scaled`.
    """
    count, sure, right = np.zeros((3, BINS))
    for case in seen:
        confidence, called = (value.numpy() for value in case.told_apart(temperature).exp().max(0))
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        for sums, weights in ((count, None), (sure, confidence), (right, called == case.truth.numpy())):
            sums += np.bincount(place, weights=weights, minlength=BINS)
    means = ((sums / np.maximum(count, 1)).tolist() for sums in (sure, right))
    return Reliability(tuple(count.astype(int).tolist()), *map(tuple, means))
