# SPDX-License-Identifier: Apache-2.0
"""Who is trained, validated and tested on: splits by patient that are drawn once, saved and verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from secl_models.data.cases import Case, DataSet
from secl_models.data.files import read_text, write_text
from secl_models.options.errors import InputError

SPLIT_SEED = 2105  # draws test and validation: every seed of a study is tested on the same patients
TEST_SHARE, TEST_MOST = 0.2, 40
VAL_SHARE, VAL_MOST = 0.1, 20
PARTS = ("labeled", "unlabeled", "val", "test")


@dataclass(frozen=True)
class Split:
    """Disjoint cases; no patient is in two of training (labelled and unlabelled), validation and test.

    Attributes:
        labeled: Training cases whose labels are used.
        unlabeled: Training cases without label; labels that exist are taken away.
        val: Cases with labels, for selection.
        test: Cases with labels, for the final figures.
    """

    labeled: tuple[Case, ...]
    unlabeled: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]


def make_split(data: DataSet, labeled: int, seed: int) -> Split:
    """Divide the patients of a data set.

    SSL4MIS keeps its lists, and its labelled patients are the first of `train_slices.list`, whatever the
    seed. Elsewhere test (20 %, 1 to 40) and validation (10 %, 1 to 20) patients are drawn independently of
    `seed` unless the table fixes them; `seed` draws the labelled patients among the others, and fewer are
    always a subset of more.

    Args:
        data: Its layout decides how patients are divided.
        labeled: Number of training patients whose labels are used.
        seed: Draws them.

    Raises:
        InputError: A patient is in two splits, a validation or test case lacks its label, or patients are
            too few.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> split = make_split(read_data_set(Path("phantom")), labeled=3, seed=0)
        >>> len(split.labeled), len(split.val), len(split.test)
        (3, 1, 2)
    """
    available = labelable(data)
    if not 1 <= labeled <= len(available):
        rule = f"between 1 and the {len(available)} training patients with a label in {data.root}"
        cure = f"ask for at most {len(available)}"
        if not available:
            cure = "label three patients or more: test, validation and training take one each at the least"
        raise InputError("--labeled", rule=rule, got=labeled, cure=cure)
    return split_with(data, _order(data, available, seed)[:labeled])


def split_like(data: DataSet, labeled: int, seed: int, earlier: Path) -> Split:
    """Divide the patients of a data set as an earlier run did, of which more may be labelled by now.

    Validation and test keep their cases. The labelled patients of that run stay, and others join them as `make_split`
    draws them.

    Args:
        data: The data set of that run; it may have gained patients and labels.
        labeled: Number of training patients whose labels are used.
        seed: Draws those that join.
        earlier: A `split.json`, or the run folder that holds one.

    Raises:
        InputError: As `make_split` and `load_split`, or that run used the labels of more patients, or the data set
            marks other cases than that run as validation or test.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> data = read_data_set(Path("phantom"))
        >>> save_split(Path("earlier.json"), make_split(data, labeled=3, seed=0))
        >>> more = split_like(data, labeled=5, seed=1, earlier=Path("earlier.json"))
        >>> len(more.labeled), more.test == make_split(data, labeled=3, seed=0).test
        (5, True)
    """
    file = earlier / "split.json" if earlier.is_dir() else earlier
    before = load_split(file, data)
    tested = {case.name: part for part in ("val", "test") for case in getattr(before, part)}
    _refuse_other_marks(data, tested, file)
    kept = list(dict.fromkeys(case.patient for case in before.labeled))
    fixed = _with_evaluated(data, tested)
    joining = [patient for patient in labelable(fixed) if patient not in kept]
    most = len(kept) + len(joining)
    if not len(kept) <= labeled <= most:
        rule = f"at least the {len(kept)} patients labelled in {file}, at most all {most} with a label for training"
        raise InputError("--labeled", rule=rule, got=labeled, cure=f"ask for {len(kept)} to {most}")
    found = split_with(fixed, [*kept, *_order(fixed, joining, seed)][:labeled])
    marks = {case.name: case.split for case in data.cases}
    parts = (getattr(found, part) for part in PARTS)
    return Split(*(tuple(replace(case, split=marks[case.name]) for case in cases) for cases in parts))


def _order(data: DataSet, patients: list[str], seed: int) -> list[str]:
    """In which order patients are labelled."""
    return patients if data.layout == "ssl4mis" else drawn_order(patients, seed)


def _refuse_other_marks(data: DataSet, tested: Collection[str], file: Path) -> None:
    """A case that the data set sets apart is not trained on because an earlier run did not know it."""
    for case in data.cases:
        if case.split in ("val", "test") and case.name not in tested:
            rule, got = f"validation and test are those of {file}", f"a mark as {case.split}"
            raise InputError(case.name, rule=rule, got=got, cure="take the mark away, or leave --split-of out")


def _with_evaluated(data: DataSet, part: Mapping[str, str]) -> DataSet:
    """The data set with these cases in validation and test, no other image of their patients, and the rest trained."""
    evaluated = {case.patient for case in data.cases if case.name in part}
    cases = [case for case in data.cases if case.name in part or case.patient not in evaluated]
    return replace(data, cases=tuple(replace(case, split=part.get(case.name, "train")) for case in cases))


def labelable(data: DataSet) -> list[str]:
    """The training patients with a label, in the order of the data set.

    Args:
        data: The data set.
    """
    role = _roles(data)
    labeled = (case.patient for case in data.cases if role[case.patient] == "train" and case.label is not None)
    return list(dict.fromkeys(labeled))


def drawn_order(patients: Iterable[str], seed: int) -> list[str]:
    """The order in which a seed draws patients to be labelled.

    Args:
        patients: Names.
        seed: Draws.
    """
    return _shuffled(patients, f"labeled {seed}")


def split_with(data: DataSet, labeled: Collection[str]) -> Split:
    """Divide the patients of a data set as `make_split` does, with these as the labelled ones.

    Args:
        data: Its layout decides how patients are divided.
        labeled: Training patients whose labels are used.

    Raises:
        InputError: As `make_split`.
    """
    role = _roles(data)
    train = [case for case in data.cases if role[case.patient] == "train"]
    keep = [case for case in train if case.patient in labeled and case.label is not None]
    kept = {case.name for case in keep}
    rest = [replace(case, label=None) for case in train if case.name not in kept]
    val, test = (tuple(_evaluated(data, role, part)) for part in ("val", "test"))
    if not val:
        cure = "mark rows as val, or add labelled patients"
        raise InputError(data.root, rule="validation has at least one case", got="none", cure=cure)
    return Split(tuple(keep), tuple(rest), val, test)


def shared_patients(cases: Iterable[Case]) -> list[InputError]:
    """One fault for each patient whom the layout puts into two splits.

    Args:
        cases: All cases of a data set.
    """
    places: dict[str, dict[str, Case]] = {}
    for case in cases:
        if case.split is not None:
            places.setdefault(case.patient, {}).setdefault(case.split, case)
    return [
        InputError(
            f"patient {patient}",
            rule="a patient is in one split only",
            got=", ".join(f"{case.name} in {split}" for split, case in found.items()),
            cure="move all cases of the patient into one split",
        )
        for patient, found in places.items()
        if len(found) > 1
    ]


def save_split(path: Path, split: Split) -> None:
    """Write the case names of a split as JSON; the file appears whole or not at all.

    Args:
        path: Target.
        split: What to write.
    """
    names = {part: [case.name for case in getattr(split, part)] for part in PARTS}
    write_text(path, json.dumps(names, indent=1, ensure_ascii=False) + "\n")


def load_split(path: Path, data: DataSet) -> Split:
    """Read what `save_split` wrote and verify it against the data.

    Args:
        path: The JSON file.
        data: The data set that the split was made of.

    Raises:
        InputError: The file is missing or not a split, names an unknown case, lacks a label that it needs, or
            puts a case or patient into two parts.
    """
    names = read_names(path)
    known = {case.name: case for case in data.cases}
    listed = [(part, name) for part in PARTS for name in names[part]]
    seen: set[str] = set()
    for part, name in listed:
        if name not in known or name in seen:
            rule = f"each case of the split is listed once and is in {data.root}"
            raise InputError(
                path,
                rule=rule,
                got=f"{name} of {part}",
                cure="train on the data the split was made of, under its names",
            )
        seen.add(name)
        if part != "unlabeled" and known[name].label is None:
            raise InputError(path, rule=f"a case of {part} has a label", got=name, cure="restore the label file")
    placed = [replace(known[name], split="train" if part in PARTS[:2] else part) for part, name in listed]
    for fault in shared_patients(placed):
        raise InputError(path, rule=fault.rule, got=f"{fault.what}: {fault.got}", cure="make the split anew")
    parts = {part: tuple(known[name] for name in names[part]) for part in PARTS}
    hidden = tuple(replace(case, label=None) for case in parts["unlabeled"])
    return Split(parts["labeled"], hidden, parts["val"], parts["test"])


def read_names(path: Path) -> dict[str, list[str]]:
    """The names of the cases in each part of a split.

    Args:
        path: What `save_split` wrote.

    Raises:
        InputError: It is not a split any more.
    """
    text = read_text(path, "the split is a JSON file", "restore it")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(path, rule="the split is a JSON file", got=error, cure="restore it") from error
    if not isinstance(names, dict) or set(names) != set(PARTS) or not all(map(_is_names, names.values())):
        got = ", ".join(map(str, names)) if isinstance(names, dict) else type(names).__name__
        raise InputError(path, rule=f"a split lists names under {', '.join(PARTS)}", got=got, cure="restore it")
    return names


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _roles(data: DataSet) -> dict[str, str]:
    """Patient to "train", "val" or "test"; a part that the layout fixes for anybody is not drawn."""
    for fault in shared_patients(data.cases):
        raise fault
    fixed = {case.patient: case.split for case in data.cases if case.split is not None}
    free = {case.patient for case in data.cases if case.label is not None and case.patient not in fixed}
    role = {case.patient: fixed.get(case.patient) or "train" for case in data.cases}
    order = _shuffled(free, f"split {SPLIT_SEED}")
    taken = 0
    for part, share, most in (("test", TEST_SHARE, TEST_MOST), ("val", VAL_SHARE, VAL_MOST)):
        if part not in fixed.values():
            count = min(max(round(share * len(order)), 1), most)
            role.update(dict.fromkeys(order[taken : taken + count], part))
            taken += count
    return role


def _evaluated(data: DataSet, role: dict[str, str], part: str) -> Iterable[Case]:
    """The labelled cases of a part; a drawn patient's other images are dropped, not trained on."""
    for case in data.cases:
        if role[case.patient] != part:
            continue
        if case.label is not None:
            yield case
        elif case.split == part:
            cure = "add the label or empty the split cell"
            raise InputError(case.image[0], rule=f"a {part} case has a label", got="none", cure=cure)


def _shuffled(patients: Iterable[str], salt: str) -> list[str]:
    """Ordered by digest: the same on every machine and version, and stable when patients are added."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{salt} {patient}".encode()).digest())
