# SPDX-License-Identifier: Apache-2.0
"""Structures that some cases do not label: which those are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secl_models.data.cases import Case, DataSet
from secl_models.data.labels import ALSO_FIELD, FIELD
from secl_models.options.errors import InputError

_BETWEEN = re.compile(r"[;,|]")  # names in one cell


def with_field(cases: Iterable[Case], info: Mapping[str, Any], classes: Mapping[int, str], path: Path) -> list[Case]:
    """Cases with what `dataset.json` says that their labels show, {"labeled": {"case_001": ["liver"]}}.

    Args:
        cases: All of the data set.
        info: What `dataset.json` holds.
        classes: Label value to structure.
        path: The file.

    Raises:
        InputError: The field is no such object, or names a case or a structure that there is not.
    """
    said = info.get(FIELD, info.get(ALSO_FIELD, {}))
    lists = isinstance(said, dict) and all(isinstance(names, list) for names in said.values())
    if not lists:
        cure = f'write "{FIELD}": {{"case_001": ["{next(iter(classes.values()))}"]}}'
        raise InputError(path, rule=f"`{FIELD}` lists structures for each case that lacks some", got=said, cure=cure)
    found = list(cases)
    if strange := sorted(set(said) - {case.name for case in found}):
        cure = f"write it as {found[0].name} is written, or remove the entry"
        raise InputError(path, rule=f"each name in `{FIELD}` is that of a case", got=strange[0], cure=cure)
    return [
        replace(case, unlabeled=unlabeled_of(said[case.name], classes, f"{path}, `{FIELD}` of {case.name}"))
        if case.name in said
        else case
        for case in found
    ]


def names_in(cell: str, classes: Mapping[int, str]) -> list[str]:
    """The structures in a cell of a table: one name, or several between semicolons, commas or bars."""
    whole = cell.strip()
    return [whole] if whole in classes.values() else [part.strip() for part in _BETWEEN.split(whole) if part.strip()]


def unlabeled_of(labeled: Sequence[object], classes: Mapping[int, str], what: str) -> tuple[int, ...]:
    """Class indices of the structures that are not among the labelled ones.

    Args:
        labeled: Names or label values.
        classes: Label value to structure.
        what: Whose they are, for the message.

    Raises:
        InputError: One of them is no structure, or there is none.

    Example:
        >>> unlabeled_of(["liver"], {1: "liver", 2: "spleen", 7: "colon"}, "a.csv, line 2")
        (2, 3)
    """
    known = {name: name for name in classes.values()} | {str(value): name for value, name in classes.items()}
    named = {str(entry): known.get(str(entry)) for entry in labeled}
    strange = [entry for entry, name in named.items() if name is None]
    if strange or not named:
        listed = ", ".join(classes.values())
        got = strange[0] if strange else "none"
        cure = "correct the name; without a labelled structure leave the label out"
        raise InputError(what, rule=f"labelled structures are among {listed}, one or more", got=got, cure=cure)
    names = [classes[value] for value in sorted(classes)]
    return tuple(index for index, name in enumerate(names, start=1) if name not in named.values())


def left_out(data: DataSet) -> str | None:
    """How many labels leave which structure out, in a line; None where each shows all.

    Args:
        data: The data set.
    """
    labeled = [case for case in data.cases if case.label is not None]
    names = [data.classes[value] for value in sorted(data.classes)]
    counts = {name: sum(index in case.unlabeled for case in labeled) for index, name in enumerate(names, start=1)}
    shown = [f"{name} of {count}" for name, count in counts.items() if count]
    return f"left out of {len(labeled)} labels: {', '.join(shown)}" if shown else None
