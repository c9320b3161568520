# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the student, buffers included, that never sees a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from secl_models.networks import ContrastModel, Output
from secl_models.ramps import ema_decay


class Teacher:
    """Moving average mean <- d mean + (1 - d) student with d = min(1 - 1 / (step + 1), decay).

    Tarvainen and Valpola, NeurIPS 2017. Floating buffers are averaged too; integer buffers are copied, because
    a mean of counters means nothing.

    Args:
        student: The model that is averaged; the teacher starts as its copy.
        decay: Limit of the decay, in [0, 1).
    """

    def __init__(self, student: ContrastModel, decay: float) -> None:
        self._limit = self._decay = decay
        self._average = AveragedModel(student, multi_avg_fn=self._mix, use_buffers=True)
        self._average.requires_grad_(False).eval()

    @property
    def model(self) -> ContrastModel:
        """The averaged model, in evaluation mode, without gradients."""
        averaged: ContrastModel = self._average.module  # type: ignore[assignment]
        return averaged

    def __call__(self, x: Tensor) -> Output:
        """Run the teacher without a gradient: [B, C, *spatial] -> Output."""
        with torch.no_grad():
            output: Output = self.model(x)
        return output

    def update(self, student: nn.Module, step: int) -> None:
        """Mix the student in after optimiser step number `step` (0 for the first)."""
        self._decay = ema_decay(step, self._limit)
        self._average.update_parameters(student)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of the averaged model, named as the student's."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; a later `update` mixes rather than copies."""
        self.model.load_state_dict(state)
        self._average.n_averaged.fill_(1)

    def _mix(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        # AveragedModel hands over groups of one dtype each.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1.0 - self._decay)
        else:
            torch._foreach_copy_(list(averaged), list(current))
