# SPDX-License-Identifier: Apache-2.0
"""How fast the loss is, beside plain torch on the same work."""
