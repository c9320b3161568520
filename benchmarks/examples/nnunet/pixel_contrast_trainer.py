# SPDX-License-Identifier: Apache-2.0
"""nnU-Net v2 with contrast between the pixels of its decoder; deep supervision stays as it is.

export nnUNet_extTrainer=benchmarks/examples/nnunet
nnUNetv2_train DATASET 2d 0 -tr nnUNetTrainerPixelContrast
nnUNetv2_predict -d DATASET -c 2d -f 0 -tr nnUNetTrainerPixelContrast -i IMAGES -o SEGMENTATIONS
"""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

import secl_ops


class WithContrast(nn.Module):
    """nnU-Net's loss of all its outputs and, where the network learns, contrast of the features that were tapped."""

    def __init__(self, supervised: nn.Module, features: secl_ops.Tap, classes: int, ignored: int) -> None:
        super().__init__()
        self.supervised, self.features, self.weight = supervised, features, 0.1
        self.contrast = secl_ops.PixelContrastLoss(per_class=64, num_classes=classes, ignore_index=ignored)

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        """The loss of one batch."""
        loss: Tensor = self.supervised(output, target)
        if not torch.is_grad_enabled():  # nnU-Net validates
            return loss
        finest = target[0] if isinstance(target, list) else target
        added: Tensor = self.contrast(self.features(), finest[:, 0].long())
        return loss + self.weight * added


class nnUNetTrainerPixelContrast(nnUNetTrainer):  # as nnU-Net calls its own
    """The decoder's features at half the resolution are contrasted; nothing else of nnU-Net is changed."""

    loss: nn.Module

    def initialize(self) -> None:
        """Tap the network that nnU-Net has built, compiled and wrapped, and add to its loss."""
        super().initialize()
        if self.label_manager.has_regions:
            raise ValueError("nnUNetTrainerPixelContrast needs labels that exclude each other; got regions")
        levels = len(self.configuration_manager.pool_op_kernel_sizes) - 1
        features = secl_ops.tap(self.network, f"decoder.stages.{max(0, levels - 2)}")
        classes, ignored = self.label_manager.num_segmentation_heads, self.label_manager.ignore_label
        self.loss = WithContrast(self.loss, features, classes, -1 if ignored is None else ignored).to(self.device)
