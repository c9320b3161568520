# SPDX-License-Identifier: Apache-2.0
"""The compiled extension `secl_ops/_C`: loaded once where it was built, and the reason where it was not."""

from __future__ import annotations

from pathlib import Path

import torch

HOW_TO_BUILD = "install g++ and run `SECL_BUILD=cpu pip install --no-build-isolation .` from the source folder"


def _load() -> str | None:
    found = sorted(Path(__file__).parent.glob("_C.*so"))
    if not found:
        return f"the C++ extension was not built (secl_ops/_C is absent); {HOW_TO_BUILD}"
    try:
        torch.ops.load_library(str(found[0]))  # type: ignore[no-untyped-call]  # torch types it not
    except OSError as error:
        return f"the C++ extension {found[0].name} does not load: {error}; {HOW_TO_BUILD}"
    return None


ABSENCE = _load()
"""None where `torch.ops.secl_native` is registered, else the reason why not."""
