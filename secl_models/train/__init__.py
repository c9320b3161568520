# SPDX-License-Identifier: Apache-2.0
"""One training run from its folder to its last step."""
