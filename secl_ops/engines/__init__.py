# SPDX-License-Identifier: Apache-2.0
"""The same operations several times: `reference` is true, `native` and `triton` are fast, `select` picks."""
