# SPDX-License-Identifier: Apache-2.0
"""The command line: its arguments, its messages, its exit statuses."""
