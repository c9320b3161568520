# SPDX-License-Identifier: Apache-2.0
"""segmentation_models_pytorch: any of its decoders, which give one map, is tapped by the name "decoder".

python -m benchmarks.examples.with_segmentation_models
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch.nn.functional import cross_entropy, interpolate

import secl_ops


def main(steps: int = 2, name: str = "Unet") -> None:
    """Train on random images, whose labels are where they are bright."""
    torch.manual_seed(0)
    images = interpolate(torch.randn(2, 3, 8, 8), 64)
    labels = (images.mean(1) > 0).long()

    model = smp.create_model(name, encoder_name="resnet18", encoder_weights=None, classes=2)
    features = secl_ops.tap(model, "decoder")  # [B, D, *spatial]; of a Unet "decoder.blocks.3" has half the size
    contrast = secl_ops.PixelContrastLoss(per_class=32, num_classes=2, ignore_index=255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = cross_entropy(model(images), labels, ignore_index=255)
        (loss + 0.1 * contrast(features(), labels)).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
