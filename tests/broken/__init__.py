# SPDX-License-Identifier: Apache-2.0
"""Folders that something went wrong with, and the commands that must not fall over them."""
