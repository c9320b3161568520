# SPDX-License-Identifier: Apache-2.0
"""The slices of a DICOM series piled up to one even stack, or what keeps them from being one, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secl_models.data.cases import Case
from secl_models.data.dicom import Frame, read_frames, read_pixels
from secl_models.data.grid import FloatArray, voxel_sides
from secl_models.data.volumes import Volume, require_finite
from secl_models.options.errors import InputError

SAME_PLACE = 0.01  # mm between two images of one place
UNEVEN = 0.1  # times the distance of slices: scanners round their positions to hundredths of a millimetre
SHEARED = 0.25  # pixels that a stack may lean aside from its first slice to its last
PARALLEL = 1e-3  # between direction cosines of one plane; they are stored with six digits
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_CHOOSE = "choose another series with --series, or export those that belong together"


@dataclass(frozen=True, eq=False)
class Stack:
    """The grid of a series.

    Attributes:
        frames: Along the third axis, from the first slice to the last.
        affine: Voxel index (column, row, slice) to mm towards right, front and head, as NIfTI has it: [4, 4].
    """

    frames: tuple[Frame, ...]
    affine: FloatArray


def read_stack(files: Sequence[Path], what: str) -> Stack:
    """The grid of a series, from its headers alone.

    Args:
        files: Of one series, in any order.
        what: Name of the series in messages.

    Raises:
        InputError: The images are no even stack; the message says where it breaks.
    """
    return pile(read_frames(files, what), what)


def load_series(case: Case) -> Volume:
    """Intensities and grid of a DICOM series, as `load_volume` gives those of other files.

    Args:
        case: Of a series.

    Raises:
        InputError: As for `read_stack`; the pixels cannot be decoded, or are not finite.
    """
    what = str(case.series)
    stack = read_stack(case.image, what)
    image = read_pixels(stack.frames, what)[None]
    require_finite(image, what)
    return Volume(case, image, None, stack.affine, tuple(map(float, voxel_sides(stack.affine))))


def pile(frames: Sequence[Frame], what: str) -> Stack:
    """Order slices along their common normal.

    Args:
        frames: Of one series, in any order.
        what: Name of the series in messages.

    Returns:
        The stack; its axes are right-handed, so that the order of files and instance numbers does not matter.

    Raises:
        InputError: Slices of several sizes, spacings or directions; one slice; two at one place; one missing; a stack
            that leans, as under a tilted gantry.
    """
    _require_one_plane(frames, what)
    across, down = frames[0].axes
    normal = np.cross(across, down)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    heights = np.array([frame.position @ normal for frame in frames])
    _require_one_each(frames, heights, what)
    if len(frames) < 2:
        got, cure = "1 slice, as of a localiser or a projection", "name the folder of all slices"
        cure += ", or choose another series with --series"
        raise InputError(what, rule="an image is a stack of slices", got=got, cure=cure)
    _require_even(frames, heights, what)
    step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
    _require_upright(np.array([frame.position - frames[0].position for frame in frames]), normal, what, frames[0])
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([across * frames[0].sides[0], down * frames[0].sides[1], step], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ frames[0].position
    return Stack(tuple(frames), affine)


def _require_one_plane(frames: Sequence[Frame], what: str) -> None:
    first = frames[0]
    if not all(np.isfinite([*frame.position, *frame.axes.ravel()]).all() for frame in frames):
        raise InputError(what, rule="positions are finite numbers", got="one that is not", cure="export it again")
    if np.abs(first.axes @ first.axes.T - np.eye(2)).max() > PARALLEL or min(first.sides) <= 0:
        got = f"directions {np.round(first.axes, 4).tolist()}, sides {first.sides}"
        cure = "export the series again"
        raise InputError(what, rule="rows and columns are at right angles, pixels have sides", got=got, cure=cure)
    sizes = _counted(f"{frame.size[0]} x {frame.size[1]}" for frame in frames)
    if ", " in sizes:
        raise InputError(what, rule="the slices of an image are of one size", got=sizes, cure=_CHOOSE)
    planes = [np.abs(frame.axes - first.axes).max() <= PARALLEL for frame in frames]
    if not all(planes):
        got = f"{planes.count(False)} of {len(planes)} slices turned against the first, as in a localiser"
        raise InputError(what, rule="the slices of an image are parallel", got=got, cure=_CHOOSE)
    sides = _counted(f"{frame.sides[0]:.4g} x {frame.sides[1]:.4g} mm" for frame in frames)
    if ", " in sides:
        raise InputError(what, rule="the pixels of an image are of one size", got=sides, cure=_CHOOSE)


def _require_one_each(frames: Sequence[Frame], heights: FloatArray, what: str) -> None:
    """One image for each place; else what tells those of one place apart is named."""
    same = np.diff(heights) <= SAME_PLACE
    if not same.any():
        return
    places = len(frames) - int(same.sum())
    pairs = [(one, other) for one, other, twin in zip(frames, frames[1:], same, strict=False) if twin]
    traits = dict.fromkeys(name for pair in pairs for one in pair for name in one.traits)
    differing = [name for name in traits if any(a.traits.get(name) != b.traits.get(name) for a, b in pairs)]
    got = f"{len(frames)} images at {places} places"
    if not differing:
        cure = "remove the copies, or export again what belongs to one image"
        raise InputError(what, rule="each place has one image", got=f"{got}, alike in what tells apart", cure=cure)
    values = {name: len({frame.traits.get(name) for frame in frames}) for name in differing}
    name = min(differing, key=lambda name: abs(values[name] * places - len(frames)))
    got += f"; {name} has {values[name]} values" + (" (phases)" if "Trigger" in name or "Temporal" in name else "")
    cure = f"export one series, or one folder, for each value of {name}"
    raise InputError(what, rule="each place has one image", got=got, cure=cure)


def _require_even(frames: Sequence[Frame], heights: FloatArray, what: str) -> None:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    drift = heights - np.linspace(heights[0], heights[-1], len(heights))
    if max(np.ptp(gaps), np.abs(drift).max()) <= UNEVEN * usual:
        return
    worst = int(np.abs(gaps - usual).argmax())
    missing = round(gaps[worst] / usual) - 1
    multiple = missing > 0 and abs(gaps[worst] - (missing + 1) * usual) <= UNEVEN * usual
    got = f"{gaps[worst]:.4g} mm between images {frames[worst].number} and {frames[worst + 1].number}"
    got += f" where others lie {usual:.4g} mm apart" + (f": {missing} missing" if multiple else "")
    cure = "export the whole series again" if multiple else "export it again, or convert it with a tool that resamples"
    raise InputError(what, rule="slices are evenly spaced", got=got, cure=cure)


def _require_upright(shifts: FloatArray, normal: FloatArray, what: str, first: Frame) -> None:
    """Every slice lies behind the first, [n, 3] mm away from it, not aside."""
    heights = shifts @ normal
    aside = np.linalg.norm(shifts - heights[:, None] * normal, axis=1)
    worst = int(aside.argmax())
    if aside[worst] > SHEARED * min(first.sides):
        angle = np.degrees(np.arctan2(aside[worst], heights[worst]))
        got = f"slices that lean by {angle:.1f} degrees, as under a tilted gantry"
        cure = "resample it, as by `dcm2niix -z y FOLDER`, which corrects the tilt, and segment that file"
        raise InputError(what, rule="slices lie straight behind each other", got=got, cure=cure)


def _counted(kinds: Iterable[Hashable]) -> str:
    """`512 x 512`, or `512 x 512 (20), 256 x 256 (1)`."""
    counts = Counter(kinds).most_common()
    return str(counts[0][0]) if len(counts) == 1 else ", ".join(f"{kind} ({count})" for kind, count in counts)
