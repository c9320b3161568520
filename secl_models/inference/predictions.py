# SPDX-License-Identifier: Apache-2.0
"""What `secl predict` did to a folder of images, kept beside the segmentations, so that a later call can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secl_models.data.cases import Case
from secl_models.data.files import write_text
from secl_models.data.folders import note_written
from secl_models.options.errors import InputError
from secl_models.options.parts import ALL, NONE
from secl_models.options.plain import from_plain

RECORD = "predict.json"


@dataclass(frozen=True)
class Settings:
    """What decides a segmentation beside the image: segmentations of other settings are never mixed."""

    checkpoint: str  # SHA-256 of the file
    flips: tuple[int, ...]
    probabilities: bool
    largest_component: str
    spacing_from: str
    temperature: float | None = None  # of the map of uncertainty; None: there is none


@dataclass
class Record:
    """The segmentations of a folder.

    Attributes:
        settings: Of all of them.
        sources: Size and time of change of the files of each case when it was segmented, of a DICOM series hashed.
    """

    settings: Settings
    sources: dict[str, str] = field(default_factory=dict)

    def knows(self, case: Case) -> bool:
        """Whether the case was segmented, from whatever image."""
        return case.name in self.sources

    def is_of(self, case: Case) -> bool:
        """Whether it was segmented from the image that is there."""
        return self.sources.get(case.name) == _state(case)

    def add(self, folder: Path, case: Case) -> None:
        """Remember that a case was segmented, on the disk too."""
        self.sources[case.name] = _state(case)
        note_written(folder, RECORD)
        text = json.dumps({"settings": asdict(self.settings), "sources": self.sources}, indent=1)
        write_text(folder / RECORD, text + "\n")


def _state(case: Case) -> str:
    states = (file.stat() for file in case.image)
    text = " ".join(f"{state.st_size}:{state.st_mtime_ns}" for state in states)
    return text if case.series is None else hashlib.sha256(text.encode()).hexdigest()  # of many slices


def read_record(folder: Path) -> Record | None:
    """What an earlier call left in a folder, or None.

    Raises:
        InputError: The file is not what was written any more.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kept = values["settings"]["largest_component"]
        if isinstance(kept, bool):  # as it was written before there was `auto`
            values["settings"]["largest_component"] = ALL if kept else NONE
        return Record(from_plain(Settings, values["settings"]), _texts(values["sources"]))
    except (ValueError, TypeError, KeyError) as error:
        cure = "restore it, or add --overwrite to segment every image again"
        raise InputError(file, rule="the record as `secl predict` wrote it", got=error, cure=cure) from error


def _texts(values: Any) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise TypeError("sources that are not texts by name")
    return values


def to_do(targets: Mapping[Case, Path], record: Record | None, settings: Settings) -> list[Case]:
    """The cases that are not segmented yet.

    Args:
        targets: Every image, and where its segmentation goes.
        record: Of an earlier call, if there was one.
        settings: Of this call.

    Raises:
        InputError: A segmentation exists that no earlier call made, or one with other settings, or of another
            image: going on would mix them.
    """
    existing = [(case, target) for case, target in targets.items() if target.exists()]
    for case, target in existing:
        if record is None or not record.knows(case):
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            raise InputError(
                target,
                rule="a segmentation is not overwritten",
                got=f"an existing file{more}",
                cure="choose another --out, or add --overwrite if `secl predict` made it",
            )
        if record.settings != settings:
            one, other = asdict(record.settings), asdict(settings)
            names = ", ".join(name.replace("_", "-") for name in one if one[name] != other[name])
            raise InputError(
                target,
                rule="the segmentations of a folder share one checkpoint and one choice of options",
                got=f"some made with another {names}",
                cure="choose another --out, or add --overwrite",
            )
        if not record.is_of(case):
            raise InputError(
                target,
                rule="a segmentation belongs to the image that it was made of",
                got=f"{case.image[0]}, which has changed since",
                cure="remove the segmentation, choose another --out, or add --overwrite",
            )
    finished = {case for case, _ in existing}
    return [case for case in targets if case not in finished]
