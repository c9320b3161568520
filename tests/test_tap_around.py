# SPDX-License-Identifier: Apache-2.0
"""A tap of a network that is compiled, checkpointed, exported, or runs in several processes."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils import checkpoint

import secl_ops
from secl_ops.autograd import COMPILES
from tests.budget import assert_within_budget
from tests.models.ranks import finish, start_ranks
from tests.tapped import (
    IMAGES,
    NAME,
    Net,
    assert_gradients,
    both_losses,
    checkpointed,
    gradients,
    plainly,
    reentrant,
    truth,
)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("order", ["tapped first", "compiled first"])
def test_it_compiles_to_one_graph(order: str, compiler: str) -> None:
    torch._dynamo.reset()
    model = Net()
    taps = [secl_ops.tap(model, NAME)] if order == "tapped first" else []
    graph: Any = torch.compile(model, fullgraph=True, backend=compiler)
    features = taps.pop() if taps else secl_ops.tap(graph, NAME)
    for _ in range(2):
        logits = graph(IMAGES)
        assert_gradients("compiled", gradients(model, both_losses(logits, features())))
    with pytest.raises(RuntimeError, match="each map is taken once"):
        features()
    hook = features._hook
    del features
    graph(IMAGES)
    assert hook.value is None


def test_a_compiled_model_that_has_run_can_be_tapped_again_and_again() -> None:
    torch._dynamo.reset()
    graph: Any = torch.compile(model := Net(), fullgraph=True, backend="aot_eager")
    graph(IMAGES)
    for _ in range(3):
        features = secl_ops.tap(graph, NAME)
        assert_gradients("compiled", gradients(model, both_losses(graph(IMAGES), features())))
        hook = features._hook
        features.remove()
        graph(IMAGES)
        assert hook.value is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, where a graph ends
@pytest.mark.parametrize("name", ["", "encoder", "encoder.conv"])
def test_compiled_models_of_one_class_keep_their_own_maps(name: str) -> None:
    torch._dynamo.reset()
    models = [Net() for _ in range(3)]
    for scale, model in enumerate(models, start=1):  # so that no two give one map
        model.load_state_dict({key: value * scale for key, value in model.state_dict().items()})
    plain = secl_ops.tap(alone := Net(), name)
    taps = [secl_ops.tap(model, name) for model in models[:2]]
    graphs = [torch.compile(model, backend="aot_eager") for model in models]
    turns = [2, 0, 2, 1, 0, 1, 2, 2, 1, 1, 0, 2, 0, 0]  # the one without a tap first
    for step, (turn, learns) in enumerate(itertools.product(turns, (True, False))):
        with torch.set_grad_enabled(learns):
            graphs[turn](images := IMAGES + step)
        if turn < 2 and step % 3:  # not every map is taken
            alone.load_state_dict(models[turn].state_dict())
            with torch.no_grad():
                alone(images)
            found = taps[turn]()
            assert torch.equal(found, plain())
            assert found.requires_grad == learns


def test_a_whole_step_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model = Net()
    features = secl_ops.tap(model, NAME)
    step = torch.compile(lambda x: both_losses(model(x), features()), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for ours, theirs in zip(gradients(model, step(IMAGES)), truth(), strict=True):
            assert_within_budget("compiled", ours, theirs.double(), theirs, amplification=4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, where a graph ends
@pytest.mark.parametrize("name", ["encoder", "encoder.conv", ""])
def test_a_compiled_part_is_tapped_by_the_same_name(name: str) -> None:
    expected = secl_ops.tap(plain := Net(), name)
    plain(IMAGES)
    found = expected()
    for wrap in ("call", "in place"):
        torch._dynamo.reset()
        model = Net()
        if wrap == "call":
            model.encoder = torch.compile(model.encoder, backend="aot_eager")  # type: ignore[assignment]
        else:
            model.encoder.compile(backend="aot_eager")
        features = secl_ops.tap(model, name)
        model(IMAGES)
        assert torch.equal(features(), found)


@pytest.mark.parametrize("early", [True, False])
def test_what_a_checkpoint_repeats_is_not_kept_again(early: bool) -> None:
    model = Net()
    model.run = checkpointed
    features = secl_ops.tap(model, NAME)
    with checkpoint.set_checkpoint_early_stop(early):
        loss = both_losses(model(IMAGES), features())
        model(IMAGES.flip(0))  # kept while the first pass is repeated
        assert all(map(torch.equal, gradients(model, loss), truth()))
    assert torch.equal(features(), Net().by_hand(IMAGES.flip(0))[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, where a graph ends
@pytest.mark.parametrize("early", [True, False])
def test_a_compiled_block_in_a_checkpoint_is_not_kept_again(early: bool) -> None:
    torch._dynamo.reset()
    model = Net()
    model.run = checkpointed
    features = secl_ops.tap(model, NAME + ".act")
    for block in model.blocks():
        block.compile(backend="aot_eager")
    for _ in range(2):
        with checkpoint.set_checkpoint_early_stop(early):
            loss = both_losses(model(IMAGES), features())
        model(IMAGES.flip(0))
        for ours, theirs in zip(gradients(model, loss), truth(), strict=True):
            assert_within_budget("compiled", ours, theirs.double(), theirs, amplification=4)
        assert torch.equal(features(), Net().by_hand(IMAGES.flip(0))[1])


def test_a_reentrant_checkpoint_is_refused_where_its_map_is_taken() -> None:
    model = Net()
    model.run = reentrant
    features = secl_ops.tap(model, NAME + ".conv")
    model(IMAGES)
    with pytest.raises(RuntimeError, match=r"decoder\.blocks\.0\.conv' has no graph, for a reentrant checkpoint made"):
        features()
    outside = secl_ops.tap(model, "decoder.blocks.1")
    model.run = plainly
    model(IMAGES)
    assert outside().requires_grad
    assert features().requires_grad


def test_replicas_of_a_model_that_was_tapped_before_are_refused() -> None:
    model = Net()
    features = secl_ops.tap(model, "encoder")
    replica = model.encoder._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    replica.conv = replica.act = nn.Identity()
    with pytest.raises(TypeError, match=r"model must not run in nn\.DataParallel, .* 'encoder'; use Distributed"):
        replica(IMAGES)
    features.remove()


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_leaves_nothing_in_the_tap(strict: bool) -> None:
    model = Net().eval()
    features = secl_ops.tap(model, NAME)
    exported = torch.export.export(model, (IMAGES,), strict=strict)
    assert torch.equal(exported.module()(IMAGES), Net().by_hand(IMAGES)[0])
    with pytest.raises(RuntimeError, match="it has not run since it was tapped"):
        features()


def test_a_checkpointed_part_is_tapped_by_the_same_name() -> None:
    model = Net()
    blocks: Any = model.decoder["blocks"]
    blocks[0] = checkpoint_wrapper(blocks[0])
    inside, whole = secl_ops.tap(model, NAME + ".act"), secl_ops.tap(model, NAME)
    loss = both_losses(model(IMAGES), whole())
    assert torch.equal(inside(), Net().by_hand(IMAGES)[1])
    assert all(map(torch.equal, gradients(model, loss), truth()))


def _sharded() -> list[Tensor]:
    """The averaged gradient of parameters that lie in pieces on the ranks."""
    model, mesh = Net(), init_device_mesh("cpu", (2,))
    features = secl_ops.tap(model, NAME)
    for part in (*model.blocks(), model):
        fully_shard(part, mesh=mesh)
    ((1 + torch.distributed.get_rank()) * both_losses(model(IMAGES), features())).backward()
    gradients: list[Any] = [each.grad for each in model.parameters()]
    return [each.full_tensor() for each in gradients]


_compiled: Any = partial(torch.compile, backend="aot_eager")
WRAPPED: tuple[Any, ...] = (  # nnU-Net wraps as in the last
    DistributedDataParallel,
    lambda model: _compiled(DistributedDataParallel(model)),
    lambda model: DistributedDataParallel(_compiled(model)),
)


def _rank(rank: int, folder: Path) -> None:
    """The averaged gradient of a rank's own loss, tapped before or after it is wrapped, compiled or not, or sharded."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found: list[Any] = [_sharded()]
    for early, wrap in itertools.product((True, False), WRAPPED):
        torch._dynamo.reset()
        model = Net()
        taps = [secl_ops.tap(model, NAME)] if early else []
        wrapped: Any = wrap(model)
        features = taps[0] if early else secl_ops.tap(wrapped, NAME)
        logits = wrapped(IMAGES)
        ((1 + rank) * both_losses(logits, features())).backward()
        found.append([present.grad for present in model.parameters()])
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not COMPILES, reason="fully_shard of an older torch asks a CPU for streams")
def test_ranks_average_the_gradient_through_a_tap(tmp_path: Path) -> None:
    assert [finish(process) for process in start_ranks(2, partial(_rank, folder=tmp_path))] == [0, 0]
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            for ours, theirs in zip(found, truth(), strict=True):
                assert_within_budget("averaged", ours, 1.5 * theirs.double(), 1.5 * theirs, amplification=4)
