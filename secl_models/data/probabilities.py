# SPDX-License-Identifier: Apache-2.0
"""Class probabilities as a 4-D NIfTI file that is filled slab by slab and never held in memory as a whole."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from secl_models.data.files import partial_path, whole_file
from secl_models.data.volumes import Volume, grid_like


class ProbabilityFile:
    """A NIfTI file [X, Y, Z, K + 1], float32 (NIfTI has no half precision), on the grid of an image.

    Used in a `with` block; the file appears when the block ends without an error, whole or not at all. Until then
    the numbers lie uncompressed in a hidden file beside it: 4 (K + 1) bytes a voxel.

    Args:
        path: Target, `.nii.gz` or `.nii`.
        source: The image that is segmented, or its file.
        classes: K + 1, background included.
    """

    def __init__(self, path: Path, source: Path | Volume, classes: int) -> None:
        self._path, self._source, self._classes = path, source, classes
        self._raw = partial_path(path.with_name(f"{path.name}.raw"))
        self._stored: npt.NDArray[Any] | None = None

    @property
    def array(self) -> npt.NDArray[Any]:
        """The numbers on disk as [K + 1, *spatial]."""
        if self._stored is None:
            raise RuntimeError("probabilities are written inside the `with` block")
        return self._stored

    def __enter__(self) -> ProbabilityFile:
        _, header, shape = grid_like(self._source, np.float32)
        if header is None:
            header = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4)).header
        volume = (*shape, *(1,) * (3 - len(shape)))
        header.set_data_shape((*volume, self._classes))
        header.set_data_offset(header.single_vox_offset)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._raw.open("wb") as stream:
                header.write_to(stream)
            kind = np.dtype(np.float32).newbyteorder(header.endianness)
            numbers = np.memmap(self._raw, kind, "r+", header.single_vox_offset, (*volume, self._classes), order="F")
        except BaseException:
            self._raw.unlink(missing_ok=True)
            raise
        self._stored = np.moveaxis(numbers, -1, 0).reshape(self._classes, *shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stored = None
        try:
            if kind is None:
                self._publish()
        finally:
            self._raw.unlink(missing_ok=True)

    def _publish(self) -> None:
        if not self._path.name.endswith(".gz"):
            os.replace(self._raw, self._path)
            return
        with (
            self._raw.open("rb") as numbers,
            whole_file(self._path) as target,
            gzip.GzipFile("", "wb", 1, target, mtime=0) as packed,  # mtime 0: equal predictions are equal files
        ):
            shutil.copyfileobj(numbers, packed, 1 << 20)
