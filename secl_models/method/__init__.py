# SPDX-License-Identifier: Apache-2.0
"""The student, its teacher, and what one optimiser step does with them."""
