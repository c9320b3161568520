# SPDX-License-Identifier: Apache-2.0
"""`python -m secl_models` is the command `secl`."""

from __future__ import annotations

from secl_models.command.cli import main

if __name__ == "__main__":
    main()
