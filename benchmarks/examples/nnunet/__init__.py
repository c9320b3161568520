# SPDX-License-Identifier: Apache-2.0
"""What `nnUNet_extTrainer` names: nnU-Net imports every module of this folder."""
