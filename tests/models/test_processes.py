# SPDX-License-Identifier: Apache-2.0
"""Several processes are one with the joined batch, resume bit for bit, and do not outlive one another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from secl_models.data.cases import DataSet
from secl_models.data.files import write_text
from secl_models.data.splits import Split, make_split
from secl_models.method import checkpoint
from secl_models.method.device import choose_device
from secl_models.method.learner import Learner
from secl_models.method.objective import Objective
from secl_models.method.processes import Processes, launched, start_fabric
from secl_models.options.errors import InputError
from secl_models.options.methods import METHODS
from secl_models.options.schema import RunConfig, to_yaml
from secl_models.train import run as train
from tests.models.ranks import SECONDS, finish, start_ranks
from tests.models.test_train import CONFIG, assert_same, rows, run, set_train, write_toy

# float32 sums of the same numbers in another order, over three steps of an optimiser that divides by their size;
# later a teacher's probability that rounds across the threshold changes a draw
SAME = 2e-4


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


def run_of_each(config: RunConfig, data: tuple[DataSet, Split], out: Path, **options: Any) -> Callable[[int], object]:
    """A run as what each rank does."""
    return lambda rank: run(config, data, out, **options)


def joined(**contrast: Any) -> RunConfig:
    """Every term from the first step on, and two taps; the queue overflows."""
    config = set_train(CONFIG, warm_start=0.0, batch=4, unlabeled_batch=4, steps=6)
    config = replace(config, network=replace(config.network, taps=(0, 1)))
    return replace(config, contrast=replace(config.contrast, **contrast), augment=replace(config.augment, flip=(0, 1)))


def leaving_state(task: Callable[[], object], file: Path) -> None:
    """Run the task and keep what its learner ends with."""
    summary = train._summary

    def keeping(run: Any, total: float) -> Any:
        torch.save(run.learner.state(), file)
        return summary(run, total)

    with patch.object(train, "_summary", keeping):
        task()


def assert_near(ours: Any, theirs: Any, where: str = "") -> None:
    """Nested states of the same run in other processes."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_near(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, torch.Tensor) and theirs.is_floating_point():
        assert (ours - theirs).abs().max() <= SAME * theirs.abs().max(), where
    else:
        assert_same(ours, theirs, where)


@pytest.mark.parametrize(
    ("method", "contrast"),
    [
        ("secl", {"queue": 20}),
        ("secl", {"strategy": "stratified", "denominator": "all"}),
        ("secl", {"strategy": "hard", "queue": 0}),
        ("secl+", {"queue": 20}),
        ("mixed-region", {}),
        ("prototypes", {}),
        ("centroids", {}),
        ("disagreement", {}),
    ],
    ids=["queue", "stratified", "hard", "mixtures", "mixed-region", "prototypes", "centroids", "disagreement"],
)
def test_two_processes_are_one_with_the_joined_batch(
    method: str,
    contrast: dict[str, Any],
    toy: tuple[DataSet, Split],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    # With seed 0 a gradient of mixed-region lies so near to Adam's epsilon that its rounding moves a weight.
    config = replace(set_train(joined(**contrast), method=method), seed=1)
    # At 0.1 a rounding error grows a hundredfold in three steps of an untrained network.
    config = replace(config, prototype=replace(config.prototype, temperature=1.0))
    leaving_state(lambda: run(config, toy, tmp_path / "one", max_steps=3), tmp_path / "alone")
    ranks = start_ranks(
        2, lambda rank: leaving_state(lambda: run(config, toy, tmp_path / "two", max_steps=3), tmp_path / f"rank{rank}")
    )
    assert [finish(rank) for rank in ranks] == [0, 0]
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("alone", "rank0", "rank1")
    )  # fmt: skip
    assert_same(first, second)
    assert_near(first, alone)
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in theirs] == ["1", "2", "3"]
    # of an anatomical term alone; a mixture's teacher sees no image whose truth is known
    judged = ("coverage", "precision")[: ("anatomical" in METHODS[method].terms) * (2 - METHODS[method].mixes)]
    assert all(float(theirs[-1][name]) > 0 for name in METHODS[method].terms)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "supervised", *METHODS[method].terms, *judged):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=SAME), (name, other["step"])


def test_the_mean_is_over_the_valid_anchors_of_all_processes(tmp_path: Path) -> None:
    """The first process has one valid anchor, the second four."""
    generator = torch.Generator().manual_seed(0)
    anchors, keys = torch.randn(8, 8, generator=generator), torch.randn(6, 8, generator=generator)
    labels, key_labels = torch.tensor([0, -1, -1, 2, 0, 1, 1, 0]), torch.tensor([0, 1, 1, 0, -1, 0])

    def loss_of(processes: Processes, own: slice) -> tuple[torch.Tensor, torch.Tensor]:
        rows = anchors[own].clone().requires_grad_()
        loss = Objective(joined(), 1, processes)._info_nce(rows, [keys], labels[own], [key_labels])
        loss.backward()
        assert rows.grad is not None
        return loss.detach(), rows.grad

    def task(rank: int) -> None:
        start_fabric(torch.device("cpu"), "32-true", launched())
        torch.save(loss_of(Processes(launched()), launched().of(8)), tmp_path / str(rank))

    assert [finish(rank) for rank in start_ranks(2, task)] == [0, 0]
    loss, gradient = loss_of(Processes(), slice(0, 8))
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    assert torch.equal(found[0][0], found[1][0])
    assert_near(found[0][0], loss)
    assert_near(torch.cat([each[1] for each in found]), gradient)


def test_two_processes_resume_bit_for_bit_and_only_the_first_writes(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and a batch norm, whose statistics each process would otherwise keep to itself."""
    config = replace(joined(), network=replace(CONFIG.network, name="tests.models.test_interrupt:noisy"))
    save = checkpoint.save

    def of_rank_zero(path: Path, state: Any) -> None:
        assert os.environ["RANK"] == "0"
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", of_rank_zero)
    for folder, options in (("whole", {}), ("broken", {"max_steps": 4}), ("broken", {"resume": True})):
        ranks = start_ranks(2, run_of_each(config, toy, tmp_path / folder, **options))
        assert [finish(rank) for rank in ranks] == [0, 0]
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("broken", "whole"))
    for clock in ("seconds", "processor_seconds"):
        assert ours.pop(clock) != theirs.pop(clock)
    assert_same(ours, theirs)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_run_of_two_processes_goes_on_in_one_and_says_so(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    config = joined()
    ranks = start_ranks(2, lambda rank: run(config, toy, tmp_path, max_steps=1))
    assert [finish(rank) for rank in ranks] == [0, 0]
    summary = run(config, toy, tmp_path, resume=True, max_steps=2)
    assert "Started in 2 processes, resumed in 1: equal to rounding, not bit for bit." in summary.notes


def refusals(folder: Path, task: Callable[[int], object], count: int = 2) -> list[str]:
    """What each process refused; a process that was killed says nothing."""

    def told(rank: int) -> None:
        try:
            task(rank)
        except InputError as error:
            (folder / f"said{rank}").write_text(str(error))
            raise

    codes = [finish(rank) for rank in start_ranks(count, told)]
    assert all(codes), "a process ended as if nothing had happened"
    return [(folder / f"said{rank}").read_text() if (folder / f"said{rank}").is_file() else "" for rank in range(count)]


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_takes_the_others_along(
    dying: int, toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner._loss_with_teacher

    def dies(learner: Learner, ramp: float) -> Any:
        if learner.done == 4 and learner.processes.share.rank == dying:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(learner, ramp)

    monkeypatch.setattr(Learner, "_loss_with_teacher", dies)
    begin = time.monotonic()
    said = refusals(tmp_path, lambda rank: run(joined(), toy, tmp_path / "run"))
    assert time.monotonic() - begin < SECONDS / 2
    assert said[dying] == ""
    assert (
        f"process {1 - dying} of 2: all processes of a run go on together; got another one that stopped"
        in (said[1 - dying])
    )
    assert "go on with the same command and --resume" in said[1 - dying]
    assert checkpoint.load(tmp_path / "run")["step"] == 3


def test_processes_of_different_runs_are_refused(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    said = refusals(tmp_path, lambda rank: run(replace(joined(), seed=rank), toy, tmp_path / "run"))
    for one in said:
        assert one.startswith("seed: the same in every process of a run; got 0 in process 0, 1 in process 1. Cure: ")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_divided_is_refused(
    toy: tuple[DataSet, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"train\.batch: a multiple of the 3 processes.*got 4\. Cure: write 6"):
        run(joined(), toy, tmp_path / "run")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_device("cuda", 3) == torch.device("cuda", 2)
    with pytest.raises(InputError, match="each with a GPU of its own; got cuda:0"):
        choose_device("cuda:0", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"got cuda:2 with 2 such GPUs here.*fewer processes"):
        choose_device("cuda", 3)


@pytest.mark.exhaustive
def test_sigterm_to_torchrun_leaves_a_run_that_resumes_bit_for_bit(toy: tuple[DataSet, Split], tmp_path: Path) -> None:
    config = set_train(joined(), steps=2000, validate_every=2000, checkpoint_every=2, batch=2, unlabeled_batch=2)
    write_text(tmp_path / "config.yaml", to_yaml(config))
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("-m", "secl_models", "train", "--data", toy[0].root, "--preset", tmp_path / "config.yaml", "--out", out),
    ]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out / checkpoint.LAST).is_file():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode != 0
    assert "Stopped by SIGTERM after a step that is kept. Go on from the last checkpoint: the same torchrun" in said
    kept = checkpoint.load(out)["step"]
    assert 0 < kept < 2000
    for folder, options in ((out, {"resume": True}), (tmp_path / "whole", {})):
        ranks = start_ranks(2, run_of_each(config, toy, folder, max_steps=kept + 2, **options))
        assert [finish(rank) for rank in ranks] == [0, 0]
    ours, theirs = (checkpoint.load(folder) for folder in (out, tmp_path / "whole"))
    for clock in ("seconds", "processor_seconds"):
        ours.pop(clock), theirs.pop(clock)
    assert_same(ours, theirs)
