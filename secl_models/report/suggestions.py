# SPDX-License-Identifier: Apache-2.0
"""The table and the page of the patients to label next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.cases import DataSet, as_trained
from secl_models.data.files import write_text
from secl_models.data.folders import held, note_written, refuse_unlisted, refuse_writing_over, remove_partial
from secl_models.data.tables import write_table
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.metrics import structure_names
from secl_models.inference.palette import COLOURS
from secl_models.inference.suggest import DOUBT, TYPICAL, Candidate, Committee, Look
from secl_models.inference.windows import segment_volume
from secl_models.options.errors import writing
from secl_models.report.elements import legend, render
from secl_models.report.pictures import doubt

TABLE, PAGE = "suggest.csv", "suggest.html"
NAMED = 5  # patients in the heading
SUBTITLES = {
    DOUBT: "The half of the patients in most doubt, one of each of {} looks",
    TYPICAL: "The most typical patient of each of {} looks",
}
AGAIN = "call it again: what was written before stays"


@dataclass(frozen=True)
class SuggestionRow:
    """One line of the table: a patient without a label."""

    patient: str
    suggested: str  # yes or no
    disagreement: float
    missing: str  # structures that every labelled patient has and no network sees here
    group: str  # of alike images; empty where the doubt is too small to be looked at
    cases: str


def write_suggestions(
    candidates: Sequence[Candidate], committee: Committee, data: DataSet, out: Path, by: str = DOUBT
) -> list[Path]:
    """Write the table of all candidates, and a page that shows where the suggested ones are in doubt.

    Args:
        candidates: As `inference.suggest.suggest` gives them.
        committee: The networks that voted.
        data: The data set.
        out: Folder; made where missing.
        by: How they were chosen.

    Returns:
        The files written.

    Raises:
        InputError: The folder holds a file of one of the names that this command did not write, or the disk is full.
    """
    files = [out / TABLE, out / PAGE]
    refuse_writing_over(data.files(), *files)
    with held(out, "secl suggest"):
        refuse_unlisted(out, [file.name for file in files])
        remove_partial(out, [file.name for file in files])
        structures = structure_names(committee.teacher.classes)
        page = render("suggestions.html.j2", _context(candidates, committee, data, by))
        with writing(out, AGAIN):
            note_written(out, *(file.name for file in files))
            write_table(files[0], SuggestionRow, (_row(each, structures) for each in candidates))
            write_text(files[1], page)
    return files


def missing_names(candidate: Candidate, structures: Sequence[str]) -> str:
    """The structures that no network sees in a patient, between semicolons.

    Args:
        candidate: The patient.
        structures: Names, by class index from 1.
    """
    return ";".join(structures[index - 1] for index in candidate.missing)


def _row(candidate: Candidate, structures: Sequence[str]) -> SuggestionRow:
    return SuggestionRow(
        candidate.patient,
        "yes" if candidate.suggested else "no",
        round(candidate.disagreement, 6),
        missing_names(candidate, structures),
        "" if candidate.group is None else str(candidate.group + 1),
        ";".join(look.case.name for look in candidate.looks),
    )


def _context(candidates: Sequence[Candidate], committee: Committee, data: DataSet, by: str) -> dict[str, Any]:
    suggested = [candidate for candidate in candidates if candidate.suggested]
    structures = structure_names(committee.teacher.classes)
    rows = [
        {"patient": row.patient, "disagreement": f"{row.disagreement:.4f}", "group": row.group,
         "missing": row.missing.replace(";", ", "), "suggested": row.suggested == "yes"}
        for row in (_row(each, structures) for each in candidates)
    ]  # fmt: skip
    names = [candidate.patient for candidate in suggested]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    shown = [_shown(candidate, committee, data) for candidate in suggested]
    most = max(float(apart.max()) for _, _, apart in shown) or math.log(committee.votes)
    return {
        "title": "Whom to label next",
        "heading": f"Label next: {', '.join(names[:NAMED])}{more}",
        "subtitle": SUBTITLES[by].format(len(suggested)),
        "by": by,
        "figures": [
            {"name": "suggested", "value": str(len(suggested)), "unit": ""},
            {"name": "patients without a label", "value": str(len(candidates)), "unit": ""},
            {"name": "answers to each image", "value": str(committee.votes), "unit": ""},
        ],
        "pictures": [_picture(*each, committee, most) for each in shown],
        "legend": legend(structures, COLOURS),
        "rows": rows,
        "any_missing": any(row["missing"] for row in rows),
        "votes": committee.votes,
        "most": f"{most:.2g}",
        "possible": f"{math.log(committee.votes):.2f}",
    }


def _shown(candidate: Candidate, committee: Committee, data: DataSet) -> tuple[Look, Volume, npt.NDArray[np.float32]]:
    """The case of a patient that is disagreed on most, as read, and how far the votes are apart in its slice."""
    look: Look = max(candidate.looks, key=lambda each: each.disagreement)
    volume = load_volume(look.case, as_trained(data, committee.teacher.config.data.spacing_from))
    apart = committee.divergence(volume).apart
    return look, volume, apart[..., look.plane] if apart.ndim == 3 else apart


def _picture(
    look: Look, volume: Volume, apart: npt.NDArray[np.float32], committee: Committee, most: float
) -> dict[str, Any]:
    drawn = [
        segment_volume(model.network, model.preprocess, model.config, volume)
        for model in (committee.student, committee.teacher)
    ]
    image = volume.image[0]
    if image.ndim == 3:
        image, *drawn = (array[..., look.plane] for array in (image, *drawn))
    png = doubt(image, (drawn[0], drawn[1]), apart, most, (volume.spacing or (1.0, 1.0))[:2])
    names = [] if look.case.name == look.case.patient else [look.case.name]
    place = [f"slice {look.plane + 1} of {volume.image.shape[3]}"] if volume.image.ndim == 4 else []
    return {"patient": look.case.patient, "place": ", ".join([*names, *place]), "png": png}
