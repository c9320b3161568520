# SPDX-License-Identifier: Apache-2.0
"""Schedules: end points, monotony, and that nothing happens before the start."""

from __future__ import annotations

from itertools import pairwise

import pytest

from secl_models.options.schedules import ema_decay, linear_ramp, poly_lr, sigmoid_ramp, warm_start_steps


@pytest.mark.parametrize("ramp", [linear_ramp, sigmoid_ramp])
def test_ramp_is_zero_then_grows_then_stays(ramp: object) -> None:
    assert callable(ramp)
    weights = [ramp(step, 10, 5) for step in range(30)]
    assert weights[:10] == [0.0] * 10
    assert 0.0 < weights[10] < 1.0
    assert weights == sorted(weights)
    assert set(weights[14:]) == {1.0}


@pytest.mark.parametrize("ramp", [linear_ramp, sigmoid_ramp])
def test_ramp_without_length_switches_on(ramp: object) -> None:
    assert callable(ramp)
    assert (ramp(4, 5, 0), ramp(5, 5, 0)) == (0.0, 1.0)


def test_learning_rate_falls_to_zero() -> None:
    rates = [poly_lr(step, 50, 0.01) for step in range(51)]
    assert rates[0] == 0.01
    assert rates[-1] == 0.0
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_decay_is_a_plain_mean_first() -> None:
    """With decays 0, 1/2, 2/3, ... the average after n steps is the mean of n values."""
    values, average = [5.0, 1.0, 3.0, 7.0], 0.0
    for step, value in enumerate(values):
        average = ema_decay(step, 0.99) * average + (1.0 - ema_decay(step, 0.99)) * value
    assert average == pytest.approx(4.0)
    assert ema_decay(10_000, 0.99) == 0.99


def test_warm_start_is_a_share_of_the_steps() -> None:
    assert [warm_start_steps(1000, share) for share in (0.0, 0.4, 1.0)] == [0, 400, 1000]
