# SPDX-License-Identifier: Apache-2.0
"""The rules that options check themselves by; a broken one names the option, the rule, what came and the cure."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NoReturn

from secl_models.options.errors import InputError


def refuse(key: str, rule: str, got: object, cure: str) -> NoReturn:
    """Raise an `InputError` of these four parts."""
    raise InputError(key, rule=rule, got=got, cure=cure)


def require_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        refuse(key, "one of " + ", ".join(map(str, choices)), value, "choose one of these")


def require_range(key: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high]."""
    if not low <= value <= high:
        rule = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        refuse(key, rule, value, "choose a value inside")


def require_positive(key: str, value: float, example: float) -> None:
    """Refuse a number that is not above 0 and finite."""
    if not 0 < value < math.inf:
        refuse(key, "above 0", value, f"write {example:g}")


def require_axes(key: str, values: tuple[float, ...], dims: int, *, may_be_empty: bool = False) -> None:
    """Refuse all but one positive number for each axis."""
    if may_be_empty and not values:
        return
    if not values or len(values) != dims or min(values) <= 0:
        refuse(
            key,
            f"{dims} positive numbers, one for each of data.dims axes",
            values,
            "give one number for each axis",
        )
