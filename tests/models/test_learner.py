# SPDX-License-Identifier: Apache-2.0
"""One step: nothing in it waits for the device, its stages are timed, and compilation changes nothing."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from secl_models.data import resident
from secl_models.data.cases import DataSet
from secl_models.data.preprocess import resolve
from secl_models.data.sampling import Share
from secl_models.data.splits import Split, make_split
from secl_models.data.volumes import load_volume
from secl_models.method import augment
from secl_models.method import profiler as stages
from secl_models.method.learner import Learner, make_learner
from secl_models.method.networks import TappedModule
from secl_models.method.processes import Processes, start_fabric
from secl_models.method.step import StepContext
from secl_models.options.methods import METHODS
from secl_models.options.schema import NetworkConfig, RunConfig
from secl_ops import maps
from secl_ops.replay import Recalled
from tests.device_step import HostWaitError, fake_cuda, watched
from tests.models.test_train import CONFIG, rows, run, set_train, write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Split]:
    data = write_toy(tmp_path_factory.mktemp("toy") / "data")
    return data, make_split(data, 2, 0)


def learner(config: RunConfig, toy: tuple[DataSet, Split]) -> Learner:
    data, split = toy
    labeled, unlabeled = ([load_volume(case, data) for case in part] for part in (split.labeled, split.unlabeled[:2]))
    config = resolve(set_train(config, warm_start=0.0), data, labeled)
    fabric = start_fabric(torch.device("cpu"), config.train.precision, Share())
    return make_learner(config, labeled, unlabeled, 1, torch.device("cpu"), fabric, Processes())


def empty_on_device(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device="cuda")


def read_by_operations(tensor: Tensor, key: Any) -> Tensor:
    """Indexing as operations: torch's own asks for a CUDA build before it asks the dispatcher."""
    axis = 0
    for place in key if isinstance(key, tuple) else (key,):
        if isinstance(place, Tensor):
            return torch.ops.aten.index.Tensor(tensor, [None] * axis + [place])  # type: ignore[no-any-return]
        if isinstance(place, int):
            tensor = tensor.select(axis, place)
            continue
        if place is None:
            tensor = tensor.unsqueeze(axis)
        else:
            tensor = torch.ops.aten.slice.Tensor(tensor, axis, place.start, place.stop, place.step or 1)
        axis += 1
    return tensor


def drawn_without(draw: Any, *arguments: Any, generator: Any, **options: Any) -> Tensor:
    drawn: Tensor = draw(*arguments, **options)
    return drawn


def move_to_fake_device(ours: Learner) -> None:
    """Everything of a learner as fake CUDA tensors."""
    for module in (ours.student, ours.teacher.model, ours.objective):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(empty_on_device(parameter), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = empty_on_device(buffer)
    for pool in (ours.data._labeled, ours.data._unlabeled):
        pool._image = empty_on_device(pool._image, torch.float16)
        if pool._label is not None:
            pool._label = empty_on_device(pool._label)
    ours.device, ours.memory_format = torch.device("cuda"), torch.channels_last
    ours.optimizer = torch.optim.AdamW(ours.student.parameters(), fused=True)


@pytest.fixture(params=["secl", "secl+", "mixed-region", "prototypes", "centroids", "disagreement"])
def on_fake_device(
    request: pytest.FixtureRequest, toy: tuple[DataSet, Split], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Learner, list[str]]]:
    """A learner on fake CUDA tensors, and what its steps launch; an operation that waits raises."""
    config = replace(CONFIG, mix=replace(CONFIG.mix, largest=True))
    ours = learner(set_train(config, method=request.param), toy)

    def backward(loss: Tensor) -> None:
        assert loss.device.type == "cuda"
        for parameter in ours.student.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(resident, "_to_device", lambda table, _: empty_on_device(torch.from_numpy(table)))
    monkeypatch.setattr(Learner, "_generator", lambda *_: SimpleNamespace(device=torch.device("cuda")))
    for name in ("rand", "randn", "randint"):  # a generator of the device needs the device as well
        monkeypatch.setattr(torch, name, partial(drawn_without, getattr(torch, name)))
    monkeypatch.setattr(ours.fabric, "backward", backward)
    monkeypatch.setattr(FakeTensor, "__getitem__", read_by_operations)
    # Its decomposition, which fake tensors run, is not the kernel that a device runs.
    monkeypatch.setattr(augment, "grid_sample", lambda image, grid, **_: image.new_empty(image.shape))
    # Where torch has no CUDA its autograd aborts on such tensors; the backward pass has a test of its own. To the queue
    # it is a step that learns all the same.
    monkeypatch.setattr(maps, "recall", lambda _, *state: Recalled(state, first=True, learns=True))
    with fake_cuda() as (mode, _), torch.no_grad():
        move_to_fake_device(ours)
        mode.launches.clear()
        yield ours, mode.launches


def test_mixtures_take_turns_and_their_teacher_sees_the_unlabelled_images_alone(
    toy: tuple[DataSet, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one pair: mixed in one step, whole in the next."""
    ours = learner(set_train(CONFIG, method="secl+", batch=2, unlabeled_batch=3), toy)
    seen: list[StepContext] = []
    judge = ours.objective.forward

    def watching(context: StepContext, *rest: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(context)
        return judge(context, *rest)

    monkeypatch.setattr(ours.objective, "forward", watching)
    for _ in range(4):
        ours.step(1.0)
    assert [(context.taught, len(context.weak), len(context.teacher.logits)) for context in seen] == [(0, 3, 3)] * 4
    assert all(context.mixture is not None for context in seen)
    outside = [-1 in ours.data.batch(step, 2, 3)[1].label for step in range(4)]
    assert not any(outside)  # of the slices themselves: what moved in is
    assert all(context.shown is not None and 0.5 < context.shown.float().mean() < 1 for context in seen)
    shares = [context.mixture.inside.float().mean((1, 2)).tolist() for context in seen if context.mixture]
    assert [sorted(share) == [0.0, 1.0] for share in shares] == [False, True, False, True]


def test_no_step_waits_for_the_device(on_fake_device: tuple[Learner, list[str]]) -> None:
    ours, launches = on_fake_device
    logged = ours.step(1.0)
    method = ours.config.train.method
    parts = ("max_pool2d_with_indices",) if METHODS[method].mixes else ()  # of pseudo-labels
    assert {*METHODS[method].terms} <= logged.keys()
    anatomical, kept = "anatomical" in METHODS[method].terms, method in ("secl", "secl+", "centroids")
    assert ("coverage" in logged) is anatomical
    assert ("precision" in logged) is (anatomical and not METHODS[method].mixes)
    drawn = ("sample_kernel",) if METHODS[method].terms != ("mixed", "region") else ()
    queued = ("index_copy_",) if kept else ()
    for operation in ("positive_kernel", "_fused_adamw_", "_foreach_lerp_", *drawn, *queued, *parts):
        assert operation in launches, operation
    launches.clear()
    ours.step(0.0)
    assert "convolution" in launches
    assert "sample_kernel" not in launches


@pytest.mark.parametrize(
    "waiting",
    [lambda image: image.sum().item(), torch.ops.aten.nonzero.default, Tensor.cpu, lambda image: image[image > 0]],
    ids=["item", "nonzero", "cpu", "mask"],
)
def test_a_wait_in_a_step_is_seen(
    waiting: Callable[[Tensor], object], on_fake_device: tuple[Learner, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = on_fake_device
    laid_out = Learner._laid_out

    def with_a_wait(self: Learner, image: Tensor) -> Tensor:
        waiting(image)
        return laid_out(self, image)

    monkeypatch.setattr(Learner, "_laid_out", with_a_wait)
    with pytest.raises(HostWaitError, match="waits for the device"):
        ours.step(1.0)


def test_no_backward_pass_waits_for_the_device(toy: tuple[DataSet, Split]) -> None:
    ours = learner(CONFIG, toy)
    with watched() as mode:
        total, _ = ours._loss_with_teacher(1.0)
        total.backward()
    assert all(parameter.grad is not None for parameter in ours.student.parameters())
    assert "convolution_backward" in mode.launches


def losses(ours: Learner) -> list[float]:
    return [float(ours.step(ramp)["loss"]) for ramp in (0.0, 1.0, 1.0)]


def plain(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    """Few kernels, for the compiler's sake."""
    module = nn.Sequential(nn.Conv2d(channels_in, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes + 1, 1))
    return TappedModule(module, ["1"], [8])


@pytest.mark.parametrize(
    ("network", "backend"),
    [pytest.param("unet", "aot_eager", marks=pytest.mark.exhaustive), (f"{__name__}:plain", "inductor")],
)
def test_compilation_changes_nothing(
    network: str, backend: str, toy: tuple[DataSet, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, network=replace(CONFIG.network, name=network))
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, compiled = (losses(learner(set_train(config, compile=flag), toy)) for flag in (False, True))
    assert counters["stats"]["unique_graphs"] >= 2  # student and teacher
    assert not counters["graph_break"]
    assert compiled == pytest.approx(eager, rel=1e-4)  # float32 sums in another order


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("method", ["secl", "mixed-region", "prototypes", "centroids", "disagreement"])
def test_every_precision_takes_steps(method: str, precision: str, toy: tuple[DataSet, Split]) -> None:
    ours = learner(set_train(CONFIG, method=method, precision=precision), toy)
    assert all(map(math.isfinite, losses(ours)))


def test_profiling_times_every_stage_and_changes_nothing(
    toy: tuple[DataSet, Split], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(CONFIG, toy, tmp_path / "plain")
    assert "stage" not in capsys.readouterr().err
    run(CONFIG, toy, tmp_path / "profiled", profile=True)
    said = capsys.readouterr().err
    for stage in (
        "batch",
        "augment",
        "teacher",
        "student forward",
        "loss",
        "backward",
        "optimiser",
        "average",
        "other",
    ):
        assert re.search(rf"{stage} +│ +[57] │ +\d+\.\d\d │ +\d+\.\d %", said), (stage, said)
    assert re.search(r"all +│ +7 │ +\d+\.\d\d │ +100\.0 %", said)
    assert re.search(r"[1-9]\d*\.\d images/s, peak memory [1-9]\d* MiB", said)
    assert rows(tmp_path / "plain") == rows(tmp_path / "profiled")


class Clock:
    """A stream of a device that reaches each event one second after the one before, once it is waited for."""

    recorded, reached = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Clock.recorded += 1
        self.at = Clock.recorded

    def elapsed_time(self, end: Clock) -> float:
        assert end.at <= Clock.reached, "read before it was waited for"
        return 1e3 * (end.at - self.at)


def test_stages_of_a_device_are_read_only_where_the_host_waits_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: setattr(Clock, "reached", Clock.recorded))
    watch = stages.Stages(torch.device("cuda"))
    for _ in range(3):
        with watch("step"), watch("loss"):
            pass
    assert Clock.reached == 0
    assert watch.seconds() == {"loss": (2.0, 2), "step": (6.0, 2)}


def test_unwatched_stages_cost_almost_nothing() -> None:
    def seconds(watch: Any) -> float:
        begin = time.process_time()
        for _ in range(10_000):
            with watch("loss"):
                pass
        return time.process_time() - begin

    # A step has nine stages; a ten-thousandth of the shortest step imaginable, a millisecond, is theirs.
    assert min(seconds(stages.unwatched) for _ in range(3)) / 10_000 * 9 < 1e-4


def test_a_step_costs_an_eighth_more_than_its_networks(
    toy: tuple[DataSet, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processor time of one thread, of the quickest step: what others do on the machine only lengthens one."""
    config = set_train(CONFIG, batch=8, unlabeled_batch=8)
    config = replace(config, network=replace(config.network, channels=(16, 32, 64, 128), projection=128))
    config = replace(config, data=replace(config.data, patch=(48, 64)), contrast=replace(config.contrast, per_class=8))
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    ours, quickest = learner(config, toy), {"step": math.inf}

    def ratio() -> float:
        return quickest["step"] / (quickest["teacher"] + quickest["student forward"] + quickest["backward"])

    ours.step(1.0)
    for number in range(40):
        ours.stages = watch = stages.Stages(torch.device("cpu"))
        ours.step(1.0)
        spent = {name: seconds for name, (seconds, _) in watch.seconds().items()}
        quickest = min(quickest, spent, key=lambda found: found["step"])
        if number > 7 and ratio() < 1.125:
            break
    assert ratio() < 1.125
