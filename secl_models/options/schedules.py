# SPDX-License-Identifier: Apache-2.0
"""Schedules as pure functions of the step: the growing weight of a term and the falling learning rate."""

from __future__ import annotations

import math


def linear_ramp(step: int, start: int, length: int) -> float:
    """Weight that is 0 before `start` and grows on a line to 1 within `length` steps.

    Args:
        step: Optimiser steps done so far.
        start: First step with a weight above 0.
        length: Steps from 0 to 1; 0 switches on at once.

    Returns:
        A weight in [0, 1].

    Example:
        >>> [linear_ramp(step, start=10, length=4) for step in (9, 10, 11, 13, 99)]
        [0.0, 0.25, 0.5, 1.0, 1.0]
    """
    if step < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (step - start + 1) / length)


def sigmoid_ramp(step: int, start: int, length: int) -> float:
    """Weight exp(-5 (1 - t)^2) with t the linear ramp, and 0 before `start`.

    The ramp-up of Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017.

    Args:
        step: Optimiser steps done so far.
        start: First step with a weight above 0.
        length: Steps until the weight is 1; 0 switches on at once.

    Returns:
        A weight in [0, 1].

    Example:
        >>> round(sigmoid_ramp(0, start=0, length=2), 3), sigmoid_ramp(1, start=0, length=2)
        (0.287, 1.0)
    """
    share = linear_ramp(step, start, length)
    return math.exp(-5.0 * (1.0 - share) ** 2) if step >= start else 0.0


def poly_lr(step: int, steps: int, lr: float, power: float = 0.9) -> float:
    """Learning rate lr (1 - step / steps)^power, the polynomial decay of DeepLab and nnU-Net.

    Args:
        step: Optimiser steps done so far, 0 <= step.
        steps: Steps of the whole run.
        lr: Learning rate of step 0.
        power: Exponent.

    Returns:
        The learning rate; 0 at and after `steps`.

    Example:
        >>> poly_lr(0, 100, 0.01), poly_lr(100, 100, 0.01)
        (0.01, 0.0)
    """
    return float(lr * max(0.0, 1.0 - step / steps) ** power)


def ema_decay(step: int, decay: float) -> float:
    """Decay min(1 - 1 / (step + 1), decay) of the moving average: a plain mean first, then the full memory.

    Tarvainen and Valpola, Mean Teachers Are Better Role Models, NeurIPS 2017 (their code's warm-up).

    Args:
        step: Index of the optimiser step just taken, 0 for the first.
        decay: Limit, in [0, 1).

    Returns:
        The share of the old average that is kept.

    Example:
        >>> ema_decay(0, 0.99), ema_decay(1, 0.99), ema_decay(1000, 0.99)
        (0.0, 0.5, 0.99)
    """
    return min(1.0 - 1.0 / (step + 1), decay)


def warm_start_steps(steps: int, share: float) -> int:
    """Steps on labels only before the teacher is listened to.

    Args:
        steps: Steps of the whole run.
        share: In [0, 1].

    Returns:
        round(steps * share).

    Example:
        >>> warm_start_steps(1000, 0.4)
        400
    """
    return round(steps * share)
