# SPDX-License-Identifier: Apache-2.0
"""Which finished rows may stand for the runs of a study: those of its list, its options and its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, tell
from secl_models.study.jobs import Job, job_key
from secl_models.study.rows import Row, read_rows, row_key


def require_own_rows(jobs: Sequence[Job], file: Path) -> None:
    """Refuse a file whose rows would be compared, or taken for runs of this study, and are not of it.

    Args:
        jobs: All runs of the study, of one list.
        file: Its CSV file.

    Raises:
        InputError: Rows of another list, or of other options or cases under the names of these runs.
    """
    rows = read_rows(file)
    found, lists = {row_key(row): row for row in rows}, {row.split for row in rows} - {job.split for job in jobs}
    if jobs and lists:
        rule, got = f"a study of the {jobs[0].split} list alone", f"rows of {', '.join(sorted(lists))}"
        raise InputError(file, rule=rule, got=got, cure="name another --csv")
    pairs = [(job, found[job_key(job)]) for job in jobs if job_key(job) in found]
    for job, row in pairs:
        if row.digest not in ("", job.digest):
            got = f"a row of {job.method}, seed {job.seed}, of others that have the same names"
            cure = "name another --csv and --out, or restore the preset"
            raise InputError(file, rule="rows of the options and cases of this study", got=got, cure=cure)
    _tell_of_earlier(pairs)


def _tell_of_earlier(pairs: Sequence[tuple[Job, Row]]) -> None:
    """Say what stands for a run though it may not be quite the same."""
    if unknown := sum(not row.digest for _, row in pairs):
        sentence = f"{unknown} finished runs are of an earlier version, whose methods may have had other options."
        tell("note", sentence, level=NOTE, runs=unknown)
    if against := {row.against for job, row in pairs if row.against != job.against and row.against}:
        sentence = f"Labels only at equal time have the seconds of {', '.join(sorted(against))}: named last before."
        tell("note", sentence, level=NOTE, against=sorted(against))
