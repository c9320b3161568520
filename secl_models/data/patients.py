# SPDX-License-Identifier: Apache-2.0
"""Which cases are of one patient, read from their names, and which may be though their names do not say it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from statistics import median

from secl_models.data.cases import DataSet

_GAP = r"(?:[_\-. ]+)"
# An identity that is called so: everything behind it tells images of this patient apart.
_CALL = rf"(?:sub-[a-z0-9]+(?=_|$)|(?:sub|subj|subject|pat|patient|pt){_GAP}?\d+(?={_GAP}|$))"
_CALLED = re.compile(rf"(?P<patient>(?:.*?{_GAP})?{_CALL})(?P<rest>.*)", re.IGNORECASE)
_DATE = (
    r"(?:(?:19|20)\d\d(?P<between>[-_.]?)(?:0[1-9]|1[0-2])(?P=between)(?:0[1-9]|[12]\d|3[01])(?:T?\d{6})?"
    r"|[0-3]?\d(?P<apart>[-_.])[0-3]?\d(?P=apart)(?:19|20)\d\d)"
)
_ENTITY = (
    r"(?:ses|run|acq|task|dir|echo|rec|ce|space|desc|part|hemi|chunk|sample|res|den|mod|flip|inv|mt|trc|proc|split)"
    r"-[a-z0-9]+"
)
_COUNTED = (
    r"(?:frame|slice|phase|visit|session|ses|timepoint|tp|run|acq|echo|rep|repeat|mpr|week|month|day|year|fu|followup"
    rf"|follow-up|baseline|bl|time|mr|v|t){_GAP}?\d+|\d+{_GAP}?(?:days?|weeks?|months?|years?)|\(\d+\)"
)
_WORD = (
    r"(?:ed|es|end-?diastole|end-?systole|diastole|systole|left|right|lt|rt|l|r|lh|rh|pre|post|before|after|baseline|"
    r"bl|followup|follow-up|fu|contrast|t1w?|t1c|t1ce|t1gd|t2w?|t2star|flair|bold|dwi|adc|swi|pd|pdw|ct|cta|mr|mri|pet|"
    r"cine|lge|angio|arterial|venous|portal|delayed|insp|exp|inhale|exhale|supine|prone|axial|sagittal|coronal|ax|sag|"
    r"cor|fixed|moving|od|os|cc|mlo|sa|la|sax|lax|[234]ch|lvot|img|image|in-?phase|out-?phase|t1dual|t2spir|mprage|dess|"
    r"tse|fse|hbv|dce|c0|de|pt|in|ex|[ie]bhct|[234]d|[37]t|1\.5t|copy|kopie|copie|copia|0000)"
)
_SIDE = rf"(?:ed|es|left|right|lt|rt|l|r|lh|rh|pre|post|{_ENTITY})"
# Said of a patient in front of the number too, where another word may be that of a set: left_atrium_003, ct_1, site1_2.
_TIME = (
    r"(?:baseline|bl|followup|follow-up|fu|before|after"
    rf"|(?:scan|visit|session|ses|timepoint|tp|week|month|day|year|fu|followup|v){_GAP}?\d+)"
)
_LAST = re.compile(rf"(?P<name>.*[^_\-. ]){_GAP}(?P<word>{_ENTITY}|{_COUNTED}|{_WORD}|{_DATE})", re.IGNORECASE)
_FIRST = re.compile(rf"(?:{_SIDE}|{_TIME}){_GAP}(?P<name>[a-z]*\d+|{_CALL})", re.IGNORECASE)
_INNER = re.compile(rf"(?P<before>.+){_GAP}{_SIDE}(?P<after>{_GAP}\d+)", re.IGNORECASE)
# Counted of one patient, whatever is left; not a run or a phase, of which each may be another patient's.
_OF_ONE = re.compile(
    rf"(?:frame|slice|visit|session|ses|timepoint|tp|week|month|day|year|fu|followup|follow-up){_GAP}?\d+"
    rf"|ses-[a-z0-9]+",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    rf"(?P<name>.+){_GAP}(?:\d{{1,4}}|[a-z])|(?P<other>.*\d.*?)(?:{_GAP}(?:[a-z]*\d{{1,4}}|[a-z])|(?<=\d)[a-z]{{1,5}})",
    re.IGNORECASE,
)
_DATED = re.compile(rf"(?P<name>.+){_GAP}{_DATE}", re.IGNORECASE)
_DATED_FIRST = re.compile(rf"{_DATE}{_GAP}(?P<name>.+)", re.IGNORECASE)
_FEW = 6  # images of one patient; a site numbers more patients than that
_SHOWN_PATIENTS, _SHOWN_CASES = 3, 3


def patient_of(name: str) -> str:
    """The patient whom the name of a case names: what is left without session, run, phase, side, modality or date.

    A number is the patient's own unless a word says what it counts, and something with a number in it must be left.

    Args:
        name: Of the case.

    Example:
        >>> [patient_of(name) for name in ("sub-02_ses-1_T1w", "patient099_frame01", "knee_007_L", "la_003")]
        ['sub-02', 'patient099', 'knee_007', 'la_003']
    """
    called = _CALLED.fullmatch(name)
    if called:
        return _without_words(called["patient"], ends=False)
    return _without_words(name, ends=True)


def _without_words(name: str, *, ends: bool) -> str:
    while ends and (found := _LAST.fullmatch(name)) and _tells(found["name"], found["word"]):
        name = found["name"]
    while (found := _FIRST.fullmatch(name)) and _tells(found["name"]):
        name = found["name"]
    while (found := _INNER.fullmatch(name)) and _tells(found["before"] + found["after"]):
        name = found["before"] + found["after"]
    return name


def _tells(rest: str, word: str = "") -> bool:
    """Whether what is left may name one patient: a number does, and a word where no number is taken away."""
    if any(letter.isdigit() for letter in rest) or _OF_ONE.fullmatch(word):
        return True
    return bool(word) and not any(letter.isdigit() for letter in word) and word.lower() not in ("ct", "mr", "mri")


def grouping(data: DataSet) -> str | None:
    """How cases were put together as patients, in a line; None where each case is a patient.

    Args:
        data: The data set.

    Example:
        >>> from pathlib import Path
        >>> from secl_models.data.layouts import read_data_set
        >>> grouping(read_data_set(Path("phantom"))) is None
        True
    """
    patients: dict[str, list[str]] = {}
    for case in data.cases:
        patients.setdefault(case.patient, []).append(case.name)
    if len(patients) == len(data.cases):
        return None
    several = {patient: names for patient, names in patients.items() if len(names) > 1}
    shown = [f"{patient}: {_cases(patient, names)}" for patient, names in list(several.items())[:_SHOWN_PATIENTS]]
    more = ["..."] if len(several) > _SHOWN_PATIENTS else []
    return f"{len(data.cases)} cases of {len(patients)} patients: {'; '.join([*shown, *more])}"


def _cases(patient: str, names: list[str]) -> str:
    parts = [re.sub(rf"^{_GAP}", "", name.removeprefix(patient)) or name for name in names[:_SHOWN_CASES]]
    return ", ".join([*parts, "..."] if len(names) > _SHOWN_CASES else parts)


def suspected(patients: Iterable[str]) -> Mapping[str, list[str]]:
    """Patients who may be one, by what their names share before a last number, letter or date, or after a first date.

    Where many names share it, or all, it is that of a site or a study.

    Args:
        patients: All of a data set.

    Example:
        >>> suspected(["p1_1", "p1_2", "p2_1", "case_01", "case_02"])
        {'p1': ['p1_1', 'p1_2']}
    """
    alike: dict[str, list[str]] = {}
    different = dict.fromkeys(patients)
    for patient in different:
        found = _dated(patient) or _NUMBERED.fullmatch(patient)
        if found:
            shared = found["name"] or found["other"]
            alike.setdefault(shared, []).append(patient)
    grouped = {name for names in alike.values() if len(names) > 1 for name in names}
    for patient, shared in _shared_beginnings(different).items():
        if patient not in grouped:
            alike.setdefault(shared, []).append(patient)
    groups = {name: found for name, found in alike.items() if 1 < len(found) <= min(_FEW, len(different) - 1)}
    words = [name for name in groups if not re.search(r"\d", name) and not _dated(groups[name][0])]
    if len(words) == 1:  # one word with numbers is what a set calls its cases
        del groups[words[0]]
    return groups


def _dated(name: str) -> re.Match[str] | None:
    return _DATED.fullmatch(name) or _DATED_FIRST.fullmatch(name)


def _shared_beginnings(patients: Iterable[str]) -> Mapping[str, str]:
    """The longest beginning with a number in it that a name shares with others, up to a gap.

    Where names so deep usually share theirs with many, they are those of sites.
    """
    groups: dict[int, dict[str, list[str]]] = {}
    for patient in patients:
        for depth, gap in enumerate(re.finditer(_GAP, patient)):
            if re.search(r"\d", patient[: gap.start()]):
                groups.setdefault(depth, {}).setdefault(patient[: gap.start()], []).append(patient)
    found: dict[str, str] = {}
    for _, shared in sorted(groups.items()):
        several = {beginning: names for beginning, names in shared.items() if len(names) > 1}
        if several and median(map(len, several.values())) <= _FEW:
            found |= {name: beginning for beginning, names in several.items() for name in names}
    return found


def spelt_apart(patients: Iterable[str]) -> Mapping[str, list[str]]:
    """Patients whose names differ in nothing but letter case or the form of their characters.

    Args:
        patients: All of a data set.

    Example:
        >>> spelt_apart(["Ann", "ann", "bob"])
        {'ann': ['Ann', 'ann']}
    """
    alike: dict[str, list[str]] = {}
    for patient in dict.fromkeys(patients):
        alike.setdefault(unicodedata.normalize("NFKC", patient).casefold(), []).append(patient)
    return {name: found for name, found in alike.items() if len(found) > 1}


def suspicion(data: DataSet) -> str | None:
    """Which cases may be of one patient, in a line; None where nothing suggests it.

    Where the layout says itself who is who, only names that are spelt apart are suspected.

    Args:
        data: The data set.
    """
    patients = [case.patient for case in data.cases]
    apart = list(spelt_apart(patients).values())
    groups = [*apart, *(suspected(patients).values() if data.layout == "decathlon" else ())]
    if not groups:
        return None
    shown = "; ".join(", ".join(names) for names in groups[:_SHOWN_PATIENTS])
    more = f"; and {len(groups) - _SHOWN_PATIENTS} more groups" if len(groups) > _SHOWN_PATIENTS else ""
    return shown + more


def cure_of_suspicion(data: DataSet) -> str:
    """How to say who is who, if `suspicion` has anything to say.

    Args:
        data: The data set.
    """
    if data.layout == "csv":
        return "spell each patient one way in the column `patient`"
    return "list the cases in a CSV with its column `patient`"
