# SPDX-License-Identifier: Apache-2.0
"""What a data set is: its cases, their files, and what their labels mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.options.spacing import AUTO

_COMMON = ("data", "dataset", "cases", "images", "train")  # names that tell no data set from another


@dataclass(frozen=True)
class Case:
    """One image, with or without a label.

    Attributes:
        name: Unique in its data set.
        patient: Cases of one patient never fall into different splits.
        image: One file per channel, or one file with all channels; of a DICOM series all its files.
        label: None when there is no label, or when a split hides it.
        split: "train", "val" or "test" where the layout fixes it, else None.
        unlabeled: Class indices of the structures that its label leaves out although the image may show them.
        series: What messages call the DICOM series that `image` is, without the patient's name; None: no DICOM.
    """

    name: str
    patient: str
    image: tuple[Path, ...]
    label: Path | None
    split: str | None
    unlabeled: tuple[int, ...] = ()
    series: str | None = None

    @property
    def what(self) -> object:
        """What messages call the image."""
        return self.series or self.image[0]


@dataclass(frozen=True)
class DataSet:
    """The cases of a folder and what their files mean.

    Attributes:
        root: The folder, or the CSV file.
        layout: "decathlon", "ssl4mis" or "csv".
        classes: Label value in the files to structure name, ascending, without background 0. Values need not
            be contiguous: class index = 1 + rank of the value.
        modality: One name per channel.
        cases: In the order of the list, or by name where the layout has no order.
        spacing_from: `data.spacing_from`: what counts where the affine and pixdim of a file disagree.
        ignored: Label value in the files of voxels of which nothing is said; None: there is none.
    """

    root: Path
    layout: str
    classes: dict[int, str]
    modality: tuple[str, ...]
    cases: tuple[Case, ...]
    spacing_from: str = AUTO
    ignored: int | None = None

    @property
    def name(self) -> str:
        """That of its folder, or of its CSV file; one that any data set may have, behind that of the folder around."""
        root = self.root.resolve()
        own = root.stem if root.is_file() else root.name
        return f"{root.parent.name}/{own}" if own.lower() in _COMMON and root.parent.name else own

    def files(self) -> list[Path]:
        """Every file of it that is there, read or not."""
        own = [self.root, self.root.parent / "dataset.json"] if self.root.is_file() else list(self.root.glob("*.*"))
        cases = [file for case in self.cases for file in (*case.image, case.label) if file is not None]
        return [*own, *cases]


def as_trained(data: DataSet, spacing_from: str) -> DataSet:
    """A data set read as that of a run was, unless something else was said of it.

    Args:
        data: As it was read.
        spacing_from: `data.spacing_from` of the run.
    """
    return data if data.spacing_from != AUTO else replace(data, spacing_from=spacing_from)
