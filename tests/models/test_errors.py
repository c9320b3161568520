# SPDX-License-Identifier: Apache-2.0
"""Errors that end a command: one message with a cure and status 2, whatever went wrong below."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from secl_models.command import cli
from secl_models.data.cases import Case, DataSet
from secl_models.data.files import whole_file
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference import predict as prediction
from secl_models.options.errors import InputError, WriteError, without_memory
from tests.models.runs import TinyRun, tiny_run


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def _check(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr("secl_models.data.layouts.read_data_set", raising)
    return CliRunner().invoke(cli.app, ["check", "--data", "d"])


@pytest.mark.parametrize("kind", [InputError, WriteError])
def test_an_error_is_the_same_after_a_process_boundary(kind: type[InputError]) -> None:
    error = kind("a.nii", rule="b", got=(1, 2), cure="c")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.what, copy.rule, copy.got, copy.cure) == (str(error), "a.nii", "b", "(1, 2)", "c")


def test_what_the_system_refuses_has_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "study.csv"))
    result = _check(monkeypatch, full)
    assert result.exit_code == 2
    assert result.stderr == (
        f"secl: {tmp_path / 'study.csv'}: room on the disk; got No space left on device. Cure: free some space on the "
        f"disk of {tmp_path}, then call it again.\n"
    )
    assert "Cure: make it writable" in _check(monkeypatch, OSError(errno.EROFS, "Read-only file system")).stderr


def test_a_failed_write_names_the_file_itself(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as refusal, whole_file(tmp_path / "a.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert refusal.value.filename == str(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"), torch.OutOfMemoryError("CUDA out of memory. Tried 9 TiB\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_too_little_memory_has_a_cure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    result = _check(monkeypatch, error)
    assert result.exit_code == 2
    place = "the GPU" if "CUDA" in str(error) else "this machine"
    assert f"secl: secl check: what fits into the memory of {place}; got {str(error).splitlines()[0]}" in result.stderr
    assert "Cure: lower train.batch" in result.stderr
    assert without_memory(ValueError("other"), "x") is None


def test_another_error_of_the_program_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(_check(monkeypatch, RuntimeError("a defect")).exception, RuntimeError)


def test_an_image_beyond_the_memory_does_not_stop_the_others(
    run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = run.data.cases[0].image[0].parent
    first = sorted(images.iterdir())[0]

    def failing(case: Case, data: DataSet) -> Volume:
        if first in case.image:
            np.empty(1 << 58)
        return load_volume(case, data)

    monkeypatch.setattr(prediction, "load_volume", failing)
    found = prediction.predict(run.folder, images, tmp_path / "out")
    assert [failure.what for failure in found.failures] == [str(first)]
    assert len(found.written) == len(list(images.iterdir())) - 1


def test_who_reads_no_further_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _check(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert "Cure" not in result.output
