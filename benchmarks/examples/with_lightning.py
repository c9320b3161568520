# SPDX-License-Identifier: Apache-2.0
"""Lightning: the tap is made beside the network, and taken in `training_step`.

python -m benchmarks.examples.with_lightning
"""

from __future__ import annotations

import pytorch_lightning as lightning
import torch
from monai.networks.nets import BasicUNet
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secl_ops


class Segmenter(lightning.LightningModule):
    """A U-Net with contrast between the pixels of its last decoder level but one."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = BasicUNet(2, 1, classes, features=(8, 8, 16, 16, 32, 8))
        self.features = secl_ops.tap(self.network, "upcat_2")
        self.contrast = secl_ops.PixelContrastLoss(per_class=32, num_classes=classes, ignore_index=255)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy and contrast of one batch."""
        images, labels = batch
        supervised = cross_entropy(self.network(images), labels, ignore_index=255)
        contrast = self.contrast(self.features(), labels)
        self.log("contrast", contrast)
        return supervised + 0.1 * contrast

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(steps: int = 2) -> None:
    """Train on random images, whose labels are where they are bright."""
    lightning.seed_everything(0)
    images = torch.randn(4, 1, 32, 32)
    data = DataLoader(TensorDataset(images, (images[:, 0] > 0).long()), batch_size=4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=steps, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(Segmenter(classes=2), data)


if __name__ == "__main__":
    main()
