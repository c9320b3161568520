# SPDX-License-Identifier: Apache-2.0
"""The methods of training, by name: what each minimises beside the supervised loss, and what it is called in short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        terms: Of `method.objective.Objective`, beside the supervised loss.
        short: For where few columns are left; None: the name.
        studied: Whether `secl study` runs it where no methods are named.
    """

    terms: tuple[str, ...] = ()
    short: str | None = None
    studied: bool = True

    @property
    def listens(self) -> bool:
        """Whether a teacher is asked about unlabelled images."""
        return bool(self.terms)

    @property
    def mixes(self) -> bool:
        """Whether the student sees mixtures of labelled and unlabelled images."""
        return "mixed" in self.terms


BASELINE = "supervised"  # what every other is compared with, and what is left without unlabelled images
DEFAULT = "secl+"
METHODS: Mapping[str, Method] = {
    BASELINE: Method(short="labels only"),
    "mean-teacher": Method(("consistency",)),
    "copy-paste": Method(("mixed",)),
    "secl-region": Method(("region",), "region", studied=False),
    "secl-anatomical": Method(("anatomical",), "anatomical", studied=False),
    "secl": Method(("region", "anatomical")),
    DEFAULT: Method(("mixed", "anatomical")),
}


def short_name(method: str) -> str:
    """What a method is called where few columns are left."""
    return METHODS[method].short or method
