# SPDX-License-Identifier: Apache-2.0
"""Every fault of a data set, with its file, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from secl_models.data.cases import Case, DataSet
from secl_models.data.splits import shared_patients
from secl_models.data.volumes import Volume, examine_case
from secl_models.options.errors import InputError

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Fault:
    """One broken rule.

    Attributes:
        file: The file, patient or data set at fault.
        rule: What holds for good data.
        got: What came instead.
        cure: What to do about it.
        severity: "error": training refuses the file; "warning": it may be meant.
    """

    file: str
    rule: str
    got: str
    cure: str
    severity: str


@dataclass
class _Findings:
    """What only the whole set shows: where labels are empty and which classes occur."""

    empty: list[Case] = field(default_factory=list)
    empty_slices: dict[str, list[Case]] = field(default_factory=dict)  # by patient
    labeled: dict[str, int] = field(default_factory=dict)  # cases with a readable label, by patient
    classes: set[int] = field(default_factory=set)
    flat: list[Case] = field(default_factory=list)


def check_data_set(
    data: DataSet,
    cases: Sequence[Case] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Volume], None] | None = None,
) -> list[Fault]:
    """Read the cases and collect every fault instead of stopping at the first.

    Errors: missing, unreadable or truncated files, intensities that are not finite, wrong rank or channels,
    label values outside the classes, image and label of different shape or affine, a patient in two splits.
    Warnings: empty labels, images of one intensity, classes that no label shows. Empty 2-D slices are usual,
    so slices are reported only where all of a patient are empty.

    Args:
        data: Its classes and channels are what a file is held against.
        cases: Those to read, by default all.
        progress: Called after each case with the number read and the number to read.
        keep: Called with the volume of each case that can be read; otherwise one is held at a time.

    Returns:
        Errors first, each kind in the order of the cases.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> faults = check_data_set(read_data_set(Path("phantom")))
        >>> [fault.file for fault in faults if fault.severity == "error"]
        []
    """
    chosen = data.cases if cases is None else cases
    errors = [_fault(error) for error in shared_patients(chosen)]
    findings = _Findings()
    for done, case in enumerate(chosen, start=1):
        volume, faults = examine_case(case, data)
        errors += map(_fault, faults)
        if volume is not None:
            _note(volume, findings)
            if keep is not None:
                keep(volume)
        if progress is not None:
            progress(done, len(chosen))
    return errors + list(_warnings(data, findings))


def _fault(error: InputError) -> Fault:
    return Fault(error.what, error.rule, error.got, error.cure, ERROR)


def _note(volume: Volume, findings: _Findings) -> None:
    case = volume.case
    if volume.image.min() == volume.image.max():
        findings.flat.append(case)
    if volume.label is None:
        return
    present = {int(index) for index in np.flatnonzero(np.bincount(volume.label.ravel()))} - {0}
    findings.classes |= present
    findings.labeled[case.patient] = findings.labeled.get(case.patient, 0) + 1
    if not present:
        if volume.label.ndim == 2:
            findings.empty_slices.setdefault(case.patient, []).append(case)
        else:
            findings.empty.append(case)


def _warnings(data: DataSet, findings: _Findings) -> Iterable[Fault]:
    slices = [s for patient, s in findings.empty_slices.items() if len(s) == findings.labeled[patient]]
    for case in (*findings.empty, *(case for patient in slices for case in patient)):
        yield _warning(str(case.label), "a label shows a structure", "an empty label")
    for case in findings.flat:
        yield _warning(str(case.image[0]), "an image has contrast", "one intensity everywhere")
    for index, (value, name) in enumerate(data.classes.items(), start=1):
        if findings.labeled and index not in findings.classes:
            yield _warning(str(data.root), "each class occurs in a label", f"no voxel of {value} ({name})")


def _warning(file: str, rule: str, got: str) -> Fault:
    return Fault(file, rule, got, "correct the file, or leave it if it is meant", WARNING)
