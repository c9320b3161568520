# SPDX-License-Identifier: Apache-2.0
"""One colour per structure, the same in every picture."""

from __future__ import annotations

# Okabe and Ito's palette for colour-blind readers, in an order that also reads on black.
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#b8a800", "#0072b2")
GREY = "#8a8f98"


def colour(index: int) -> str:
    """Colour of class index 1, 2, ...; grey for the background 0.

    Args:
        index: Class index.

    Returns:
        A hexadecimal colour.
    """
    return GREY if index == 0 else COLOURS[(index - 1) % len(COLOURS)]


def rgb(index: int) -> tuple[int, int, int]:
    """The same colour as three bytes.

    Args:
        index: Class index.

    Example:
        >>> rgb(1)
        (86, 180, 233)
    """
    red, green, blue = bytes.fromhex(colour(index)[1:])
    return red, green, blue
