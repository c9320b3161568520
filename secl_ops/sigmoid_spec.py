# SPDX-License-Identifier: Apache-2.0
"""The options of the sigmoid loss: declared once, checked, and as an op schema carries them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from secl_ops import spec
from secl_ops.spec import Flag


class Logit(NamedTuple):
    """What makes the logit of a pair, scale * s + bias, of its similarity s; a tensor of one element may learn."""

    scale: float | Tensor
    bias: float | Tensor

    @classmethod
    def of(cls, scale: float, bias: float, learned_scale: Tensor | None, learned_bias: Tensor | None) -> Logit:
        """From the arguments of an op, where a tensor stands in place of its number."""
        return cls(scale if learned_scale is None else learned_scale, bias if learned_bias is None else learned_bias)

    def numbers(self) -> tuple[float, float]:
        """Their values, for which a GPU would be waited for."""
        scale, bias = (float(each.detach()) if isinstance(each, Tensor) else float(each) for each in self)
        return scale, bias

    def arguments(self) -> tuple[float, float, Tensor | None, Tensor | None]:
        """As arguments of an op."""
        numbers = (0.0 if isinstance(each, Tensor) else float(each) for each in self)
        tensors = (each if isinstance(each, Tensor) else None for each in self)
        return *numbers, *tensors  # type: ignore[return-value]  # two of each


@dataclass(frozen=True)
class SigmoidSpec:
    """The options of the loss; validates itself."""

    scale: float | Tensor = 10.0
    bias: float | Tensor = -10.0
    normalize: bool = True
    reduction: str = "mean"
    backend: str = "auto"
    validate: bool = False

    def __post_init__(self) -> None:
        spec.check_choice("reduction", self.reduction, spec.REDUCTIONS)
        spec.check_choice("backend", self.backend, spec.BACKENDS)
        spec.check_bool("normalize", self.normalize)
        spec.check_bool("validate", self.validate)
        for name in ("scale", "bias"):
            check_number(name, getattr(self, name), validate=self.validate)

    @property
    def logit(self) -> Logit:
        """The numbers of a pair's logit."""
        return Logit(self.scale, self.bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The options that are tensors, by name."""
        return {name: value for name, value in self.logit._asdict().items() if isinstance(value, Tensor)}

    def flags(self, *, shared: bool, anchors: bool = False) -> int:
        """The `Flag` bits of a pass: whether the keys are the anchors, and whether these ask for a gradient."""
        return Flag.SELF.value * shared | Flag.ANCHOR_GRADIENT.value * anchors


def check_number(name: str, value: object, *, validate: bool) -> None:
    """Refuse anything but a finite number, or a floating tensor of one; its value is read only under `validate`."""
    if isinstance(value, Tensor):
        spec.check_tensor(name, value)
        if value.numel() != 1 or value.dtype not in spec.DTYPES:
            raise ValueError(
                f"{name} must be a float or a floating tensor of one element; got a tensor of shape "
                f"{tuple(value.shape)} and dtype {value.dtype}"
            )
        if not validate:
            return
        value = float(value.detach())
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float or a one-element tensor; got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
