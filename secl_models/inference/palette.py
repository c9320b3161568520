# SPDX-License-Identifier: Apache-2.0
"""One colour per structure, the same in every picture."""

from __future__ import annotations

# Hues of Okabe and Ito's palette for colour-blind readers, each with 3 : 1 or more against white and the dark page.
COLOURS = ("#2f9ad2", "#c08400", "#009e73", "#d55e00", "#c774a2", "#857a00", "#0072b2")
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
        (47, 154, 210)
    """
    red, green, blue = bytes.fromhex(colour(index)[1:])
    return red, green, blue
