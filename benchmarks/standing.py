# SPDX-License-Identifier: Apache-2.0
"""Where ours stands in a case: beside the fastest rival, beside the bare matrix products, and beside what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.contenders import YARDSTICKS

FEW_ROWS = 1024
MOST_OF_PRODUCTS = 0.8  # of the time of the bare products: as good as the wanted factor, from FEW_ROWS up


def is_ours(contender: str) -> bool:
    """Whether this is one of our backends; the reference is the truth, no contender of ours."""
    return contender.startswith("secl_ops") and "reference" not in contender


def is_rival(contender: str) -> bool:
    """Whether this is the work of someone else; the bare products are no answer."""
    return not contender.startswith("secl_ops") and contender not in YARDSTICKS


def wanted(rows: int) -> float:
    """How many times as fast as the fastest rival a case of so many anchors should be."""
    return 1.2 if rows < FEW_ROWS else 2.0


class Standing(NamedTuple):
    """The figures of one case."""

    rows: int
    own: float  # milliseconds, as below
    rival: str  # the fastest; empty: none ran
    rival_ms: float
    products: float | None  # None: not timed

    @property
    def factor(self) -> float:
        """Times as fast as the fastest rival; 0 where none ran."""
        return self.rival_ms / self.own

    @property
    def share(self) -> float | None:
        """Times the time of the bare products."""
        return self.own / self.products if self.products else None

    @property
    def met(self) -> bool:
        """Whether the case is where it should be."""
        near = self.rows >= FEW_ROWS and self.share is not None and self.share <= MOST_OF_PRODUCTS
        return near or self.factor >= wanted(self.rows)

    def __str__(self) -> str:
        beside = f"{self.factor:.2f} x the speed of the fastest rival ({self.rival})" if self.rival else "no rival ran"
        return beside if self.share is None else f"{beside}, {self.share:.2f} x the time of the bare products"

    @property
    def judged(self) -> str:
        """The figures with what is wanted and whether it is reached."""
        goal = f"{wanted(self.rows):g} x the rival is wanted"
        if self.rows >= FEW_ROWS:
            goal += f", or {MOST_OF_PRODUCTS:g} x the products"
        return f"{self}: {'met' if self.met else 'MISSED'}, {goal}"


def standing(rows: int, medians: Mapping[str, float]) -> Standing | None:
    """Where ours stands among the medians of all contenders that ran; None where ours did not.

    Example:
        >>> print(standing(64, {"secl_ops native": 2.0, "eager torch": 3.0, "products, 1024 rows": 1.0}))
        1.50 x the speed of the fastest rival (eager torch), 2.00 x the time of the bare products
    """
    own = [ms for name, ms in medians.items() if is_ours(name)]
    if not own:
        return None
    rivals = {name: ms for name, ms in medians.items() if is_rival(name)}
    fastest = min(rivals, key=rivals.__getitem__, default="")
    bare = [ms for name, ms in medians.items() if name in YARDSTICKS]
    return Standing(rows, min(own), fastest, rivals.get(fastest, 0.0), min(bare, default=None))
