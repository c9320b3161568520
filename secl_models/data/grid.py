# SPDX-License-Identifier: Apache-2.0
"""Where voxels lie in the world: affine and spacing of a NIfTI header, and headers that contradict themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from secl_models.options.errors import InputError
from secl_models.options.spacing import AFFINE, AUTO, KEY, PIXDIM

FloatArray = npt.NDArray[np.float64]
MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI unit codes of metre and micron; all others are read as mm
SPACING_TOLERANCE = 0.01  # writers round sides to two or three digits: 0.98 of 0.9766 mm
SAME_DIRECTION = 0.7  # cosine between an axis of the sform and of the qform, from which they agree on where it runs
CHOOSE = f"find out which is right, and add --set {KEY}={PIXDIM} or --set {KEY}={AFFINE}"


def grid_of(header: Any, stored: Any, axes: int, path: Path, spacing_from: str) -> tuple[FloatArray, tuple[float, ...]]:
    """Affine and voxel sides in mm of a NIfTI file.

    Args:
        header: As nibabel mends it.
        stored: The same as it lies in the file.
        axes: Spatial axes, 2 or 3.
        path: The file, for messages.
        spacing_from: `data.spacing_from`.

    Returns:
        Voxel index to world `[4, 4]`; a side for each axis.

    Raises:
        InputError: The header stores no usable affine or no sides, or it contradicts itself and `spacing_from` leaves
            open what counts.
    """
    pixdim = np.abs(np.asarray(stored["pixdim"][1 : 1 + axes], np.float64))
    pixdim[~np.isfinite(pixdim) | (pixdim == 0)] = np.nan  # not stored
    affine = _affine(header, stored, axes, path)
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise InputError(path, rule="the affine is invertible", got=affine.tolist(), cure="write the header anew")
    sides = voxel_sides(affine)[:axes]
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)  # the lowest three bits: space
    if spacing_from == AUTO:
        _require_one_spacing(sides * scale, pixdim * scale, path)
        _require_one_direction(header, affine, path)
    elif spacing_from == PIXDIM:
        if np.isnan(pixdim).any():
            cure = f"write them, or add --set {KEY}={AFFINE}"
            raise InputError(path, rule="pixdim holds sides above 0", got=_listed(stored["pixdim"][1:4]), cure=cure)
        affine[:3, :axes] *= pixdim / sides
        sides = pixdim
    return affine, tuple(float(side) * scale for side in sides)


def voxel_sides(affine: FloatArray) -> FloatArray:
    """Lengths of the three axes of a voxel, in the unit of the affine."""
    sides: FloatArray = np.linalg.norm(affine[:3, :3], axis=0)
    return sides


def _affine(header: Any, stored: Any, axes: int, path: Path) -> FloatArray:
    """That of the sform, else of the qform, else of pixdim alone."""
    if int(header["sform_code"]):
        return np.array(header.get_sform(), np.float64)
    sides = np.asarray(stored["pixdim"][1 : 1 + axes], np.float64)
    form = int(header["qform_code"])
    usable = np.abs(sides) if form else sides
    if not (np.isfinite(usable) & (usable > 0)).all():
        cure = "write the sides in mm into pixdim, or the affine into the sform"
        raise InputError(path, rule="pixdim holds sides above 0", got=_listed(sides), cure=cure)
    return np.array(header.get_qform() if form else header.get_base_affine(), np.float64)


def _require_one_spacing(sides: FloatArray, pixdim: FloatArray, path: Path) -> None:
    known = ~np.isnan(pixdim)
    if (np.abs(sides - pixdim)[known] > SPACING_TOLERANCE * np.minimum(sides, pixdim)[known]).any():
        got = f"{_listed(sides)} mm of the affine and {_listed(pixdim)} mm of pixdim"
        raise InputError(path, rule="affine and pixdim give one voxel spacing", got=got, cure=CHOOSE)


def _require_one_direction(header: Any, affine: FloatArray, path: Path) -> None:
    if not (int(header["sform_code"]) and int(header["qform_code"])):
        return
    try:
        other = np.array(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError):
        return  # the sform counts
    ours, theirs = (form[:3, :3] / voxel_sides(form) for form in (affine, other))
    if not (np.einsum("ij,ij->j", ours, theirs) >= SAME_DIRECTION).all():
        raise InputError(
            path,
            rule="sform and qform agree on where the axes run",
            got=f"directions {_listed(ours.T.ravel(), ', ')} of the sform and {_listed(theirs.T.ravel(), ', ')}",
            cure=f"correct the form that is wrong, or add --set {KEY}={AFFINE}, which takes the sform",
        )


def _listed(values: Any, between: str = " x ") -> str:
    return between.join(f"{float(value):.5g}" for value in values)
