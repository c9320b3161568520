# SPDX-License-Identifier: Apache-2.0
"""A comparison goes into new files or over an earlier one, never over what a run or another command wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secl_models.data.cases import DataSet
from secl_models.data.folders import note_written
from secl_models.options.errors import InputError
from secl_models.report.comparison import write_comparison
from secl_models.report.comparison_targets import refuse_targets
from secl_models.train.run_folder import CONFIG, RUN_FILES
from tests.models.written_runs import write_run

SCORES = {("p1", "p1_0"): (0.5, 0.6), ("p2", "p2_0"): (0.7, 0.8)}


@pytest.mark.parametrize("name", [*RUN_FILES, "evaluation_test_last.csv", "evaluation_test.json", "report.html"])
def test_a_file_of_a_run_is_never_written_over(name: str, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / part, scores=SCORES) for part in ("a", "b")]
    file, page = tmp_path / "b" / name, tmp_path / "page.html"
    note_written(tmp_path / "b", *RUN_FILES, "evaluation_test_last.csv", "evaluation_test.json", "report.html")
    (tmp_path / "link").symlink_to("b")
    file.touch()
    before = file.read_bytes()
    for out, table in ((file, None), (tmp_path / "link" / name, None), (page, file)):
        with pytest.raises(InputError, match=r"what is read is never written over|only files on the folder's own list"):
            write_comparison(runs, out, csv=table)
    file.unlink()
    if name in RUN_FILES and name != CONFIG:
        with pytest.raises(InputError, match="what is read is never written over; got that very file"):
            write_comparison(runs, file)
    file.write_bytes(before)
    assert not page.exists()


def test_what_another_command_wrote_is_not_replaced(tmp_path: Path) -> None:
    run, page, table = write_run(tmp_path / "a", scores=SCORES), tmp_path / "page.html", tmp_path / "t.csv"
    note_written(tmp_path, page.name, table.name, "t_pairs.csv")
    for file, text in ((page, '<p class="eyebrow">Segmentation run</p>'), (table, "step,seconds\n")):
        file.write_text(text)
        with pytest.raises(InputError, match=rf"{file.name}: only an earlier comparison is replaced; got another file"):
            write_comparison([run], page, csv=table)
        assert file.read_text() == text
        file.unlink()
    written = write_comparison([run], page, csv=table)
    assert write_comparison([run], page, csv=table) == written


def test_the_page_and_each_table_are_files_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", scores=SCORES)
    for page, table in (("a.html", "a.html"), ("b_pairs.csv", "b.csv"), ("a/../a.html", "a.html")):
        with pytest.raises(InputError, match="a file of its own for the page and for each table; got the same as"):
            write_comparison([run], tmp_path / page, csv=tmp_path / table)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_the_data_are_not_written_over_but_an_earlier_page_beside_them_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    listed = tmp_path / "cases.csv"
    listed.write_text("image,label,patient,split\n")
    note_written(tmp_path, listed.name)
    data = DataSet(listed, "csv", {1: "ring", 2: "core"}, ("MRI",), ())
    with pytest.raises(InputError, match=r"cases\.csv: what is read is never written over"):
        write_comparison([run], tmp_path / "page.html", csv=listed, data=data)
    assert listed.read_text() == "image,label,patient,split\n"
    folder = replace(data, root=tmp_path)
    write_comparison([run], tmp_path / "page.html")
    refuse_targets([run], tmp_path / "page.html", [], folder)
