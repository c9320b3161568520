# SPDX-License-Identifier: Apache-2.0
"""No number from a wrong result: loss and gradients are held against float64 before anything is timed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.budget import assert_within_budget
from benchmarks.cases import Answer, Case, truth
from benchmarks.contenders import YARDSTICKS, LeftOutError, Step, contender, names, ours, refuse_too_many
from benchmarks.packages import CannotExpressError

S = TypeVar("S")
REASON = 160  # characters of a failure that a table keeps
PLAIN = (LeftOutError, CannotExpressError)  # their message says it all


class Admitted(NamedTuple, Generic[S]):
    """Who runs and is right, and why each of the others is not timed."""

    steps: dict[str, S]
    refused: dict[str, str]


def hold(name: str, answer: Answer, right: Answer, plain: Answer, temperature: float, dtype: torch.dtype) -> None:
    """Hold loss and gradients against the truth, within the error budget.

    Raises:
        AssertionError: One is further from the truth than twice what plain torch is, and a rounding.
    """
    steepness = 4 / temperature  # one rounding of a similarity, through an exponential: as in tests/test_backends.py

    def check(part: str, actual: Tensor, exact: Tensor, usual: Tensor, magnitude: float) -> None:
        assert_within_budget(
            f"{name}, {part}", actual, exact, usual.to(dtype), amplification=steepness, magnitude=magnitude
        )

    if answer.loss is None or right.loss is None or plain.loss is None:
        raise AssertionError(f"{name}: no loss")
    check("loss", answer.loss, right.loss, plain.loss, 1 / temperature)
    for place, (actual, exact, usual) in enumerate(
        zip(answer.gradients, right.gradients, plain.gradients, strict=True)
    ):
        check(f"gradient of the {('anchors', 'keys')[place]}", actual, exact, usual, 0.0)


def agree(case: Case, name: str, answer: Answer) -> None:
    """Hold a contender against the reference backend in float64; plain fp32 is no contender: none is its own judge.

    Raises:
        AssertionError: It is wrong.
    """
    right, plain = truth(case), truth(case, torch.float32)
    hold(f"{name}, {case.name}", answer, right, plain, case.temperature, getattr(torch, case.dtype))


def reason(error: Exception) -> str:
    """A failure as a table keeps it."""
    text = str(error) if isinstance(error, PLAIN) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:REASON]


def admit(case: Case, without: Collection[str] = ()) -> Admitted[Step]:
    """Let every contender compute the case once, but for those that the caller leaves out.

    Raises:
        SystemExit: Ours runs and is wrong: then nothing is timed at all.
    """
    admitted = Admitted[Step]({}, {})
    for name in names(case):
        if name in without:
            admitted.refused[name] = "left out: by --without"
            continue
        try:
            refuse_too_many(case, name)
            step = contender(case, name)
            answer = step()
            if name not in YARDSTICKS:
                agree(case, name, answer)
            admitted.steps[name] = step
        except AssertionError as error:
            if name in ours(case.device):
                raise SystemExit(f"{error}; nothing was timed") from error
            admitted.refused[name] = f"wrong: {error}"
        except Exception as error:  # a rival may fail in any way of its own; the table says how
            admitted.refused[name] = reason(error)
    return admitted
