# SPDX-License-Identifier: Apache-2.0
"""Of which structures only the largest connected part is kept."""

from __future__ import annotations

NONE = "none"
AUTO = "auto"  # of those that are one part in every labelled training case
ALL = "all"
CHOICES = (NONE, AUTO, ALL)
