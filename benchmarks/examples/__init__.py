# SPDX-License-Identifier: Apache-2.0
"""The loss in other frameworks: each file shows the lines that change, and a test trains it."""
