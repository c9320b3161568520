# SPDX-License-Identifier: Apache-2.0
"""A file holds its old content or all of the new one, on the disk where that is asked for, and leaves no litter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secl_models.data.files import UNFINISHED, partial_path, whole_file, write_bytes, write_text


def test_bytes_and_text_arrive_in_a_folder_that_is_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"\r\n")
    write_text(tmp_path / "new" / "b", "Größe ± 1\n")
    assert (tmp_path / "new" / "a").read_bytes() == b"\r\n"
    assert (tmp_path / "new" / "b").read_bytes() == "Größe ± 1\n".encode()
    assert sorted(os.listdir(tmp_path / "new")) == ["a", "b"]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("place", ["write", "fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(
    place: str, durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    if place != "write":
        monkeypatch.setattr(os, place, fail)

    def write() -> None:
        with whole_file(path, durable=durable) as stream:
            stream.write(b"new")
            if place == "write":
                fail()

    if place == "fsync" and not durable:
        write()
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(OSError, match="disk full"):
            write()
        assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_durable_file_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        what = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append(f"sync {what.stat().st_size} bytes" if what.is_file() else f"sync {what.name}/")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    folder = tmp_path / "run"
    folder.mkdir()
    with whole_file(folder / "a", durable=True) as stream:
        stream.write(b"12345")
    assert seen == ["sync 5 bytes", "rename", "sync run/"]


def test_what_is_unfinished_is_found_by_its_pattern(tmp_path: Path) -> None:
    partial_path(tmp_path / "last.pt").touch()
    (tmp_path / "last.pt").touch()
    assert list(tmp_path.glob(UNFINISHED)) == [partial_path(tmp_path / "last.pt")]
