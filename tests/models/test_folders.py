# SPDX-License-Identifier: Apache-2.0
"""A folder belongs to one process at a time, and only what is on its list is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from secl_models.command.demo import run_demo
from secl_models.data.files import UNFINISHED
from secl_models.data.folders import (
    LISTED,
    LOCK,
    held,
    note_written,
    refuse_unlisted,
    refuse_writing_over,
    remove_partial,
    remove_written,
    strangers,
    written,
)
from secl_models.data.probabilities import ProbabilityFile
from secl_models.data.splits import make_split
from secl_models.inference.evaluate import evaluate
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from secl_models.report.page import write_report
from secl_models.study.jobs import Job
from secl_models.study.runs import run_study
from secl_models.train.run import train
from tests.models.files import image_array, write_nifti
from tests.models.runs import TinyRun, tiny_run

HOLDER = """
import sys, time
from pathlib import Path
from secl_models.data.folders import held
with held(Path(sys.argv[1]), "secl train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


@pytest.fixture
def own(run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of the run, to be changed."""
    return replace(run, folder=Path(shutil.copytree(run.folder, tmp_path / "own")))


@pytest.fixture
def busy(own: TinyRun) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder of the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, own.folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def _train(run: TinyRun, out: Path, **options: Any) -> None:
    train(
        run.config, run.data, make_split(run.data, run.config.labeled, run.config.seed), out, progress=False, **options
    )


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_whoever_comes_second_is_refused_with_the_name_of_the_first(
    own: TinyRun, busy: subprocess.Popen[str], tmp_path: Path
) -> None:
    before = _contents(own.folder)
    message = (
        rf"{re.escape(str(own.folder))}: one process at a time writes to a folder; "
        rf"got secl train, process {busy.pid} on \S+ since 20\d\d-\S+ \S+\. Cure: wait for that one"
    )
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=message):
            _train(own, own.folder, **options)
    with pytest.raises(InputError, match=message):
        evaluate(own.folder, own.data, progress=False)
    job = Job(own.data.root, "demo", 2, "supervised", 0)
    with pytest.raises(InputError, match=message):
        run_study([job], own.folder, tmp_path / "study.csv")
    assert _contents(own.folder) == before
    assert evaluate(own.folder, own.data, out=tmp_path / "elsewhere", progress=False)


def test_a_process_that_died_holds_nothing(own: TinyRun, busy: subprocess.Popen[str]) -> None:
    busy.send_signal(signal.SIGKILL)
    busy.wait()
    assert (own.folder / ".secl.holder").read_text().startswith("secl train, process")
    _train(own, own.folder, resume=True)
    assert not [path.name for path in own.folder.iterdir() if path.name.startswith(".") and path.name != LISTED]


def test_a_disk_without_locks_has_a_file_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS without locks: the file of a process that died here is no lock, that of one elsewhere is."""

    def lockless(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", lockless)
    with (
        held(tmp_path, "secl train"),
        pytest.raises(InputError, match=rf"got secl train, process {os.getpid()} on .*; where that process is gone"),
        held(tmp_path, "secl train"),
    ):
        raise AssertionError("both hold it")
    assert list(tmp_path.iterdir()) == []
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    owner = tmp_path / ".secl.owner"
    owner.write_text(f"{process.pid}\n{socket.gethostname()}\n")
    with held(tmp_path, "secl train"):
        pass
    owner.write_text("1\nanother-machine\n")
    with pytest.raises(InputError, match=f"another process that writes there.*remove {owner}"), held(tmp_path, "x"):
        raise AssertionError("held")


def test_two_studies_do_not_share_a_table(tmp_path: Path) -> None:
    with held(tmp_path, "secl study", file="study.csv"):
        with (
            pytest.raises(InputError, match=r"study\.csv: one process at a time writes to a file; got secl study"),
            held(tmp_path, "secl study", file="study.csv"),
        ):
            raise AssertionError("both hold it")
        with held(tmp_path, "secl study"), held(tmp_path, "secl study", file="other.csv"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_came_into_is_gone_again(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b", "secl train"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not (tmp_path / "a" / "b").exists()
    with held(tmp_path / "c", "secl train"):
        (tmp_path / "c" / "mine").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a folder to write to; got a file"), held(tmp_path / "file", "secl train"):
        raise AssertionError("held")


def test_only_files_on_the_list_are_removed(tmp_path: Path) -> None:
    note_written(tmp_path, "a.csv", "board/events", "a.csv", "replaced", "../outside", "/etc/hostname")
    (tmp_path / "board").mkdir()
    (tmp_path / "replaced").mkdir()
    outside = tmp_path.parent / "outside"
    for file in ("a.csv", "board/events", "mine.txt", "download.partial", ".a.csv.12.partial", ".b.csv.12.partial"):
        (tmp_path / file).touch()
    outside.touch()
    remove_written(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"mine.txt", "download.partial", ".b.csv.12.partial", "replaced"}
    assert outside.exists()
    remove_written(tmp_path)
    assert written(tmp_path) == {}


def test_a_folder_goes_with_its_last_file(tmp_path: Path) -> None:
    note_written(tmp_path / "run", "a.csv")
    (tmp_path / "run" / "a.csv").touch()
    remove_written(tmp_path / "run", whole=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"not json\n", b"\xff\xfe", b'{"a": 1\n'])
def test_a_list_that_was_edited_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LISTED).write_bytes(content)
    with pytest.raises(InputError, match=r"\.secl\.files: the list of the files that were written to the folder"):
        written(tmp_path)


def test_unfinished_files_of_other_programs_stay(tmp_path: Path) -> None:
    for name in (".last.pt.7.partial", ".last.pt.x.partial", "last.pt.7.partial", ".other.7.partial"):
        (tmp_path / name).touch()
    remove_partial(tmp_path, ["last.pt"])
    assert not (tmp_path / ".last.pt.7.partial").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_of_probabilities_that_were_never_packed_go(tmp_path: Path) -> None:
    file = ProbabilityFile(tmp_path / "a_probabilities.nii.gz", write_nifti(tmp_path / "a.nii", image_array()), 2)
    file.__enter__()  # and the process dies
    note_written(tmp_path, "a.nii", "a_probabilities.nii.gz")
    assert len(list(tmp_path.glob(f".{UNFINISHED}"))) == 1
    assert strangers(tmp_path) == []
    remove_partial(tmp_path, written(tmp_path))
    assert list(tmp_path.glob(f".{UNFINISHED}")) == []


def test_training_leaves_what_it_did_not_write(own: TinyRun, tmp_path: Path) -> None:
    """Also a folder whose name looks like an evaluation, and a file of the name of a report."""
    evaluate(own.folder, own.data, progress=False)
    (own.folder / "evaluation_notes").mkdir()
    for name in ("download.partial", "report.html", "evaluation_mine.csv", "tensorboard/notes.txt"):
        (own.folder / name).write_text("mine")
    _train(own, own.folder, overwrite=True)
    for name in ("download.partial", "report.html", "evaluation_mine.csv", "tensorboard/notes.txt"):
        assert (own.folder / name).read_text() == "mine"
    assert (own.folder / "evaluation_notes").is_dir()
    assert not (own.folder / "evaluation_test_last.csv").exists()
    assert len(list((own.folder / "tensorboard").glob("events*"))) == 1
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("mine")
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(
            InputError, match=r"own list are replaced or removed; got config\.yaml, which nobody listed"
        ):
            _train(own, tmp_path / "new", **options)
    assert _contents(tmp_path / "new") == {"config.yaml": b"mine"}


def test_foreign_files_are_counted_when_they_are_many(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="got a, b, c and more, which nobody listed"):
        refuse_unlisted(tmp_path, names)
    note_written(tmp_path, *names)
    refuse_unlisted(tmp_path, names)


def test_a_demo_removes_no_file_that_no_demo_wrote(tmp_path: Path) -> None:
    (tmp_path / "phantom" / "imagesTr").mkdir(parents=True)
    (tmp_path / "phantom" / "imagesTr" / "mine.nii.gz").touch()
    with pytest.raises(InputError, match=r"imagesTr/mine\.nii\.gz, which nobody listed"):
        run_demo(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["phantom", "imagesTr", "mine.nii.gz"]


def test_an_evaluation_and_a_report_replace_their_own_files_alone(own: TinyRun, tmp_path: Path) -> None:
    for _ in range(2):
        evaluate(own.folder, own.data, progress=False)
        write_report([own.folder], own.data, own.folder / "report.html")
    for name in ("evaluation_test.json", "evaluation_test_best_patients.csv", "report.html"):
        (tmp_path / name).write_text("mine")
        call: partial[Any] = partial(evaluate, own.folder, own.data, out=tmp_path, progress=False)
        if name == "report.html":
            call = partial(write_report, [own.folder], own.data, tmp_path / name)
        with pytest.raises(InputError, match=f"got {name}, which nobody listed"):
            call()
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_a_demo_that_was_killed_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list, a lock and half a checkpoint in the folder of a method."""
    folder = tmp_path / "secl+"
    note_written(folder, "last.pt", "tensorboard/events")
    (folder / "tensorboard").mkdir()
    for name in ("last.pt", "tensorboard/events", ".last.pt.7.partial", LOCK, ".secl.holder"):
        (folder / name).touch()
    monkeypatch.setattr("secl_models.command.demo._run_all", lambda out, *_: out)
    with pytest.raises(InputError, match=r"a new folder for the demo; got a folder with secl\+"):
        run_demo(tmp_path)
    assert run_demo(tmp_path, overwrite=True) == tmp_path
    assert not folder.exists()


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_an_input_is_never_written_over_under_any_name(run: TinyRun, tmp_path: Path, link: object) -> None:
    assert callable(link)
    scan = Path(shutil.copy(run.data.cases[0].image[0], tmp_path / "scan.nii.gz"))
    before = scan.read_bytes()
    link(scan, tmp_path / "other.nii.gz")
    for out in ("scan.nii.gz", "other.nii.gz", "./../" + tmp_path.name + "/scan.nii.gz"):
        with pytest.raises(InputError, match="what is read is never written over"):
            predict(run.folder, scan, tmp_path / out, overwrite=True)
    with pytest.raises(InputError, match="never written over"):
        refuse_writing_over([tmp_path / "not.yet"], tmp_path / "a" / ".." / "not.yet")
    assert scan.read_bytes() == before


def test_segmentations_do_not_go_into_the_folder_of_the_images(run: TinyRun, tmp_path: Path) -> None:
    images = Path(shutil.copytree(run.data.cases[0].image[0].parent, tmp_path / "images"))
    (tmp_path / "link").symlink_to(images)
    before = _contents(images)
    for out in (images, tmp_path / "link"):
        with pytest.raises(InputError, match="--out: another folder than --input"):
            predict(run.folder, images, out, overwrite=True)
    assert _contents(images) == before


def test_probabilities_do_not_take_the_place_of_an_image(run: TinyRun, tmp_path: Path) -> None:
    """The image b is, by a link, the file that the probabilities of a would be."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    out.mkdir()
    scan = run.data.cases[0].image[0]
    for file in (images / "a.nii.gz", out / "a_probabilities.nii.gz"):
        shutil.copy(scan, file)
    (images / "b.nii.gz").symlink_to(out / "a_probabilities.nii.gz")
    with pytest.raises(InputError, match=r"a_probabilities\.nii\.gz: what is read is never written over"):
        predict(run.folder, images, out, overwrite=True, probabilities=True)
    (images / "b.nii.gz").unlink()
    shutil.copy(scan, images / "a_probabilities.nii.gz")
    with pytest.raises(InputError, match=r"a_probabilities\.nii\.gz: each image has files of its own"):
        predict(run.folder, images, tmp_path / "new", probabilities=True)
    assert (out / "a_probabilities.nii.gz").read_bytes() == scan.read_bytes()


def test_a_table_that_is_the_data_set_is_not_written_over(run: TinyRun, tmp_path: Path) -> None:
    rows = [f"{case.image[0]},{case.label or ''},{case.patient}," for case in run.data.cases]
    table = tmp_path / "history.csv"
    table.write_text("\n".join(["image,label,patient,split", *rows]))
    data = replace(run.data, root=table)
    with pytest.raises(InputError, match=r"history\.csv: what is read is never written over"):
        _train(replace(run, data=data), tmp_path, overwrite=True)
    assert table.read_text().startswith("image,label")


def test_waiting_for_a_lock_takes_no_time(tmp_path: Path) -> None:
    with held(tmp_path, "secl train"):
        begin = time.monotonic()
        with pytest.raises(InputError), held(tmp_path, "secl train"):
            raise AssertionError("both hold it")
        assert time.monotonic() - begin < 1
