# SPDX-License-Identifier: Apache-2.0
"""What the names of networks of segmentation_models_pytorch begin with, as in `network.name=smp:Unet/resnet34`."""

SMP = "smp:"
