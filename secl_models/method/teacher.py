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

_Lists = tuple[list[Tensor], list[Tensor]]  # the teacher's tensors, and the student's at the same places


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
        self._buffered = next(self.model.buffers(), None) is not None  # a module may put another in the place of one
        self._averaged: tuple[nn.Module, _Lists, _Lists] | None = None  # found once: to walk the modules takes longer

    def __call__(self, x: Tensor) -> Output:
        """Run the teacher without a gradient: [B, C, *spatial] -> Output."""
        with torch.no_grad():
            output: Output = self.model(x)
        return output

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Mix the student in after optimiser step number `step` (0 for the first)."""
        if self._averaged is None or self._averaged[0] is not student or self._buffered:
            self._averaged = student, *_pairs(self.model, student)
        _, floating, others = self._averaged
        torch._foreach_lerp_(*floating, 1.0 - ema_decay(step, self._limit))
        if others[0]:
            torch._foreach_copy_(*others)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of the averaged model, named as the student's."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.model.load_state_dict(state)


def _pairs(teacher: nn.Module, student: nn.Module) -> tuple[_Lists, _Lists]:
    """Parameters and buffers of both: those that are averaged, and those that are copied."""
    found: tuple[_Lists, _Lists] = ([], []), ([], [])
    both = (chain(model.parameters(), model.buffers()) for model in (teacher, student))
    for own, new in zip(*both, strict=True):
        ours, theirs = found[0 if own.is_floating_point() else 1]
        ours.append(own)
        theirs.append(new)
    return found
