# SPDX-License-Identifier: Apache-2.0
"""What a run may be told: every option declared once, its presets, its schedules, and how a bad value is refused."""
