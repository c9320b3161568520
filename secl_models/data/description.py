# SPDX-License-Identifier: Apache-2.0
"""What a data set says of itself: `dataset.json` with its structures and channels, or what its labels hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secl_models.data.files import read_text
from secl_models.data.labels import LARGEST_VALUE, MOST_CLASSES, looks_like_intensities, whole_values
from secl_models.data.volumes import read_label
from secl_models.options.errors import InputError

RESERVED = "mean"  # the row of a table that is no structure
IGNORE = "ignore"  # the name by which nnU-Net v2 says which value is no structure
MOST_FOUND = 255  # structures that nobody has named


def read_description(path: Path) -> dict[str, Any]:
    """The object in a `dataset.json`.

    Args:
        path: The file.

    Raises:
        InputError: It is no JSON, no object, or of text that cannot be written again.
    """
    text = read_text(path, "the file is JSON in UTF-8", "correct or restore it")
    try:
        info = json.loads(text)
        json.dumps(info, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(path, rule="the file is JSON", got=error, cure="correct or restore it") from error
    if not isinstance(info, dict):
        raise InputError(path, rule="the file holds a JSON object", got=type(info).__name__, cure="restore it")
    return info


def modality_of(info: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Channel names in channel order; none where the file names none.

    Args:
        info: What `dataset.json` holds.
        path: The file.

    Raises:
        InputError: The names are not numbered.
    """
    names = info.get("channel_names", info.get("modality", {}))
    if not isinstance(names, dict) or not all(_is_number(key) for key in names):
        raise InputError(path, rule="channels are numbered", got=names, cure='write "modality": {"0": "MRI"}')
    return tuple(str(names[key]) for key in sorted(names, key=int))


def classes_of(info: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Label value to structure, in both spellings: {"1": "Anterior"} of the Decathlon, {"Anterior": 1} of nnU-Net v2.

    Args:
        info: What `dataset.json` holds.
        path: The file.

    Raises:
        InputError: The structures are not numbered, not different, or too many.
    """
    labels = info.get("labels")
    pairs = sorted(pair for pair in _labels_of(info, path) if pair[1] != IGNORE)
    classes = dict(pairs)
    classes.pop(0, None)
    if not classes or min(classes) < 0 or len(classes) < len({name for value, name in pairs if value}):
        raise InputError(path, rule="structures have different values above 0", got=labels, cure="correct `labels`")
    if len(set(classes.values())) < len(classes) or RESERVED in classes.values():
        rule = f"structures have different names, none of them `{RESERVED}`"
        raise InputError(path, rule=rule, got=labels, cure="rename one")
    _require_bounds(classes, path)
    return classes


def ignored_of(info: Mapping[str, Any], path: Path) -> int | None:
    """The label value of voxels of which nothing is said, {"ignore": 4} in nnU-Net v2; None where there is none.

    Args:
        info: What `dataset.json` holds.
        path: The file.

    Raises:
        InputError: It is the background's, a structure's, or no one number.
    """
    pairs = _labels_of(info, path) if "labels" in info else []
    values = [value for value, name in pairs if name == IGNORE]
    if not values:
        return None
    if len(values) > 1 or values[0] <= 0 or any(value == values[0] for value, name in pairs if name != IGNORE):
        rule = f"`{IGNORE}` has one value above 0 that is no structure's"
        raise InputError(path, rule=rule, got=info["labels"], cure="number it above the structures")
    return values[0]


def _labels_of(info: Mapping[str, Any], path: Path) -> list[tuple[int, str]]:
    """Values and names as `labels` gives them."""
    labels = info.get("labels")
    pairs = [
        (int(key), str(value)) if _is_number(key) else (value, str(key))
        for key, value in (labels.items() if isinstance(labels, dict) else ())
    ]
    whole = all(type(value) is int or (isinstance(value, str) and _is_number(value)) for value, _ in pairs)
    if not pairs or not whole:
        rule = "`labels` gives each structure one whole number, without regions"
        raise InputError(path, rule=rule, got=labels, cure='write {"1": "structure"} or {"structure": 1}')
    return [(int(value), name) for value, name in pairs]


def found_classes(labels: Iterable[Path | None], names: Mapping[int, str]) -> dict[int, str]:
    """The values that labels hold, where nothing says what they mean.

    Args:
        labels: Their files; one that cannot be read is reported when its case is.
        names: Of values that are known.

    Raises:
        InputError: A label looks like an image, no label holds a structure, or the values are more than structures
            can be.
    """
    values: set[int] = set()
    read: list[Path] = []
    for path in filter(None, labels):
        try:
            stored = read_label(path)
        except InputError:
            continue
        read.append(path)
        found = whole_values(stored)
        values |= found
        if looks_like_intensities(stored) or len(values) > MOST_FOUND:
            raise InputError(
                path,
                rule=f"labels hold structures, at most {MOST_FOUND} where no dataset.json names them",
                got=f"{len(found)} values in this file, {len(values)} so far, which may be intensities",
                cure="name the label files, or the structures in dataset.json beside the table",
            )
    if read and not values:
        rule, got = "labels hold structures, values above 0", f"0 alone in this one and {len(read) - 1} others"
        raise InputError(read[0], rule=rule, got=got, cure="name the files that hold the structures")
    classes = {value: names.get(value, f"structure {value}") for value in sorted(values)}
    _require_bounds(classes, path=None)
    return classes


def _require_bounds(classes: Mapping[int, str], path: Path | None) -> None:
    what = path or "labels"
    if len(classes) > MOST_CLASSES:
        rule, cure = f"at most {MOST_CLASSES} structures", "join structures"
        raise InputError(what, rule=rule, got=len(classes), cure=cure)
    if classes and max(classes) > LARGEST_VALUE:
        rule, cure = f"label values are at most {LARGEST_VALUE}", "number the structures anew"
        raise InputError(what, rule=rule, got=max(classes), cure=cure)


def _is_number(key: object) -> bool:
    """Digits of any script, few enough for a number that is meant."""
    return str(key).isdecimal() and len(str(key)) < 20
