# SPDX-License-Identifier: Apache-2.0
"""No number from a wrong result: loss and gradient are held against float64 before anything is timed."""

from __future__ import annotations

import torch

from benchmarks.cases import TEMPERATURE, Answer, Case, truth
from benchmarks.contenders import OURS, YARDSTICKS, Step, contender, names
from tests.budget import assert_within_budget

REASON = 160  # characters of a failure that a table keeps


def agree(case: Case, name: str, answer: Answer) -> None:
    """Hold a contender's loss and gradient against the reference backend in float64, within the tests' budget.

    Raises:
        AssertionError: One is further from the truth than twice what plain torch is, and a rounding.
    """
    right, plain = truth(case), truth(case, torch.float32)  # plain is none of the contenders: no one is its own judge
    steepness = 4 / TEMPERATURE  # one rounding of a similarity, through an exponential: as in tests/test_backends.py
    for part, magnitude in (("loss", 1 / TEMPERATURE), ("gradient", 0.0)):
        actual, exact, usual = (getattr(each, part) for each in (answer, right, plain))
        assert_within_budget(
            f"{name}, {case.name}, {part}", actual, exact, usual, amplification=steepness, magnitude=magnitude
        )


def admit(case: Case) -> tuple[dict[str, Step], dict[str, str]]:
    """The contenders that run and are right, and why each of the others is not timed.

    Raises:
        SystemExit: Ours runs and is wrong: then nothing is timed at all.
    """
    right: dict[str, Step] = {}
    refused: dict[str, str] = {}
    for name in names(case):
        try:
            step = contender(case, name)
            answer = step()
            if name not in YARDSTICKS:
                agree(case, name, answer)
            right[name] = step
        except AssertionError as error:
            if name == OURS:
                raise SystemExit(f"{error}; nothing was timed") from error
            refused[name] = f"wrong: {error}"
        except Exception as error:  # a rival may fail in any way of its own; the table says how
            refused[name] = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
    return right, refused
