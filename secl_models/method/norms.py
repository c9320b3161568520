# SPDX-License-Identifier: Apache-2.0
"""Instance norm by the kernel that is fastest where it runs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class InstanceNorm(nn.GroupNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the voxels of each channel of each image.

    On a CPU a group norm with one channel a group: the same sums, in less than half the time of torch's instance norm,
    which goes through a batch norm. Weights have the names that `nn.InstanceNorm2d` gives them.

    Args:
        channels: C.
        eps: Added to the variance.

    Example:
        >>> import torch
        >>> round(InstanceNorm(1)(torch.tensor([[[1.0, 3.0]]]))[0, 0, 1].item(), 3)
        1.0
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, *spatial]."""
        if x.device.type == "cpu":
            return super().forward(x)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def quicken_norms(module: nn.Module) -> None:
    """Put `InstanceNorm` in the place of every affine instance norm without running statistics, with its weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and child.affine and not child.track_running_stats:
            norm = InstanceNorm(child.num_features, child.eps)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            quicken_norms(child)
