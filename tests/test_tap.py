# SPDX-License-Identifier: Apache-2.0
"""A tap hands over the map of a submodule with its graph, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import secl_ops
from tests.tapped import IMAGES, NAME, Block, Net, both_losses, gradients, truth


def test_it_is_the_map_of_the_submodule_with_its_graph() -> None:
    model = Net()
    features = secl_ops.tap(model, NAME)
    logits = model(IMAGES)
    assert all(map(torch.equal, gradients(model, both_losses(logits, features())), truth()))
    assert set(model.state_dict()) == set(Net().state_dict())
    assert repr(features) == "Tap('decoder.blocks.0')"


def test_a_map_is_taken_once_and_nothing_stays_behind() -> None:
    model = Net()
    features = secl_ops.tap(model, NAME)
    with pytest.raises(RuntimeError, match=r"nothing is kept of 'decoder\.blocks\.0': it has not run since it was tap"):
        features()
    logits = model(IMAGES)
    maps = features()
    watched = weakref.ref(maps)
    loss = both_losses(logits, maps)
    with pytest.raises(RuntimeError, match="each map is taken once, and its last one was; run the model again"):
        features()
    loss.backward()
    del maps, loss, logits
    gc.collect()
    assert watched() is None


def test_of_several_calls_the_last_is_kept() -> None:
    model = Net()
    features = secl_ops.tap(model, NAME)
    for images in (IMAGES, IMAGES.flip(0)):
        model(images)
    assert torch.equal(features(), Net().by_hand(IMAGES.flip(0))[1])
    for around in (torch.no_grad(), torch.inference_mode()):
        with around:
            model.eval()(IMAGES)
        assert not features().requires_grad


def test_a_tap_that_is_removed_or_dropped_keeps_nothing() -> None:
    model = Net()
    block = next(model.blocks())
    features = secl_ops.tap(model, NAME)
    model(IMAGES)
    for _ in range(2):
        features.remove()
    assert repr(features) == "Tap('decoder.blocks.0', removed)"
    with pytest.raises(RuntimeError, match=r"the tap was removed; make another one with tap\(model, name\)"):
        features()
    other = secl_ops.tap(model, NAME)
    assert len(block._forward_hooks) == 1
    again = secl_ops.tap(model, NAME)
    del other
    assert len(block._forward_hooks) == 1
    assert "forward" in vars(block)  # what keeps its compiled graphs apart
    del again
    assert not block._forward_hooks
    assert "forward" not in vars(block)


def test_a_forward_that_the_user_set_stays() -> None:
    model = Net()
    model.encoder.forward = own = lambda x: x.expand(-1, 4, -1, -1)  # type: ignore[method-assign]
    features = secl_ops.tap(model, "encoder")
    model(IMAGES)
    assert torch.equal(features(), IMAGES.expand(-1, 4, -1, -1))
    features.remove()
    assert model.encoder.forward is own


def test_a_map_that_was_changed_in_place_is_refused() -> None:
    model = nn.Sequential(Block(1, 4, inplace=True), nn.Conv2d(4, 3, 1))
    changed, whole = secl_ops.tap(model, "0.conv"), secl_ops.tap(model, "0")
    model(IMAGES)
    with pytest.raises(
        RuntimeError, match=r"the map of '0\.conv' was changed in place after the submodule returned it"
    ):
        changed()
    with pytest.raises(RuntimeError, match="each map is taken once"):
        changed()
    assert whole().requires_grad


class Several(nn.Module):
    """Returns what `make` makes of a map."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = Block(1, 4), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


class Output:
    """What some libraries return."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.size = features, 3


@pytest.mark.parametrize(
    ("make", "pick"),
    [
        (lambda x: (x - 1, x), 1),
        (lambda x: [x - 1, x], -1),
        (lambda x: {"aux": x - 1, "out": x}, "out"),
        (lambda x: {0: x - 1, 1: x}, 1),
        (Output, "features"),
    ],
)
def test_pick_names_one_of_several(make: Callable[[Tensor], Any], pick: int | str) -> None:
    model = Several(make)
    features = secl_ops.tap(model, "", pick=pick)
    model(IMAGES)
    assert torch.equal(features(), model.layer(IMAGES))


@pytest.mark.parametrize(
    ("make", "pick", "message"),
    [
        (lambda x: (x, 3), None, r"'' must return a tensor, or pick must say .*; got a tuple of 2: Tensor, int; pass"),
        (lambda x: {"out": x}, None, r"got a dict of 'out'; pass pick to tap"),
        (lambda x: None, None, r"got a NoneType; pass pick to tap"),
        (lambda x: (x, 3), 1, r"pick must name a tensor of what '' returns; 1 is a int"),
        (lambda x: (x, 3), 2, r"pick must name an element of what '' returns, a tuple of 2: Tensor, int; got 2"),
        (lambda x: {"out": x}, "aux", r"pick must name an element of what '' returns, a dict of 'out'; got 'aux'"),
        (Output, "maps", r"pick must name an element of what '' returns, a Output; got 'maps'"),
        (Output, 0, r"pick must name an element of what '' returns, a Output; got 0"),
        (lambda x: x, 0, r"pick goes with a submodule that returns several things; '' returns a tensor"),
    ],
)
def test_what_is_no_map_is_refused_in_the_forward_pass(
    make: Callable[[Tensor], Any], pick: int | str | None, message: str
) -> None:
    model = Several(make)
    features = secl_ops.tap(model, "", pick=pick)
    with pytest.raises(TypeError, match=message):
        model(IMAGES)
    features.remove()
    model(IMAGES)


def _without_part() -> nn.Module:
    """Has an auxiliary head by name, as some networks do where it is switched off."""
    model = Net()
    model.register_module("auxiliary", None)
    return model


@pytest.mark.parametrize(
    ("model", "name", "pick", "error", "message"),
    [
        (3, "", None, TypeError, r"model must be a nn\.Module; got int"),
        (Net(), 3, None, TypeError, r"name must be a str, as in model\.named_modules\(\); got int"),
        (Net(), "", 1.5, TypeError, "pick must be an int, a str or None; got float"),
        (Net(), "", True, TypeError, "pick must be an int, a str or None; got bool"),
        (nn.DataParallel(Net()), "encoder", None, TypeError, r"model must not run in nn\.DataParallel, whose threads"),
        (Net(), "decoder.blocks.3", None, ValueError, r"got 'decoder\.blocks\.3'; near it: 'decoder\.blocks\.1', "),
        (torch.compile(Net()), "decoder.block", None, ValueError, r"near it: 'decoder\.blocks', "),
        (Net(), "x", None, ValueError, r"got 'x'; there: 'encoder', 'encoder\.conv', 'encoder\.act', .*, \.\.\."),
        (nn.ReLU(), "x", None, ValueError, "got 'x'; it has none"),
        (_without_part(), "auxiliary", None, ValueError, "got 'auxiliary'; there: 'encoder', "),
        (Net(), "decoder.blocks", None, ValueError, r"'decoder\.blocks' is a ModuleList, .*: 'decoder\.blocks\.1', "),
    ],
)
def test_it_is_refused_by_name(model: Any, name: Any, pick: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        secl_ops.tap(model, name, pick=pick)


class Learner(nn.Module):
    """Holds a network and its tap, as a LightningModule does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.features = secl_ops.tap(self.net, NAME)


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("twin", [copy.deepcopy, _pickled])
def test_a_copy_of_the_model_has_no_tap_and_writes_into_none(twin: Callable[[Any], Any]) -> None:
    model = Net()
    features = secl_ops.tap(model, NAME)
    model(IMAGES)
    teacher = twin(model)
    teacher(IMAGES.flip(0))
    (hook,) = next(teacher.blocks())._forward_hooks.values()
    assert hook.value is None
    assert torch.equal(features(), Net().by_hand(IMAGES)[1])
    keys = secl_ops.tap(teacher, NAME)
    teacher(IMAGES)
    assert keys().requires_grad


@pytest.mark.parametrize("twin", [copy.deepcopy, _pickled])
def test_a_copy_of_what_holds_both_has_a_tap_of_its_own(twin: Callable[[Any], Any]) -> None:
    learner = Learner()
    learner.net(IMAGES)
    other = twin(learner)
    other.net(IMAGES.flip(0))
    assert torch.equal(other.features(), Net().by_hand(IMAGES.flip(0))[1])
    assert torch.equal(learner.features(), Net().by_hand(IMAGES)[1])
    other.features.remove()
    block = next(other.net.blocks())
    assert not block._forward_hooks
    assert "forward" not in vars(block)
    assert "forward" in vars(next(learner.net.blocks()))
    learner.net(IMAGES)
    assert learner.features().requires_grad
