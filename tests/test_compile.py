# SPDX-License-Identifier: Apache-2.0
"""One graph where a tensor has several roles, with the gradients of all of them, and no transform but autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from tests.budget import assert_within_budget
from tests.cases import labels, rows

X, K, P = rows(12, 8, 0), rows(9, 8, 1), rows(3, 8, 2)
Y, Z = labels(12, 3, 0), labels(9, 3, 1)
G, H = torch.arange(12) // 2 % 2, torch.arange(9) % 2
MAPS = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(3))
CLASSES = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(4))
DRAW: dict[str, Any] = {"per_class": 4, "num_classes": 3}


def queued(taught: bool) -> Callable[[Tensor], Tensor]:
    """A module whose queue holds rows, as a function of the map, which may be the teacher's as well."""
    criterion = secl_ops.PixelContrastLoss(**DRAW, queue=secl_ops.ClassQueue(3, 5, 8))
    criterion(MAPS, CLASSES)
    drawn = CLASSES > 0
    if taught:
        return lambda x: criterion(x, CLASSES, x, CLASSES, eligible=drawn, key_eligible=drawn)
    return lambda x: criterion(x, CLASSES)


ROLES: dict[str, tuple[Callable[[], Callable[..., Tensor]], tuple[Tensor, ...]]] = {
    "a queue without a teacher": (lambda: queued(False), (MAPS,)),
    "a queue, and the teacher is the student": (lambda: queued(True), (MAPS,)),
    "the teacher is the student": (
        lambda: lambda x: secl_ops.pixel_contrast(x, CLASSES, x, CLASSES, **DRAW, seed=1), (MAPS,),
    ),
    "keys are the anchors": (lambda: lambda x: secl_ops.info_nce(x, x, anchor_labels=Y, key_labels=Y), (X,)),
    "anchors and a queue": (
        lambda: lambda x, k: secl_ops.info_nce(x, [x, k], anchor_labels=Y, key_labels=[Y, Z]), (X, K),
    ),
    "each key twice": (
        lambda: lambda x, k: secl_ops.info_nce(x, [k, x, k, x], anchor_labels=Y, key_labels=[Z, Y, Z, Y]), (X, K),
    ),
    "prototypes are the keys": (
        lambda: lambda x, k: secl_ops.info_nce(
            x, k, anchor_labels=Y, key_labels=Z, positives=k, positive_labels=Z
        ), (X, K),
    ),
    "prototypes are the anchors": (
        lambda: lambda x: secl_ops.info_nce(x, anchor_labels=Y, positives=x, positive_labels=Y), (X,),
    ),
    "one vector is groups and exclusions": (
        lambda: lambda x, k: secl_ops.info_nce(
            x, k, anchor_labels=G, key_labels=H, anchor_groups=Y, key_groups=Z, exclude=Y
        ), (X, K),
    ),
    "one number is weight and temperature": (
        lambda: lambda x, k, t: secl_ops.info_nce(
            x[:1], k, anchor_labels=Y[:1], key_labels=Z, weights=t, temperature=t, reduction="sum"
        ), (X, K, torch.tensor([0.7])),
    ),
    "parts over keys that are the anchors": (
        lambda: lambda x, k, t: secl_ops.info_nce_parts(
            x, [x, k, x], anchor_labels=Y, key_labels=[Y, Z, Y], lse=t
        ).loss.sum(), (X, K, rows(12, 1, 5).flatten()),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.thinned(4)
@pytest.mark.deferred(compiler="aot_eager")
@pytest.mark.deferred(name="each key twice")
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ROLES)
def test_a_tensor_in_several_roles_compiles_to_one_graph(name: str, compiler: str) -> None:
    make, given = ROLES[name]
    found = []
    for compiles in (False, True):
        call = make()
        run = torch.compile(call, fullgraph=True, backend=compiler) if compiles else call
        leaves = [value.clone().requires_grad_() for value in given]
        loss = run(*leaves)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(found[1], found[0], strict=True):  # the gradients of several roles, in another order
        assert_within_budget("compiled", ours, theirs.double(), theirs, amplification=4)
    assert all(gradient.any() for gradient in found[0][1:])


def transforms() -> dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]]:
    return {
        "grad": lambda call, x: torch.func.grad(call)(x),
        "vjp": lambda call, x: torch.func.vjp(call, x),
        "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
        "vmap": lambda call, x: torch.func.vmap(call)(torch.stack([x, x])),
        "jacrev": lambda call, x: torch.func.jacrev(call)(x),
        "hessian": lambda call, x: torch.func.hessian(call)(x),
        "functional_call": lambda call, x: torch.func.grad(
            lambda p: torch.func.functional_call(Holds(call, x), {"x": p}, ())
        )(x),
    }


class Holds(torch.nn.Module):
    """A loss of a parameter."""

    def __init__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
        super().__init__()
        self.call, self.x = call, torch.nn.Parameter(x)

    def forward(self) -> Tensor:
        return self.call(self.x)


TRANSFORMED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "info_nce": (lambda x: secl_ops.info_nce(x, anchor_labels=Y), X),
    "info_nce over shards": (lambda x: secl_ops.info_nce(x, [K, P], anchor_labels=Y, key_labels=[Z, Z[:3]]), X),
    "info_nce_parts": (lambda x: secl_ops.info_nce_parts(x, anchor_labels=Y).loss.sum(), X),
    "pixel_contrast": (lambda x: secl_ops.pixel_contrast(x, CLASSES, **DRAW, seed=0), MAPS),
    "gather_pixels": (lambda x: secl_ops.gather_pixels(x, torch.tensor([1, 5])).sum(), MAPS),
    "PixelContrastLoss": (lambda x: secl_ops.PixelContrastLoss(**DRAW)(x, CLASSES), MAPS),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own jvp
@pytest.mark.parametrize("transform", transforms())
@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_transform_of_torch_func_is_refused_by_name(name: str, transform: str) -> None:
    call, x = TRANSFORMED[name]
    with pytest.raises(RuntimeError, match=r"torch\.func \(grad, .*\) cannot transform it; take them by loss"):
        transforms()[transform](call, x)


def test_a_compiled_transform_is_refused_too() -> None:
    """Its gradient would be zeros."""
    call, x = TRANSFORMED["info_nce"]
    graph = torch.compile(lambda x: torch.func.grad(call)(x), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"torch\.func \(grad, .*\) cannot transform it"):
        graph(x)


def test_a_step_is_compiled_around_the_loss() -> None:
    """On every torch, also where none of the losses is part of a graph."""
    layer, maps, label = torch.nn.Conv2d(4, 8, 1), torch.randn(2, 4, 6, 6), labels(72, 3, 0).view(2, 6, 6)

    def step(maps: Tensor) -> Tensor:
        return 2 * secl_ops.pixel_contrast(layer(maps) * 3, label, per_class=4, num_classes=3, seed=0)

    found = torch.compile(step, backend="aot_eager")(maps)
    torch.testing.assert_close(found, step(maps))
    found.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()


@pytest.mark.parametrize("name", ["a queue, and the teacher is the student", "prototypes are the keys"])
def test_an_evaluation_compiles_to_one_graph(name: str) -> None:
    make, given = ROLES[name]
    with torch.no_grad():
        graph = torch.compile(make(), fullgraph=True, backend="eager")
        assert torch.equal(graph(*given), make()(*given))


@pytest.mark.parametrize("name", ["a queue, and the teacher is the student", "prototypes are the keys"])
def test_frozen_rows_compile_to_one_graph(name: str) -> None:
    """As in a validation that forgets no_grad, or before the backbone is unfrozen."""
    make, given = ROLES[name]
    graph = torch.compile(make(), fullgraph=True, backend="eager")
    assert torch.equal(graph(*given), make()(*given))


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_twenty_sizes_are_traced_twice_at_most(backend: str) -> None:
    from torch._dynamo.testing import CompileCounter

    def loss(anchors: Tensor, keys: Tensor, anchor_labels: Tensor, key_labels: Tensor) -> Tensor:
        return secl_ops.info_nce(anchors, keys, anchor_labels=anchor_labels, key_labels=key_labels, backend=backend)

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for size in range(8, 28):
        given = (rows(size, 8, 0), rows(2 * size + 3, 8, 1), labels(size, 3, 0), labels(2 * size + 3, 3, 1))
        assert torch.equal(compiled(*given), loss(*given))
    assert 1 <= counter.frame_count <= 2
