# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment, on a full disk or in a folder that cannot be written goes on bit for bit."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from torch import nn

from secl_models.data import files
from secl_models.data.cases import DataSet
from secl_models.data.splits import Split, make_split
from secl_models.method import checkpoint
from secl_models.method.learner import Learner
from secl_models.method.networks import TappedModule
from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig
from secl_models.train import run as train
from secl_models.train import run_folder as records
from secl_models.train.stopping import Terminated
from tests.models.ranks import finish, start
from tests.models.test_train import CONFIG, ONE_PATIENT, assert_same_run, run, set_train, write_toy

FAST = set_train(CONFIG, validate_every=4, checkpoint_every=1)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


@pytest.fixture(scope="module")
def whole(toy: tuple[DataSet, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(FAST, toy, out)
    return out


def killed(task: Callable[[], object]) -> None:
    assert finish(start(task)) == -signal.SIGKILL


def kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_between_write_and_rename(out: Path, count: int) -> None:
    replace_file, seen = os.replace, 0

    def replacing(source: Any, target: Any) -> None:
        nonlocal seen
        seen += Path(target).name == checkpoint.LAST
        if seen == count:
            kill_self()
        replace_file(source, target)

    setattr(os, "replace", replacing)  # noqa: B010  # mypy lets no other function stand there


def dying_in_the_middle_of_the_file(out: Path, count: int) -> None:
    save, seen = torch.save, 0

    def saving(state: Any, stream: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            save(state["student"], stream)
            stream.flush()
            kill_self()
        save(state, stream)

    setattr(torch, "save", saving)  # noqa: B010  # as above


def dying_before_the_folder_is_synced(out: Path, count: int) -> None:
    sync, seen = files._sync_folder, 0

    def syncing(folder: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            kill_self()
        sync(folder)

    files._sync_folder = syncing


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(
    "dying", [dying_between_write_and_rename, dying_in_the_middle_of_the_file, dying_before_the_folder_is_synced]
)
def test_killed_while_a_checkpoint_is_written(
    dying: Callable[[Path, int], None], count: int, toy: tuple[DataSet, Split], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def task() -> None:
        dying(out, count)
        run(FAST, toy, out)

    killed(task)
    if dying is not dying_before_the_folder_is_synced:
        assert [path for path in out.iterdir() if path.name.endswith(".partial")]
    run(FAST, toy, out, resume=True)
    assert_same_run(out, whole)


def test_killed_again_and_again_at_random_moments(toy: tuple[DataSet, Split], whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    out, reached = tmp_path / "run", []
    begin = time.monotonic()
    run(FAST, toy, tmp_path / "timed")
    lasts = time.monotonic() - begin
    for _ in range(6):
        process = start(lambda: run(FAST, toy, out, resume=True))
        time.sleep(chance.uniform(0.1, 0.9) * lasts)
        process.kill()
        finish(process)
        if (out / checkpoint.LAST).is_file():
            reached.append(checkpoint.load(out)["step"])
    assert reached == sorted(reached)
    run(FAST, toy, out, resume=True)
    assert_same_run(out, whole)


def test_max_steps_stops_with_the_schedules_of_steps_and_resumes_bit_for_bit(
    toy: tuple[DataSet, Split], whole: Path, tmp_path: Path
) -> None:
    summary = run(FAST, toy, tmp_path, max_steps=3)
    assert summary.steps == 3
    assert summary.notes == (ONE_PATIENT, "Stopped at 3 of 8 steps; the same command with --resume goes on.")
    again = run(FAST, toy, tmp_path, max_steps=2, resume=True)
    assert again.steps == 3
    assert run(FAST, toy, tmp_path, max_steps=100, resume=True).notes == (ONE_PATIENT,)
    assert_same_run(tmp_path, whole)


def test_sigterm_keeps_the_step_it_came_in(toy: tuple[DataSet, Split], whole: Path, tmp_path: Path) -> None:
    config = set_train(FAST, checkpoint_every=100)
    before = signal.getsignal(signal.SIGTERM)
    original = Learner._loss_with_teacher

    def asked(learner: Learner, ramp: float) -> Any:
        if learner.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(learner, ramp)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_loss_with_teacher", asked)
        with pytest.raises(Terminated):
            run(config, toy, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.load(tmp_path)["step"] == 6
    run(replace(config, train=FAST.train), toy, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


class Noisy(nn.Module):
    """Dropout draws from torch's generator, and a batch norm has statistics beside its weights."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Conv2d(8, classes + 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.stem(x))
        return logits


def noisy(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    return TappedModule(Noisy(classes), ["stem"], [8])


def test_a_network_that_draws_its_own_randomness_resumes_bit_for_bit(
    toy: tuple[DataSet, Split], tmp_path: Path
) -> None:
    config = replace(FAST, network=replace(FAST.network, name=f"{__name__}:noisy"))
    torch.manual_seed(1)
    run(config, toy, tmp_path / "whole")
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "whoever calls keeps their generator"
    run(config, toy, tmp_path / "broken", max_steps=5)
    torch.rand(17)
    run(config, toy, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    state = checkpoint.load(tmp_path / "whole")
    assert state["student"]["network.module.stem.1.running_mean"].any()


def test_the_scale_of_half_precision_gradients_is_part_of_the_state(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_precision(*_: object) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        return Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    monkeypatch.setattr(train, "start_fabric", half_precision)
    run(FAST, toy, tmp_path / "whole")
    run(FAST, toy, tmp_path / "broken", max_steps=5)
    run(FAST, toy, tmp_path / "broken", resume=True)
    assert checkpoint.load(tmp_path / "whole")["precision"]["scale"] > 64.0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(
    small_disk: Path, toy: tuple[DataSet, Split], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk / "run"
    original = Learner.step

    def filling(learner: Learner, *arguments: Any, **options: Any) -> Any:
        if learner.done == 5:
            with (small_disk / "other").open("wb", buffering=0) as other:
                with suppress(OSError):
                    while other.write(bytes(4096)):
                        pass
                other.truncate(other.tell() - 16384)  # enough for history.csv
        return original(learner, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", filling)
        with pytest.raises(InputError) as refusal:
            run(FAST, toy, out)
    assert str(refusal.value).endswith(
        f": room on the disk; got No space left on device. Cure: free some space on the disk of {out}, then go on with "
        "the same command and --resume from the checkpoint that is there."
    )
    assert refusal.value.what == str(out / "last.pt")
    assert checkpoint.load(out)["step"] == 5
    assert not list(out.glob(".*.partial"))
    (small_disk / "other").unlink()
    run(FAST, toy, out, resume=True)
    assert_same_run(out, whole)


def test_a_folder_that_cannot_be_written_is_refused_and_stays(
    small_disk: Path, toy: tuple[DataSet, Split], whole: Path
) -> None:
    out = small_disk / "run"
    run(FAST, toy, out, max_steps=3)
    before = contents(out)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder, options in ((out, {"resume": True}), (small_disk / "new", {})):
        with pytest.raises(InputError) as refusal:
            run(FAST, toy, folder, **options)
        assert str(refusal.value) == (
            f"{folder}: a place that can be written; got Read-only file system. Cure: make it writable, or name "
            "another --out, then go on with the same command and --resume."
        )
    assert contents(out) == before
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    run(FAST, toy, out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_of_any_file_says_what_to_do(
    code: int, toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {errno.ENOSPC: "room on the disk", errno.EROFS: "a place that can be written"}[code]

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for number, (owner, name) in enumerate(
        [(checkpoint, "_serialize"), (records.History, "add"), (records.History, "write"), (records, "write_summary")]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(InputError, match=f"{rule}; got {os.strerror(code)}"):
                run(FAST, toy, tmp_path / str(number))
