# SPDX-License-Identifier: Apache-2.0
"""Every fault of a data set, with its file, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.cases import Case, DataSet
from secl_models.data.orientation import cut_across, reference, thick_axis
from secl_models.data.patients import cure_of_suspicion, suspicion
from secl_models.data.splits import shared_patients
from secl_models.data.volumes import Volume, examine_case
from secl_models.options.errors import InputError

ERROR, WARNING = "error", "warning"
COMPARED = 40  # stacks of which each is compared with each


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
    images: dict[bytes, Case] = field(default_factory=dict)  # by digest of the voxels
    labels: dict[bytes, Case] = field(default_factory=dict)  # by digest of those that show a structure
    copied: list[tuple[Case, Case]] = field(default_factory=list)  # labels of two patients
    repeated: dict[tuple[str, str], list[tuple[Case, Case]]] = field(default_factory=dict)  # by both patients
    stacks: list[Volume] = field(default_factory=list)  # of thick slices, one voxel each


def check_data_set(
    data: DataSet,
    cases: Sequence[Case] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Volume], None] | None = None,
) -> list[Fault]:
    """Read the cases and collect every fault instead of stopping at the first.

    Errors: missing, unreadable or truncated files, intensities that are not finite, wrong rank or channels,
    label values outside the classes, image and label of different shape or affine, a patient in two splits, an
    image of two patients, a header whose affine and pixdim disagree.
    Warnings: empty labels, a label that two patients share, images of one intensity, an image that a patient has
    twice, classes that no label shows, stacks of slices that lie across those of the others, names that may be those
    of one patient. Empty 2-D slices are usual, so slices are reported only where all of a patient are empty.

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
    found = [*errors, *_repetitions(findings), *_warnings(data, findings)]
    return sorted(found, key=lambda fault: fault.severity != ERROR)


def require_sound(data: DataSet, cases: Sequence[Case], progress: Callable[[int, int], None] | None = None) -> None:
    """Refuse a data set by its first error, for work that reads it many times.

    Args:
        data: The data set.
        cases: Those to read.
        progress: As for `check_data_set`.

    Raises:
        InputError: There is an error.
    """
    errors = [fault for fault in check_data_set(data, cases, progress) if fault.severity == ERROR]
    if errors:
        first, more = errors[0], f"; `secl check` names {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(first.file, rule=first.rule, got=first.got, cure=first.cure + more)


def _fault(error: InputError) -> Fault:
    return Fault(error.what, error.rule, error.got, error.cure, ERROR)


def _note(volume: Volume, findings: _Findings) -> None:
    case = volume.case
    if thick_axis(volume) is not None:
        findings.stacks.append(replace(volume, image=np.zeros((1, 1, 1, 1), np.float32), label=None))
    if volume.image.min() == volume.image.max():
        findings.flat.append(case)
    else:
        first = findings.images.setdefault(_digest(volume.image), case)
        if first is not case:
            findings.repeated.setdefault((first.patient, case.patient), []).append((first, case))
    if volume.label is not None:
        _note_label(case, volume.label, findings)


def _digest(image: npt.NDArray[Any]) -> bytes:
    """Of the voxels, however the file was packed."""
    content = np.ascontiguousarray(image.T)  # as NIfTI files hold them
    return hashlib.blake2b(content.data, digest_size=16, salt=str(image.shape).encode()[:16]).digest()


def _note_label(case: Case, label: npt.NDArray[np.int64], findings: _Findings) -> None:
    present = {int(index) for index in np.flatnonzero(np.bincount(label[label >= 0]))} - {0}
    findings.classes |= present
    findings.labeled[case.patient] = findings.labeled.get(case.patient, 0) + 1
    if present and (first := findings.labels.setdefault(_digest(label), case)).patient != case.patient:
        findings.copied.append((first, case))
    if not present:
        if label.ndim == 2:
            findings.empty_slices.setdefault(case.patient, []).append(case)
        else:
            findings.empty.append(case)


def _repetitions(findings: _Findings) -> Iterable[Fault]:
    """A fault for each two patients: an error where they could be divided between training and testing."""
    for (patient, other), pairs in findings.repeated.items():
        first, again = pairs[0]
        more = f", and {len(pairs) - 1} more images of theirs" if len(pairs) > 1 else ""
        if patient == other:
            yield _warning(
                str(again.image[0]), "a patient has each image once", f"the voxels of {first.image[0]}{more}"
            )
            continue
        together = all(one.split == two.split is not None for one, two in pairs)
        got = f"the voxels of {first.image[0]}, patients {patient} and {other}{more}"
        cure = "remove one of the two, or give both one name in the column `patient` of a CSV"
        severity = WARNING if together else ERROR
        yield Fault(str(again.image[0]), "an image belongs to one patient", got, cure, severity)


def _warnings(data: DataSet, findings: _Findings) -> Iterable[Fault]:
    slices = [s for patient, s in findings.empty_slices.items() if len(s) == findings.labeled[patient]]
    for case in (*findings.empty, *(case for patient in slices for case in patient)):
        yield _warning(str(case.label), "a label shows a structure", "an empty label")
    for case in findings.flat:
        yield _warning(str(case.image[0]), "an image has contrast", "one intensity everywhere")
    for first, again in findings.copied:
        yield _warning(str(again.label), "a label belongs to one patient", f"the voxels of {first.label}")
    yield from _warnings_on_stacks(findings.stacks)
    if alike := suspicion(data):
        got = f"names that may be of one patient: {alike}"
        yield Fault(str(data.root), "the name of a case tells its patient", got, cure_of_suspicion(data), WARNING)
    for index, (value, name) in enumerate(data.classes.items(), start=1):
        if findings.labeled and index not in findings.classes:
            yield _warning(str(data.root), "each class occurs in a label", f"no voxel of {value} ({name})")


def _warnings_on_stacks(stacks: Sequence[Volume]) -> Iterable[Fault]:
    orientation = reference(stacks[:COMPARED])
    for volume in stacks:
        if cut_across(orientation, volume):
            got = "thick slices along another axis, or more than 45 degrees off"
            cure = (
                "store the slices along the last axis, set data.orientation=null to keep each image's own, or leave it"
            )
            rule = "the slices of a stack lie as in most images, along the last axis"
            yield Fault(str(volume.case.image[0]), rule, got, cure, WARNING)


def _warning(file: str, rule: str, got: str) -> Fault:
    return Fault(file, rule, got, "correct the file, or leave it if it is meant", WARNING)
