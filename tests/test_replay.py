# SPDX-License-Identifier: Apache-2.0
"""What `torch.utils.checkpoint` recomputes is what it repeats, and an evaluation leaves the queue alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

import secl_ops
from secl_ops import replay
from tests.budget import assert_within_budget

Function = Callable[[Tensor], Tensor]
Wrapped = Callable[[Function, Tensor], Tensor]

LABELS = torch.randint(0, 3, (2, 12, 12), generator=torch.Generator().manual_seed(1))


def direct(function: Function, x: Tensor) -> Tensor:
    return function(x)


class Foreign(torch.autograd.Function):
    """A reentrant checkpoint as other libraries write it."""

    @staticmethod
    def forward(ctx: Any, function: Function, x: Tensor) -> Tensor:
        ctx.function, ctx.x = function, x
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_()
            torch.autograd.backward(ctx.function(x), grad)
        return None, x.grad


def foreign(function: Function, x: Tensor) -> Tensor:
    found: Tensor = Foreign.apply(function, x)  # type: ignore[no-untyped-call]
    return found


def checkpointed(reentrant: bool, function: Function, x: Tensor) -> Tensor:
    found: Tensor = checkpoint.checkpoint(function, x, use_reentrant=reentrant)
    return found


class Model(nn.Module):
    """A network, the loss of its maps, and a weight of it that learns."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.body = nn.Conv2d(4, 6, 1)
        self.weight = nn.Parameter(torch.tensor(1.5))
        heads: dict[str, Any] = {"head": nn.Linear(6, 5), "key_head": nn.Linear(6, 5)} if kind == "heads" else {}
        queue = None if kind == "no queue" else secl_ops.ClassQueue(3, 7, 5 if heads else 6)
        self.criterion = secl_ops.PixelContrastLoss(4, 3, queue=queue, **heads, seed=3)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.tanh(self.body(x))
        teacher = [] if self.kind == "alone" else [maps.detach().flip(0), LABELS]
        loss: Tensor = self.weight * self.criterion(maps, LABELS, *teacher) + maps.square().mean()
        return loss


Use = Callable[[Model, Wrapped, Tensor], Tensor]


def once(model: Model, wrap: Wrapped, x: Tensor) -> Tensor:
    return wrap(model, x)


def twice_inside(model: Model, wrap: Wrapped, x: Tensor) -> Tensor:
    return wrap(lambda h: model(h) + model(2 * h), x)


def several_before_backward(model: Model, wrap: Wrapped, x: Tensor) -> Tensor:
    """The last is recomputed first; one stays outside, and one is never differentiated."""
    first: Tensor = wrap(model, x) + model(x)
    wrap(model, x)
    return first + wrap(model, 2 * x) + wrap(model, first * x)


def nested(model: Model, wrap: Wrapped, x: Tensor) -> Tensor:
    return wrap(lambda h: model(h) + wrap(lambda g: model(g) + wrap(model, 3 * g), 2 * h), x)


def nested_in_the_other_kind(model: Model, wrap: Wrapped, x: Tensor) -> Tensor:
    if wrap is direct:
        return nested(model, wrap, x)
    others = [partial(checkpointed, reentrant) for reentrant in (True, False)]
    return others[0](lambda h: model(h) + others[1](lambda g: model(g) + others[0](model, 3 * g), 2 * h), x)


def steps(kind: str, use: Use, wrap: Wrapped, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Losses, gradients and states of three steps."""
    model, found = Model(kind).to(dtype), []
    for step in range(3):
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(step)).to(dtype).requires_grad_()
        model.zero_grad()
        loss = use(model, wrap, x)
        loss.backward()
        gradients = [each.grad for each in (x, *model.parameters()) if each.grad is not None]
        assert len(gradients) > 3
        found += [loss.detach(), *gradients, *(value.clone() for value in model.state_dict().values())]
    return found


def assert_same(found: list[Tensor], kind: str, use: Use) -> None:
    """Hold three steps to those without a checkpoint: a gradient of several calls may be summed in another order."""
    exact = steps(kind, use, direct, torch.float64)
    for ours, truth, plain in zip(found, exact, steps(kind, use, direct), strict=True):
        if plain.is_floating_point():
            assert_within_budget("step", ours, truth, plain, amplification=4)
        else:
            assert torch.equal(ours, plain)


USES = [once, twice_inside, several_before_backward, nested, nested_in_the_other_kind]


@pytest.mark.thinned(4)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # within another one's first pass
@pytest.mark.parametrize(("reentrant", "early"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("kind", ["alone", "teacher", "heads", "no queue"])
@pytest.mark.parametrize("use", USES)
def test_a_recomputation_is_what_it_repeats(use: Use, kind: str, reentrant: bool, early: bool) -> None:
    with checkpoint.set_checkpoint_early_stop(early):
        found = steps(kind, use, partial(checkpointed, reentrant))
    assert_same(found, kind, use)


def test_so_is_that_of_a_checkpoint_that_is_not_torch_s() -> None:
    for use in (once, twice_inside, several_before_backward, nested):
        assert_same(steps("teacher", use, foreign), "teacher", use)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_second_backward_pass_repeats_the_same_call(reentrant: bool) -> None:
    model = Model("teacher")
    x = torch.randn(2, 4, 6, 6).requires_grad_()
    loss = checkpointed(reentrant, lambda h: model(h) + model(h), x)
    gradients: list[Any] = []
    for _ in range(2):
        x.grad = None
        loss.backward(retain_graph=True)
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert int(model.criterion.draws) - int(Model("teacher").criterion.draws) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_function_with_a_queue_reads_what_it_read(reentrant: bool) -> None:
    gradients: list[Any] = []
    for wrap in (direct, partial(checkpointed, reentrant)):
        queue = secl_ops.ClassQueue(3, 9, 4)
        queue.enqueue(torch.randn(30, 4, generator=torch.Generator().manual_seed(5)), torch.arange(30) % 3)
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(6)).requires_grad_()
        call: Function = partial(
            secl_ops.pixel_contrast, labels=LABELS, per_class=3, num_classes=3, seed=4, queue=queue
        )
        (wrap(call, x) + wrap(call, x.flip(0))).backward()
        gradients.append([x.grad, *queue.state_dict().values()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_was_read_is_forgotten_with_its_checkpoint(reentrant: bool) -> None:
    model, x = Model("teacher"), torch.randn(2, 4, 6, 6).requires_grad_()
    loss = checkpointed(reentrant, model, x)
    assert len(replay._MEMORIES) == 1
    loss.backward()
    del loss
    gc.collect()
    assert not len(replay._MEMORIES)


def evaluations() -> dict[str, Callable[[Model], Any]]:
    """Ways in which a model is run without learning: what is around its call, and the call."""
    again = partial(checkpointed, True), partial(checkpointed, False)
    return {
        "eval": lambda model: (model.eval(), nullcontext(), direct),
        "queue.eval": lambda model: (model.criterion.queue.eval(), nullcontext(), direct),
        "no_grad": lambda model: (model, torch.no_grad(), direct),
        "inference_mode": lambda model: (model, torch.inference_mode(), direct),
        "no_grad, reentrant": lambda model: (model, torch.no_grad(), again[0]),
        "no_grad, not reentrant": lambda model: (model, torch.no_grad(), again[1]),
        "eval, not reentrant": lambda model: (model.eval(), nullcontext(), again[1]),
        "eval, reentrant": lambda model: (model.eval(), nullcontext(), again[0]),
    }


@pytest.mark.parametrize("name", evaluations())
@pytest.mark.parametrize("kind", ["alone", "teacher", "heads"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_an_evaluation_leaves_the_queue_alone(kind: str, name: str) -> None:
    model = Model(kind)
    queue = model.criterion.queue
    assert isinstance(queue, secl_ops.ClassQueue)
    model(torch.randn(2, 4, 6, 6))
    before = [value.clone() for value in queue.state_dict().values()]
    _, around, wrap = evaluations()[name](model)
    with around:
        wrap(model, torch.randn(2, 4, 6, 6))
    assert all(map(torch.equal, before, queue.state_dict().values()))
    model.train()(torch.randn(2, 4, 6, 6))
    assert queue.written.sum() > before[2].sum()


def test_rows_that_are_enqueued_by_name_are_taken_in_every_mode() -> None:
    queue = secl_ops.ClassQueue(2, 3, 1).eval()
    with torch.no_grad():
        queue.enqueue(torch.ones(2, 1), torch.tensor([0, 1]))
    assert queue.written.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, where a graph ends
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_loss_inside_a_checkpoint_repeats_its_draw_too(reentrant: bool) -> None:
    found = []
    for wraps in (False, True):
        torch._dynamo.reset()
        criterion = secl_ops.PixelContrastLoss(4, 3, queue=secl_ops.ClassQueue(3, 5, 8))
        compiled = torch.compile(criterion, backend="eager")
        for seed in range(2):
            x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()
            loss = checkpointed(reentrant, partial(compiled, labels=LABELS), x) if wraps else criterion(x, LABELS)
            loss.backward()
        found.append([x.grad, *criterion.buffers()])
    torch._dynamo.reset()
    assert all(map(torch.equal, *found))
