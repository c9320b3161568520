# SPDX-License-Identifier: Apache-2.0
"""What counts as the spacing of an image whose header contradicts itself."""

from __future__ import annotations

AUTO = "auto"  # nothing: such a file is refused
AFFINE, PIXDIM = "affine", "pixdim"
CHOICES = (AUTO, AFFINE, PIXDIM)
KEY = "data.spacing_from"
