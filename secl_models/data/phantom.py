# SPDX-License-Identifier: Apache-2.0
"""A synthetic short-axis cardiac MR data set: three structures, what surrounds them, a scanner's flaws."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from secl_models.data.cases import DataSet
from secl_models.data.files import partial_path
from secl_models.data.folders import note_written
from secl_models.data.layouts import read_data_set
from secl_models.options.errors import InputError

FIELD_OF_VIEW = 172.8  # mm: 96 pixels of 1.8 mm
STACK = 96.0  # mm: 12 slices of 8 mm
CLASSES = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
RIGHT, WALL, LEFT = CLASSES

Plane = npt.NDArray[np.float64]  # [H, W]


@dataclass(frozen=True)
class _Patient:
    """What differs between patients; lengths in mm, signals relative to bright blood."""

    angle: float  # of the septum
    centre: tuple[float, float]
    drift: tuple[float, float]  # of the centre per slice towards the apex
    base: float  # mm from the first slice
    length: float  # base to apex
    radius: float  # outer, left ventricle at its widest
    thickness: float
    septum: float  # septal over lateral thickness
    oval: tuple[float, float, float, float]  # strength and phase of the 2nd and 3rd harmonic of the contour
    right: tuple[float, float, float]  # radius and offset over `radius`, share of `length` that is reached
    papillary: float
    blood: float
    right_blood: float
    muscle: float
    liver: float
    stomach: float
    tissue: float  # of the mediastinum
    fat: float
    lung: float
    gain: float  # scanner units of signal 1
    noise: float


@dataclass(frozen=True)
class _Heart:
    """Signed distances of one slice in mm, positive inside."""

    outer: Plane
    cavity: Plane
    right: Plane
    papillary: Plane


def write_phantom(
    out: Path,
    *,
    cases: int = 36,
    labeled: int = 16,
    size: tuple[int, int, int] = (96, 96, 12),
    seed: int = 0,
) -> DataSet:
    """Write a cardiac-like NIfTI data set in the Decathlon layout, equal for equal arguments.

    Patients differ in size, position, rotation, wall thickness, contrast, bias field and noise; liver,
    stomach, chest wall, aorta and atria have the signals of the structures. The field of view stays, so that
    `size` sets the spacing.

    Args:
        out: Folder to create; it appears whole or not at all.
        cases: Patients in all.
        labeled: Patients with a label file (`imagesTr`); the others go to `imagesUn`.
        size: Voxels per axis; the last is the slice axis.
        seed: Of everything random.

    Returns:
        The data set as `read_data_set` sees it.

    Raises:
        InputError: The folder holds something, or a number is out of range.

    Example:
        >>> import tempfile
        >>> data = write_phantom(Path(tempfile.mkdtemp()) / "phantom", cases=4, labeled=3, size=(32, 32, 4))
        >>> data.classes[2], len(data.cases)
        ('myocardium', 4)
    """
    _require_arguments(out, cases, labeled, size)
    partial = partial_path(out)
    try:
        for folder in ("imagesTr", "labelsTr", "imagesUn"):
            (partial / folder).mkdir(parents=True)
        names = [f"phantom_{index:03d}" for index in range(1, cases + 1)]
        for index, name in enumerate(names):
            rng = np.random.default_rng([seed, index])
            image, label = _scan(_draw_patient(rng), size, rng)
            affine = _oblique_affine(size, rng)
            _write(partial / ("imagesTr" if index < labeled else "imagesUn") / f"{name}.nii.gz", image, affine)
            if index < labeled:
                _write(partial / "labelsTr" / f"{name}.nii.gz", label, affine)
        (partial / "dataset.json").write_text(json.dumps(_description(names[:labeled]), indent=1) + "\n")
        note_written(partial, *(str(file.relative_to(partial)) for file in partial.rglob("*.*")))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_data_set(out)


def _require_arguments(out: Path, cases: int, labeled: int, size: tuple[int, int, int]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, rule="the folder is new or empty", got="files in it", cure="name another folder")
    if not 3 <= labeled <= cases:
        rule = "labelled patients are 3 (to train, validate, test) up to all cases"
        raise InputError("labeled", rule=rule, got=f"{labeled} of {cases}", cure="raise or lower it")
    if min(size[:2]) < 32 or size[2] < 4:
        raise InputError("size", rule="at least 32 x 32 x 4 voxels", got=size, cure="raise it")


def _description(names: list[str]) -> dict[str, object]:
    return {
        "name": "Phantom",
        "description": "Synthetic short-axis cardiac images; no patient was scanned",
        "modality": {"0": "MRI"},
        "labels": {"0": "background"} | {str(value): name for value, name in CLASSES.items()},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }


def _write(path: Path, array: npt.NDArray[np.generic], affine: Plane) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _oblique_affine(size: tuple[int, int, int], rng: np.random.Generator) -> Plane:
    """A short-axis plane: turned out of the axes of the scanner by angles around those usual for hearts."""
    turn = Rotation.from_euler("zyx", np.array([45.0, -35.0, 20.0]) + rng.normal(0, 8, 3), degrees=True)
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() * _spacing(size)
    affine[:3, 3] = affine[:3, :3] @ (-np.array(size) / 2) + rng.normal(0, 15, 3)
    return affine


def _spacing(size: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    return np.array([FIELD_OF_VIEW / size[0], FIELD_OF_VIEW / size[1], STACK / size[2]])


def _draw_patient(rng: np.random.Generator) -> _Patient:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    radius, blood = between(22, 35), between(0.6, 1.0)
    muscle = blood * between(0.33, 0.56)
    return _Patient(
        angle=np.deg2rad(between(-35, 35)),
        centre=(between(-15, 15), between(-15, 15)),
        drift=(between(-0.15, 0.15), between(-0.15, 0.15)),
        base=between(2, 16),
        length=between(62, 84),
        radius=radius,
        thickness=between(5.5, 13),
        septum=between(0.85, 1.35),
        oval=(between(0, 0.08), between(0, 2 * np.pi), between(0, 0.04), between(0, 2 * np.pi)),
        right=(between(0.95, 1.3), between(0.75, 1.0), between(0.65, 0.9)),
        papillary=between(2.0, 4.5),
        blood=blood,
        right_blood=between(0.85, 1.1),
        muscle=muscle,
        liver=muscle * between(0.85, 1.5),
        stomach=between(0.1, 0.5),
        tissue=between(0.12, 0.38),
        fat=between(0.6, 1.15),
        lung=between(0.05, 0.25),
        gain=between(250, 900),
        noise=between(0.03, 0.07),
    )


def _scan(
    patient: _Patient, size: tuple[int, int, int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """One patient's image in scanner units and label, both `[X, Y, Z]`."""
    spacing = _spacing(size)
    warp = [_smooth(rng, size, spacing, 14.0) * 2.2 for _ in range(2)]
    fine = 1 + 0.07 * _smooth(rng, size, spacing, 2.5) + 0.07 * _smooth(rng, size, spacing, 9.0)
    x, y = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size[:2], spacing, strict=False)), indexing="ij"
    )
    signal = np.empty(size)
    label = np.zeros(size, dtype=np.uint8)
    for index in range(size[2]):
        shift = rng.normal(0, 1.8, 2)  # breath holds differ between slices
        plane = x + warp[0][..., index] + shift[0], y + warp[1][..., index] + shift[1]
        depth = index * spacing[2]
        inside = [_signal(patient, *plane, depth + part * spacing[2], spacing[0]) for part in (-0.3, 0.0, 0.3)]
        signal[..., index] = np.mean(inside, axis=0) * (1 + rng.normal(0, 0.04))  # partial volume; inflow
        label[..., index] = _label(_heart(patient, *plane, depth))
    signal = gaussian_filter(signal * fine, (0.45, 0.45, 0)) * _bias(x, y, rng)[..., None]
    real, imaginary = (rng.normal(0, patient.noise, size) for _ in range(2))
    noisy = np.hypot(signal + real, imaginary)  # Rician
    return np.rint(noisy * patient.gain).astype(np.int16), label


def _smooth(rng: np.random.Generator, size: tuple[int, int, int], spacing: Plane, width: float) -> Plane:
    """Unit-variance noise of a correlation length in mm, `[X, Y, Z]`."""
    noise: Plane = gaussian_filter(rng.normal(size=size), width / spacing)
    return np.asarray(noise / noise.std())


def _bias(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Fall-off of a surface coil somewhere around the chest."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(105, 210)
    distance = np.hypot(x - 90 * np.cos(angle), y - 90 * np.sin(angle))
    field = np.exp(-((distance / reach) ** 2) / 2)
    return np.asarray(field / field.mean())


def _heart(patient: _Patient, x: Plane, y: Plane, depth: float) -> _Heart:
    """The ventricles `depth` mm below the first slice."""
    below = depth - patient.base
    level = below / patient.length  # 0 at the base, 1 at the apex
    nowhere = np.full_like(x, -np.inf)
    if not 0 <= level < 1:
        return _Heart(nowhere, nowhere, nowhere, nowhere)
    u, v = _turned(patient, x, y, below)
    theta, distance = np.arctan2(v, u), np.hypot(u, v)
    second, phase2, third, phase3 = patient.oval
    shape = 1 + second * np.cos(2 * theta + phase2) + third * np.cos(3 * theta + phase3)
    profile = np.sqrt(1 - (0.97 * level) ** 2) * (0.93 + 0.07 * np.sin(np.pi * level))
    outer = patient.radius * profile * shape - distance
    wall = patient.thickness * (1 + (patient.septum - 1) * np.cos(theta)) * (1 - 0.25 * level)
    cavity = outer - wall
    return _Heart(outer, cavity, _right(patient, u, v, level, outer), _papillary(patient, u, v, level))


def _turned(patient: _Patient, x: Plane, y: Plane, below: float) -> tuple[Plane, Plane]:
    """Coordinates around the left ventricle; the septum lies towards positive u."""
    a = x - patient.centre[0] - patient.drift[0] * below
    b = y - patient.centre[1] - patient.drift[1] * below
    cosine, sine = np.cos(patient.angle), np.sin(patient.angle)
    return a * cosine + b * sine, b * cosine - a * sine


def _right(patient: _Patient, u: Plane, v: Plane, level: float, outer: Plane) -> Plane:
    """A crescent: an ellipse beside the left ventricle, less the left ventricle; it ends above the apex."""
    size, offset, reach = patient.right
    if level >= reach:
        return np.full_like(u, -np.inf)
    shrink = np.sqrt(1 - (level / reach) ** 2)
    radius = patient.radius * size * (0.25 + 0.75 * shrink)
    centre = patient.radius * offset * (0.35 + 0.65 * shrink)
    ellipse = radius - np.hypot((u - centre) / 0.85, (v + 0.12 * radius) / 1.1)
    return np.asarray(np.minimum(ellipse, -outer))


def _papillary(patient: _Patient, u: Plane, v: Plane, level: float) -> Plane:
    """Two muscles inside the cavity, which the label counts as cavity."""
    if not 0.2 < level < 0.75:
        return np.full_like(u, -np.inf)
    reach = 0.42 * patient.radius
    blobs = [patient.papillary - np.hypot(u + reach * 0.6, v - side * reach * 0.8) for side in (-1, 1)]
    return np.maximum(*blobs)


def _label(heart: _Heart) -> npt.NDArray[np.uint8]:
    label = np.where(heart.right > 0, RIGHT, 0)
    label = np.where(heart.outer > 0, WALL, label)
    return np.where(heart.cavity > 0, LEFT, label).astype(np.uint8)


def _signal(patient: _Patient, x: Plane, y: Plane, depth: float, pixel: float) -> Plane:
    """Noise-free signal of one plane: surroundings, then what lies on top of them."""
    canvas = _surroundings(patient, x, y, depth, pixel)
    heart = _heart(patient, x, y, depth)
    _paint(canvas, np.maximum(heart.right, heart.outer) + 5.0, patient.fat * 0.75, pixel)  # pericardial fat
    _paint(canvas, heart.right + 2.2, patient.muscle, pixel)  # free wall, which no label shows
    _paint(canvas, heart.right, patient.blood * patient.right_blood, pixel)
    _paint(canvas, heart.outer, patient.muscle, pixel)
    _paint(canvas, heart.cavity, patient.blood, pixel)
    _paint(canvas, np.minimum(heart.papillary, heart.cavity), patient.muscle, pixel)
    return canvas


def _surroundings(patient: _Patient, x: Plane, y: Plane, depth: float, pixel: float) -> Plane:
    """Lung, mediastinum, chest wall, liver with vessels, stomach, aorta, and the atria above the base."""
    a, b = x + 0.3 * patient.centre[1], y - 0.3 * patient.centre[0]
    canvas = np.full_like(x, patient.lung)
    chest = 84 - np.hypot(a * 0.95, b)
    spread = 40 + 9 * np.cos(3 * np.arctan2(b, a) + 9 * patient.angle) - 0.2 * depth
    _paint(canvas, spread - np.hypot(a * 0.8 + 16, b + 8), patient.tissue, pixel)
    _paint(canvas, -chest + 10, patient.muscle * 1.1, pixel)
    _paint(canvas, -chest + 3, patient.fat, pixel)
    _paint(canvas, -chest - 7, 0.02, pixel)
    liver = np.minimum(b - 30 + 0.25 * a - 0.15 * depth + 12 * np.cos(a / 25), chest - 11)
    _paint(canvas, liver, patient.liver, pixel)
    for index in range(4):
        vessel = 3.2 - np.hypot(a - 45 + 27 * index, b - 58 - 6 * np.sin(2.0 * index + patient.angle * 5))
        _paint(canvas, np.minimum(vessel, liver), patient.blood * 0.85, pixel)
    stomach = np.minimum(24 - np.hypot((a + 34) * 0.8, b - 48 + 0.15 * depth), chest - 11)
    _paint(canvas, stomach + 2.5, patient.muscle, pixel)
    _paint(canvas, stomach, patient.stomach, pixel)
    aorta = 9.5 - np.hypot(a + 58, b - 12 - 12 * patient.angle)
    _paint(canvas, aorta + 1.8, patient.muscle, pixel)
    _paint(canvas, aorta, patient.blood, pixel)
    if depth < patient.base:
        u, v = _turned(patient, x, y, depth - patient.base)
        for shift, size in ((-2.0, 0.72), (patient.radius * 1.05, 0.62)):
            atrium = patient.radius * size - np.hypot(u - shift, v * 0.9)
            _paint(canvas, atrium + 3.5, patient.fat * 0.6, pixel)
            _paint(canvas, atrium, patient.blood, pixel)
    return canvas


def _paint(canvas: Plane, distance: Plane, signal: float, pixel: float) -> None:
    """Lay a signal over the inside of a contour, blended over one pixel at its edge."""
    share = np.clip(distance / pixel + 0.5, 0, 1)
    canvas += share * (signal - canvas)
