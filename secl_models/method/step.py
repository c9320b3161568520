# SPDX-License-Identifier: Apache-2.0
"""What the terms of one step see, what each gives back, and the seeds of what they draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from secl_models.data.labels import IGNORED
from secl_models.method.label_maps import pseudo_labels
from secl_models.method.mixing import Mixture
from secl_models.method.output import Output

# A seed follows from the place of its stream: new ones stand at the end.
STREAMS = (
    "augment labeled", "augment unlabeled", "student pixels", "teacher pixels", "network", "mixture", "dropout",
)  # fmt: skip


class TermValue(NamedTuple):
    """One term of the objective and what it tells about itself."""

    value: Tensor  # scalar with a graph
    statistics: dict[str, Tensor]  # scalars without one


@dataclass(frozen=True)
class StepContext:
    """What the terms of one step see of this process's images; the labelled come first in every tensor."""

    student: Output  # of the strong views, L + U images, or of L mixtures of them
    teacher: Output  # of the weak views, T + U images
    weak: Tensor  # [T + U, C, *patch]
    label: Tensor  # [L, *patch] class index, -1 ignored
    position: Tensor  # [L + U] in [0, 1), relative position along the slice axis
    taught: int  # T, labelled images that the teacher sees: all or none
    step: int
    mixture: Mixture | None = None  # how the student's images were made, where they are not the views themselves
    unmixed: Output | None = None  # the student's of views of the L + U images, where it sees these beside mixtures
    annotated: Tensor | None = None  # [L, *patch] `label` with -2 - p where pixels are open; None: nowhere
    class_sets: Tensor | None = None  # [P, K + 1] bool, what a pixel of -2 - p may be
    shown: Tensor | None = None  # [U, *patch] bool, where unlabelled images are not padding; None: everywhere
    agreed: Tensor | None = None  # [U, *patch] the teacher's class as the mixed loss teaches it; None: nothing is mixed
    guess: Tensor | None = None  # [L, *patch] that class where a mixture shows its unlabelled image, else -1

    @property
    def labeled(self) -> int:
        """L, labelled images."""
        return self.label.shape[0]

    @property
    def truth(self) -> Tensor:
        """[L, *patch] class, or -2 - p, where the student's images show labelled ones, -1 elsewhere."""
        label = self.label if self.annotated is None else self.annotated
        return label if self.mixture is None else torch.where(self.mixture.inside, label, IGNORED)

    def claims(self, confidence: float) -> Tensor:
        """[U, *patch] the teacher's class of unlabelled pixels, -1 where it is unsure.

        And outside of the images, where no label ever taught it, and where the mixed loss of this step teaches another
        class, as of what is not the largest part of its structure.
        """
        claimed = pseudo_labels(self.teacher.logits[self.taught :], confidence)
        if self.shown is not None:
            claimed = torch.where(self.shown, claimed, IGNORED)
        return claimed if self.agreed is None else torch.where(claimed == self.agreed, claimed, IGNORED)


def stream_seed(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed that follows from (seed, step, stream) alone, so that a resumed run draws the same.

    Args:
        seed: Of the run.
        step: Optimiser steps done before.
        stream: One of `STREAMS`.

    Returns:
        The seed.

    Example:
        >>> stream_seed(0, 7, "student pixels") == stream_seed(0, 7, "student pixels")
        True
        >>> stream_seed(0, 7, "student pixels") == stream_seed(0, 7, "teacher pixels")
        False
    """
    words = np.random.SeedSequence([seed, step, STREAMS.index(stream)]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
