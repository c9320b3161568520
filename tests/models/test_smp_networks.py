# SPDX-License-Identifier: Apache-2.0
"""Networks of segmentation_models_pytorch by name: their decoders are tapped by level; what does not fit is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from secl_models.method.networks import build_network
from secl_models.method.pretrained import load_pretrained
from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig, load_preset, override
from tests.test_examples import wanted

WIDTHS = (4, 8, 16, 32, 64)


def _config(name: str, *, taps: tuple[int, ...] = (2,), channels: tuple[int, ...] = WIDTHS) -> NetworkConfig:
    return NetworkConfig(name, channels, taps)


@pytest.fixture
def smp() -> None:
    wanted("segmentation_models_pytorch")


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize("name", ["Unet/resnet18", "UnetPlusPlus/resnet18", "MAnet/resnet18", "Unet/tu-resnet18"])
def test_decoder_blocks_are_tapped_by_level(name: str) -> None:
    network = build_network(_config(f"smp:{name}", taps=(0, 1, 2, 3, 4)), 2, channels_in=2, classes=3)
    output = network(torch.rand(2, 2, 64, 96))
    assert output.logits.shape == (2, 4, 64, 96)
    assert [tuple(maps.shape) for maps in output.features] == [
        (2, width, 64 >> level, 96 >> level) for level, width in enumerate(WIDTHS)
    ]
    assert output.last.shape == (2, WIDTHS[0], 64, 96)
    assert network.training


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("smp")
def test_a_decoder_of_widths_of_its_own_and_a_shorter_encoder() -> None:
    output = build_network(_config("smp:Linknet/resnet18", taps=(0, 3)), 2, 1, 1)(torch.rand(2, 1, 64, 64))
    assert [maps.shape[-1] for maps in output.features] == [64, 8]
    config = _config("smp:Unet/resnet18", taps=(1,), channels=WIDTHS[:4])
    assert build_network(config, 2, 1, 1)(torch.rand(2, 1, 16, 16)).features[0].shape == (2, 8, 8, 8)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("smp")
def test_weights_of_an_encoder_alone_find_it(tmp_path: Path) -> None:
    import torchvision

    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    account = load_pretrained(build_network(_config("smp:Unet/resnet18"), 2, 3, 1).module, tmp_path / "resnet18.pth")
    assert account.left == ("fc.weight", "fc.bias")
    assert account.reshaped == ()
    assert account.tensors[0] == 120
    assert all(not name.startswith("encoder.") for name in account.absent)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize(("encoder", "told"), [("resnet9000", "Wrong encoder name"), ("tu-nope", "Unknown model")])
def test_an_encoder_that_does_not_exist_is_named(encoder: str, told: str) -> None:
    with pytest.raises(InputError, match=rf"with 5 halvings of the grid; got smp:Unet/{encoder} \(.*{told}"):
        build_network(_config(f"smp:Unet/{encoder}"), 2, 1, 1)


@pytest.mark.parametrize(
    ("name", "dims", "told"),
    [
        (
            "smp:Nope/resnet18",
            2,
            "smp:ARCHITECTURE/ENCODER, of Unet, UnetPlusPlus, MAnet, Linknet; got smp:Nope/resnet18",
        ),
        ("smp:Unet", 2, "smp:ARCHITECTURE/ENCODER"),
        ("smp:Unet/resnet18", 3, "take slices; got data.dims=3 with smp:Unet/resnet18"),
    ],
)
def test_what_is_no_such_network_is_refused_with_or_without_the_package(name: str, dims: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_network(_config(name), dims, 1, 1)


def test_the_depth_decides_the_patch() -> None:
    with pytest.raises(InputError, match=r"data\.patch: multiples of 32, .*; got \(48, 64\)"):
        override(load_preset("acdc"), ["network.name=smp:Unet/resnet18", "data.patch=[48,64]"])
    with pytest.raises(InputError, match=r"network\.channels: 3 to 5 widths for smp:Unet/resnet18"):
        build_network(_config("smp:Unet/resnet18", channels=(4, 4, 4, 4, 4, 4)), 2, 1, 1)


@pytest.mark.skipif(importlib.util.find_spec("segmentation_models_pytorch") is not None, reason="it is installed")
def test_the_missing_package_is_named() -> None:
    with pytest.raises(InputError, match=r"Cure: pip install segmentation-models-pytorch"):
        build_network(_config("smp:Unet/resnet18"), 2, 1, 1)
