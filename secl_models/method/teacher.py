# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the student, buffers included, that never sees a gradient."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from secl_models.method.networks import ContrastModel
from secl_models.method.output import Output
from secl_models.options.schedules import ema_decay


class Teacher:
    """Moving average mean <- d mean + (1 - d) student with d = min(1 - 1 / (step + 1), decay).

    Tarvainen and Valpola, NeurIPS 2017. Floating buffers are averaged too; integer buffers are copied, because
    a mean of counters means nothing. torch's AveragedModel sends a counter to the device in every step and waits.

    Args:
        student: The model that is averaged; the teacher starts as its copy.
        decay: Limit of the decay, in [0, 1).

    Attributes:
        model: The averaged model, in evaluation mode, without gradients.
    """

    def __init__(self, student: ContrastModel, decay: float) -> None:
        self._limit = decay
        self.model: ContrastModel = copy.deepcopy(student).requires_grad_(False).eval()

    def __call__(self, x: Tensor) -> Output:
        """Run the teacher without a gradient: [B, C, *spatial] -> Output."""
        with torch.no_grad():
            output: Output = self.model(x)
        return output

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Mix the student in after optimiser step number `step` (0 for the first)."""
        pairs = list(
            zip(
                chain(self.model.parameters(), self.model.buffers()),
                chain(student.parameters(), student.buffers()),
                strict=True,
            )
        )
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        others = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [own for own, _ in floating], [new for _, new in floating], 1.0 - ema_decay(step, self._limit)
        )
        if others:
            torch._foreach_copy_([own for own, _ in others], [new for _, new in others])

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of the averaged model, named as the student's."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.model.load_state_dict(state)
