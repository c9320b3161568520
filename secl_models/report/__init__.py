# SPDX-License-Identifier: Apache-2.0
"""The page that shows what a run became."""
