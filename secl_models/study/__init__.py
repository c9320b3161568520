# SPDX-License-Identifier: Apache-2.0
"""Methods side by side over seeds: runs, tables and pictures."""
