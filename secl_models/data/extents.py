# SPDX-License-Identifier: Apache-2.0
"""How large the images of a data set are, and how large their voxels: from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from secl_models.data.volumes import Volume


@dataclass
class Extents:
    """Shapes and voxel sides of the images that were shown to it.

    Example:
        >>> extents = Extents(shapes=[(256, 208, 10), (256, 12345)], sides=[(1.25, 1.25, 10.0), (1.5, 1.5)])
        >>> extents.sentence()
        'images of 256 x 208-12345 x 10 voxels of 1.25-1.5 x 1.25-1.5 x 10 mm'
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sides: list[tuple[float, ...]] = field(default_factory=list)  # mm

    def note(self, volume: Volume) -> None:
        """Take one image into account.

        Args:
            volume: As it is stored.
        """
        self.shapes.append(volume.image.shape[1:])
        if volume.spacing is not None:
            self.sides.append(tuple(volume.spacing))

    def sentence(self) -> str:
        """Sizes by stored axis; empty where no image was seen."""
        if not self.shapes:
            return ""
        sides = f" of {_spans(self.sides)} mm" if self.sides else ""
        return f"images of {_spans(self.shapes)} voxels{sides}"


def _columns(rows: Sequence[tuple[float, ...]]) -> list[list[float]]:
    """The values of each axis that a row has."""
    return [[row[axis] for row in rows if axis < len(row)] for axis in range(max(map(len, rows)))]


def _spans(rows: Sequence[tuple[float, ...]]) -> str:
    return " x ".join(_span(column) for column in _columns(rows))


def _span(values: Sequence[float]) -> str:
    smallest, largest = (
        str(value) if isinstance(value, int) else f"{value:.4g}" for value in (min(values), max(values))
    )
    return smallest if smallest == largest else f"{smallest}-{largest}"
