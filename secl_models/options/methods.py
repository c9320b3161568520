# SPDX-License-Identifier: Apache-2.0
"""The methods of training, by name: what each minimises beside the supervised loss, and what it is called in short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """What a term of the objective asks of a step.

    Attributes:
        unmixed: View ("weak" or "strong") of the images themselves that a student of mixtures sees as well.
        taught: Whether the teacher must see the labelled images too.
        perturbed: Whether the student loses channels in that view.
        head: What the map near the output goes through: "linear", "projection" or None.
    """

    unmixed: str | None = None
    taught: bool = False
    perturbed: bool = False
    head: str | None = None


TERMS: Mapping[str, Term] = {
    "consistency": Term(),
    "mixed": Term(),
    "region": Term("strong", taught=True),
    "anatomical": Term(),
    "prototype": Term(head="linear"),
    "centroid": Term("weak", head="projection"),
    "disagreement": Term("weak", taught=True, perturbed=True),
}


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        terms: Of `method.objective.Objective`, beside the supervised loss.
        strategy: How anchors are drawn where `contrast.strategy` is "auto".
        weight: Of the contrastive terms where `contrast.weight` is null.
        short: For where few columns are left; None: the name.
        studied: Whether `secl study` runs it where no methods are named.
    """

    terms: tuple[str, ...] = ()
    strategy: str = "uniform"
    weight: float = 0.02
    short: str | None = None
    studied: bool = True

    @property
    def listens(self) -> bool:
        """Whether a teacher is asked about unlabelled images."""
        return bool(self.terms)

    @property
    def contrasts(self) -> bool:
        """Whether what `contrast` says is heard: rows of regions or of structures."""
        return not {"region", "anatomical"}.isdisjoint(self.terms)

    @property
    def mixes(self) -> bool:
        """Whether the student sees mixtures of labelled and unlabelled images."""
        return "mixed" in self.terms

    @property
    def unmixed(self) -> str | None:
        """View of the images themselves that a student of mixtures sees in a pass of its own."""
        views = [TERMS[name].unmixed for name in self.terms] if self.mixes else []
        return next(filter(None, views), None)

    @property
    def taught(self) -> bool:
        """Whether the teacher sees the labelled images: in mixtures their classes are known."""
        return not self.mixes or any(TERMS[name].taught for name in self.terms)

    @property
    def perturbed(self) -> bool:
        """Whether the student loses channels where it sees the images themselves."""
        return any(TERMS[name].perturbed for name in self.terms)

    @property
    def head(self) -> str | None:
        """What the map near the output goes through."""
        return next(filter(None, (TERMS[name].head for name in self.terms)), None)


BASELINE = "supervised"  # what every other is compared with, and what is left without unlabelled images
DEFAULT = "secl+"
METHODS: Mapping[str, Method] = {
    BASELINE: Method(short="labels only"),
    "mean-teacher": Method(("consistency",)),
    "copy-paste": Method(("mixed",)),
    "secl-region": Method(("region",), short="region", studied=False),
    "secl-anatomical": Method(("anatomical",), short="anatomical", studied=False),
    "secl": Method(("region", "anatomical")),
    DEFAULT: Method(("mixed", "anatomical"), strategy="hard", weight=0.1),
    "mixed-region": Method(("mixed", "region"), studied=False),
    "prototypes": Method(("mixed", "prototype"), studied=False),
    "centroids": Method(("mixed", "centroid"), studied=False),
    "disagreement": Method(("mixed", "disagreement"), studied=False),
}


def short_name(method: str) -> str:
    """What a method is called where few columns are left."""
    return METHODS[method].short or method
