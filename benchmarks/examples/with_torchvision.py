# SPDX-License-Identifier: Apache-2.0
"""torchvision: the rows before the last convolution of DeepLabV3 or FCN are contrasted.

python -m benchmarks.examples.with_torchvision
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models import segmentation

import secl_ops

BEFORE_LAST = {"deeplabv3_resnet50": "classifier.3", "fcn_resnet50": "classifier.2"}  # the ReLU, [B, D, H / 8, W / 8]


def main(steps: int = 2, name: str = "fcn_resnet50") -> None:
    """Train on random images, whose labels are where they are bright."""
    torch.manual_seed(0)
    images = interpolate(torch.randn(2, 3, 8, 8), 64)
    labels = (images.mean(1) > 0).long()

    model = segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=2)
    features = secl_ops.tap(model, BEFORE_LAST[name])
    contrast = secl_ops.PixelContrastLoss(per_class=32, num_classes=2, ignore_index=255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = cross_entropy(model(images)["out"], labels, ignore_index=255)
        (loss + 0.1 * contrast(features(), labels)).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
