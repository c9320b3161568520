# SPDX-License-Identifier: Apache-2.0
"""Student-teacher segmentation of medical images with few labels, built on `secl_ops`."""
