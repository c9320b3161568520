# SPDX-License-Identifier: Apache-2.0
"""MONAI: a loss function of logits and labels that takes the features by itself, for a `SupervisedTrainer`.

python -m benchmarks.examples.with_monai
python -m monai.bundle run --config_file benchmarks/examples/monai_bundle/train.yaml
"""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

import secl_ops


class WithContrast(nn.Module):
    """DiceCELoss, and contrast of the features that the same forward pass left in the tap."""

    def __init__(self, features: secl_ops.Tap, classes: int) -> None:
        super().__init__()
        self.supervised = DiceCELoss(to_onehot_y=True, softmax=True)
        self.features = features
        self.contrast = secl_ops.PixelContrastLoss(per_class=32, num_classes=classes)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits [B, C, *spatial] and labels [B, 1, *spatial]."""
        supervised: Tensor = self.supervised(logits, labels)
        return supervised + 0.1 * self.contrast(self.features(), labels[:, 0].long())


def main(steps: int = 2) -> None:
    """Train on random images, whose labels are where they are bright."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 32, 32)
    network = BasicUNet(2, 1, 2, features=(8, 8, 16, 16, 32, 8))
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=steps,
        train_data_loader=[{"image": images, "label": (images > 0).long()}],
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        loss_function=WithContrast(secl_ops.tap(network, "upcat_2"), classes=2),
    )
    trainer.run()


if __name__ == "__main__":
    main()
