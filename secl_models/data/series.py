# SPDX-License-Identifier: Apache-2.0
"""Which DICOM series lie in a folder, what they are called, and the one that is meant."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secl_models.data.dicom import UNREADABLE, quiet, read_object, require_dicom
from secl_models.data.formats import is_dicom, require_text
from secl_models.options.errors import InputError

OPTION = "--series"
_NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "FID")  # modalities
_READ = (
    "SOPClassUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "Rows",
    "Columns", "NumberOfFrames", "PatientName", "SpecificCharacterSet", "PatientID",
)  # fmt: skip
_SHORTEST, _LONG = 3, 5  # letters of a part of a name that is looked for, as a word or wherever it stands


@dataclass(frozen=True)
class Header:
    """What the header of one file says.

    Attributes:
        file: The file.
        uid: Of its series.
        study: UID of its study.
        number: Of its series, as text; empty where there is none.
        description: Of its series, without the patient's name.
        modality: Such as MR.
        size: Columns and rows; None: no image.
        frames: Images in the file.
        names: Parts of the patient's name, which are never written out.
        fault: Why the header cannot be read; the other attributes are empty then.
    """

    file: Path
    uid: str
    study: str
    number: str
    description: str
    modality: str
    size: tuple[int, int] | None
    frames: int
    names: tuple[str, ...]
    fault: InputError | None = None


@dataclass(frozen=True)
class Series:
    """The images of one series."""

    headers: tuple[Header, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Of the series, by name."""
        return tuple(header.file for header in self.headers)

    @property
    def slices(self) -> int:
        """Images of the series."""
        return sum(header.frames for header in self.headers)

    @property
    def first(self) -> Header:
        """What is the same in all headers stands in this one."""
        return self.headers[0]

    def __str__(self) -> str:
        """A line of a list."""
        sizes = Counter(header.size for header in self.headers if header.size)
        size = " x ".join(map(str, sizes.most_common(1)[0][0]))
        about = self.first
        return (
            f"{about.number or '-'}: {about.description or 'no description'} "
            f"({about.modality}, {self.slices} slice{'s' * (self.slices > 1)} of {size}, UID {about.uid})"
        )


@quiet()
def read_headers(source: Path) -> list[Header]:
    """The DICOM files of a folder and below, hidden ones left out, or of one file.

    Args:
        source: The folder or file; what is not DICOM by its content is passed over.

    Raises:
        InputError: There are such files, but nothing that reads them is installed, or one may not be read.
    """
    inside = sorted(source.rglob("*")) if source.is_dir() else [source]
    shown = (path for path in inside if not any(part.startswith(".") for part in path.relative_to(source).parts))
    near = [path for path in shown if path.is_file()]
    files = [path for path in near if is_dicom(path)]
    if files:
        require_dicom(source)
        _require_access(near)
    return [_header(path) for path in files]


def series_of(headers: Iterable[Header]) -> list[Series]:
    """The series that hold images, by their numbers.

    Args:
        headers: Of any files.
    """
    groups: dict[str, list[Header]] = {}
    for header in headers:
        if header.size is not None:
            groups.setdefault(header.uid, []).append(header)
    found = [Series(tuple(group)) for group in groups.values()]
    return sorted(found, key=lambda series: (series.first.number.zfill(12), series.first.uid))


def others_of(headers: Iterable[Header]) -> str:
    """The objects that are no images, as `1 SR, 2 RTSTRUCT`; empty where there are none."""
    counts = Counter(header.modality for header in headers if header.size is None and header.fault is None)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def choose_series(found: Sequence[Series], wanted: str | None, what: str) -> Series:
    """The series that is meant.

    Args:
        found: At least one.
        wanted: Its UID, number or description; None: the only one of more than one slice.
        what: The folder, for messages.

    Raises:
        InputError: None or several fit; the message lists them.
    """
    if wanted is None:
        stacks = [series for series in found if series.slices > 1] or list(found)
        if len(stacks) > 1:
            cure = f"add {OPTION} with a number, description or UID of the list"
            raise InputError(what, rule="a folder has one series, or one is named", got=_listed(stacks), cure=cure)
        return stacks[0]
    wanted = without_names(wanted, {name for series in found for header in series.headers for name in header.names})
    text = " ".join(wanted.split()).casefold()
    for key in (_uid, _number, _description):
        fitting = [series for series in found if key(series) == text]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            got = f"{wanted}, which fits {_listed(fitting)}"
            raise InputError(OPTION, rule="one series of the folder", got=got, cure="name it by its UID")
    got, cure = f"{wanted}; {what} has {_listed(found)}", "choose a number, description or UID of the list"
    raise InputError(OPTION, rule="a series of the folder", got=got, cure=cure)


def without_names(text: str, names: Iterable[str]) -> str:
    """A text in which parts of the patient's name are stars.

    Args:
        text: Such as a description or a path.
        names: Parts of the name.

    Example:
        >>> without_names("export/DOE_JANE/T2 doe", ["Doe", "Jane"])
        'export/***_***/T2 ***'
        >>> without_names("doer/JANETTE", ["Doe", "Janet"])
        'doer/***TE'
    """
    for name in sorted(names, key=len, reverse=True):
        own = re.escape(name) if len(name) >= _LONG else rf"(?<![^\W\d_]){re.escape(name)}(?![^\W\d_])"
        text = re.sub(own, "***", text, flags=re.IGNORECASE)
    return text


def _listed(found: Sequence[Series]) -> str:
    return f"{len(found)} series:" + "".join(f"\n  {series}" for series in found)


def _uid(series: Series) -> str:
    return series.first.uid


def _number(series: Series) -> str:
    return series.first.number


def _description(series: Series) -> str:
    return series.first.description.casefold()


def _require_access(files: Iterable[Path]) -> None:
    """No slice is left out because it may not be read."""
    if path := next((path for path in files if not os.access(path, os.R_OK)), None):
        cure = f"chmod u+r {str(path)!r}"
        raise InputError(path, rule="the file may be read", got="Permission denied", cure=cure)


def _header(path: Path) -> Header:
    require_text(path)
    try:
        return _summary(path, read_object(path, path, only=_READ))
    except UNREADABLE as error:
        cure, got = "export it again, or move it away", f"a {type(error).__name__} of its reader"
        fault = InputError(path, rule="a header as the standard has it", got=got, cure=cure)
        return Header(path, "", "", "", "", "", None, 0, (), error if isinstance(error, InputError) else fault)


def _summary(path: Path, about: Any) -> Header:
    names = _name_parts(about)
    modality = str(about.get("Modality") or "")
    size = (int(about.get("Columns") or 0), int(about.get("Rows") or 0))
    image = all(size) and modality not in _NO_IMAGES
    kind = modality or ("an image" if image else "DICOMDIR" if path.name.startswith("DICOMDIR") else "other objects")
    number = about.get("SeriesNumber")
    return Header(
        path, str(about.get("SeriesInstanceUID") or ""), str(about.get("StudyInstanceUID") or ""),
        "" if number is None else str(number), without_names(_line(about.get("SeriesDescription")), names), kind,
        size if image else None, int(about.get("NumberOfFrames") or 1), names,
    )  # fmt: skip


def _name_parts(about: Any) -> tuple[str, ...]:
    """Words of the patient's name; a name that is the patient's ID as well is a pseudonym, as in public data."""
    name = str(about.get("PatientName") or "")
    if name == str(about.get("PatientID") or ""):
        return ()
    return tuple(part for part in re.split(r"[\W_]+", name) if len(part) >= _SHORTEST or not part.isascii())


def _line(value: Any) -> str:
    return " ".join(str(value or "").split())
