# SPDX-License-Identifier: Apache-2.0
"""Networks: shapes of logits and tapped maps, taps that survive a copy, own modules, and refusals."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from secl_models.method.networks import ContrastModel, ProjectionHead, TappedModule, build_network
from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig

CONFIG = NetworkConfig(channels=(4, 8, 16), taps=(0, 1, 2), projection=6)


def own_network(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    layers = nn.Sequential(nn.Conv2d(channels_in, 5, 3, padding=1), nn.Conv2d(5, classes + 1, 1))
    return TappedModule(layers, ["0"], [5])


def not_a_network(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_and_taps_have_the_stated_shapes(dims: int) -> None:
    output = build_network(CONFIG, dims, channels_in=2, classes=3)(torch.zeros(2, 2, *(16,) * dims))
    assert output.logits.shape == (2, 4, *(16,) * dims)
    shapes = [tuple(features.shape) for features in output.features]
    assert shapes == [(2, 4, *(16,) * dims), (2, 8, *(8,) * dims), (2, 16, *(4,) * dims)]


def test_tapped_maps_carry_a_gradient_and_are_released() -> None:
    network = build_network(CONFIG, 2, 1, 1)
    network(torch.rand(1, 1, 16, 16)).features[0].sum().backward()
    assert any(parameter.grad is not None for parameter in network.parameters())
    assert all(tap.value is None for tap in network._taps)


def test_a_copy_reads_its_own_layers() -> None:
    """A hook that kept pointing at the original would hand out the original's maps, or none."""
    network = build_network(CONFIG, 2, 1, 1)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    image = torch.rand(1, 1, 16, 16)
    assert not twin(image).features[0].any()
    assert network(image).features[0].any()


def test_head_works_on_rows_and_leaves_their_length() -> None:
    rows = ProjectionHead(4, 6)(torch.rand(7, 4))
    assert rows.shape == (7, 6)
    assert not torch.equal(rows.norm(dim=1), torch.ones(7))


def test_model_has_one_head_per_tap() -> None:
    model = ContrastModel(build_network(CONFIG, 2, 1, 1), CONFIG.projection)
    features = model(torch.rand(1, 1, 16, 16)).features
    rows = [head(maps.flatten(2)[0].T) for head, maps in zip(model.heads, features, strict=True)]
    assert [tuple(row.shape) for row in rows] == [(256, 6), (64, 6), (16, 6)]


def test_own_network_by_import_name() -> None:
    network = build_network(replace(CONFIG, name=f"{__name__}:own_network"), 2, 1, 2)
    assert network(torch.rand(1, 1, 9, 9)).features[0].shape == (1, 5, 9, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "one of unet, smp:ARCHITECTURE/ENCODER or package.module:function; got resnet"),
        ("nowhere_at_all:f", "can be imported; got nowhere_at_all:f"),
        (f"{__name__}:absent", "can be imported"),
        (f"{__name__}:not_a_network", "returns a secl_models.method.networks.TappedModule; got Identity"),
    ],
)
def test_unusable_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(replace(CONFIG, name=name), 2, 1, 1)


def test_two_levels_are_refused_where_the_network_takes_three() -> None:
    with pytest.raises(InputError, match=r"positive widths, at least 3 for unet; got \(4, 8\)"):
        NetworkConfig(channels=(4, 8), taps=(0,))
    assert NetworkConfig("mine:network", channels=(8,), taps=(0,)).stride == 1


def test_unknown_layer_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"layer 'two': .* choose one of 0, 1"):
        TappedModule(nn.Sequential(nn.Identity(), nn.Identity()), ["two"], [1])
    with pytest.raises(InputError, match="1 widths for 0 layers"):
        TappedModule(nn.Identity(), [], [1])


def test_a_layer_that_did_not_run_is_not_passed_over() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="was not run"):
        TappedModule(Half(), ["unused"], [1])(torch.zeros(1, 1, 4, 4))
