# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to segmentations and their scores."""
