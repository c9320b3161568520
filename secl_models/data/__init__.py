# SPDX-License-Identifier: Apache-2.0
"""From files on disk to batches on the device."""
