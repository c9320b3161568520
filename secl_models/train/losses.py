# SPDX-License-Identifier: Apache-2.0
"""The losses of the steps since the last look: looked at together, because a look waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from secl_models.options.errors import InputError


def infinite_loss(losses: Sequence[Tensor], done: int, lr: float, kept: Path) -> InputError | None:
    """What to refuse a run with of which a loss stopped being finite; None where all are. Waits for the device.

    Args:
        losses: Of the last steps, one or more.
        done: Number of the last of them, so that the message can name the very step.
        lr: Learning rate.
        kept: The last checkpoint, if there is one yet.

    Example:
        >>> print(infinite_loss([torch.tensor(1.0), torch.tensor(float("nan"))], 8, 0.1, Path("none.pt")).what)
        training step 8
    """
    finite = torch.stack(list(losses)).isfinite().tolist()
    if all(finite):
        return None
    first = finite.index(False)
    elsewhere, then = (" under another --out", f"go on from {kept}") if kept.is_file() else ("", "train again")
    return InputError(
        f"training step {done - len(finite) + 1 + first}",
        rule="the loss is a finite number",
        got=float(losses[first]),
        cure=f"lower train.lr (now {lr:g}){elsewhere}, or check the intensities and {then}",
    )
