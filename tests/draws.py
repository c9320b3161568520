# SPDX-License-Identifier: Apache-2.0
"""Examples drawn by hypothesis: the same ones in every run of the tests, fresh ones under `make fuzz`.

SECL_FUZZ=SEED draws them from that seed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings

SEED = os.environ.get("SECL_FUZZ")

# A busy machine is no failure, and a failing example is made small.
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.register_profile("fuzz", settings.get_profile("fixed"), derandomize=False)
settings.load_profile("fixed" if SEED is None else "fuzz")


class Examples:
    """How many examples this process has drawn."""

    drawn = 0


def examples(count: int, *drawn: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a test over `count` draws of these strategies."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*arguments: Any, **options: Any) -> None:
            Examples.drawn += 1
            test(*arguments, **options)

        given: Any = hypothesis.given
        over: Callable[..., None] = settings(max_examples=count)(given(*drawn, **named)(counted))
        return over if SEED is None else hypothesis.seed(int(SEED))(over)

    return decorate
