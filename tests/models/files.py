# SPDX-License-Identifier: Apache-2.0
"""Small data sets and NIfTI files with whatever their headers are to hold."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])
SHAPE = (8, 7, 3)


def image_array(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.int16]:
    """Noise: no two seeds give one image."""
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def label_array(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A block of class 1 with class 2 inside, and a voxel that tells the labels of 100 seeds apart."""
    label = np.zeros(shape, np.uint8)
    label[2:6, 2:6], label[3:5, 3:5] = 1, 2
    label.flat[np.flatnonzero(label == 0)[-seed]] = seed > 0
    return label


def write_nifti(path: Path, array: Any, affine: Any = AFFINE, **fields: Any) -> Path:
    """A file whose header fields are what one says, whatever nibabel thinks of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = nib.Nifti1Image(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def write_set(
    root: Path, names: Iterable[str] = ("c_0", "c_1", "c_2"), labels: Mapping[str, Any] | None = None
) -> Path:
    """A folder in the layout of the Decathlon, a label for each image."""
    for seed, name in enumerate(names):
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", image_array(seed))
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", label_array(seed=seed))
    about = {"modality": {"0": "MRI"}, "labels": labels or {"0": "background", "1": "ring", "2": "core"}}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def write_table(root: Path, rows: Iterable[str]) -> Path:
    """A CSV beside the files of `write_set`, without its dataset.json."""
    (root / "dataset.json").unlink(missing_ok=True)
    (root / "data.csv").write_text("\n".join(["image,label,patient,split", *rows]) + "\n")
    return root / "data.csv"


def edit(path: Path, **fields: Any) -> None:
    """Overwrite header fields of a `.nii.gz` as they lie in the file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))
