# SPDX-License-Identifier: Apache-2.0
"""Networks of segmentation_models_pytorch, by names such as `smp:Unet/resnet34` or, by timm, `smp:Unet/tu-resnet18`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secl_models.options.errors import InputError
from secl_models.options.smp import SMP

ARCHITECTURES = ("Unet", "UnetPlusPlus", "MAnet", "Linknet")  # their decoders double the grid with every block
DEPTHS = range(3, 6)  # of their encoders


def build_smp(
    name: str, widths: Sequence[int], dims: int, channels_in: int, classes: int
) -> tuple[nn.Module, dict[int, tuple[str, int]]]:
    """Build a network with freshly drawn weights, and find the blocks of its decoder.

    Args:
        name: `smp:ARCHITECTURE/ENCODER`.
        widths: Of the decoder by level, full resolution first, where the architecture lets one choose them; as many as
            the encoder halves the grid.
        dims: 2.
        channels_in: Image channels.
        classes: Structures K; the logits have K + 1 channels.

    Returns:
        The network, and by level of its decoder (0: full resolution) the name and the width of the last block.

    Raises:
        InputError: The package is missing, it knows no such network, or three dimensions are asked for.
    """
    architecture, slash, encoder = name.removeprefix(SMP).partition("/")
    if architecture not in ARCHITECTURES or not slash:
        rule = f"{SMP}ARCHITECTURE/ENCODER, of {', '.join(ARCHITECTURES)}"
        raise InputError("network.name", rule=rule, got=name, cure=f"write {SMP}Unet/resnet34, for example")
    if dims != 2:
        rule, cure = "networks of segmentation_models_pytorch take slices", "set data.dims=2, or network.name=unet"
        raise InputError("network.name", rule=rule, got=f"data.dims={dims} with {name}", cure=cure)
    depth = len(widths)
    if depth not in DEPTHS:
        rule = f"{DEPTHS[0]} to {DEPTHS[-1]} widths for {name}, one for each halving of the grid"
        raise InputError("network.channels", rule=rule, got=list(widths), cure="write [16, 32, 64, 128, 256]")
    build: Callable[..., nn.Module] = getattr(_package(), architecture)
    options: dict[str, Any] = {"encoder_depth": depth, "decoder_channels": tuple(widths[::-1])}
    known = inspect.signature(build).parameters
    try:
        module = build(
            encoder, encoder_weights=None, in_channels=channels_in, classes=classes + 1,
            **{key: value for key, value in options.items() if key in known},
        )  # fmt: skip
        return module, _decoder_levels(module, channels_in, 1 << depth)
    except Exception as error:  # a KeyError of its own, or whatever timm says of a name
        got = str(error.args[0] if error.args else type(error).__name__).splitlines()[0][:200]
        rule = f"an encoder that segmentation_models_pytorch builds with {depth} halvings of the grid"
        cure = "name one that it has, with tu- before a name of timm, or give network.channels another length"
        raise InputError("network.name", rule=rule, got=f"{name} ({got})", cure=cure) from error


def _package() -> Any:
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except (ImportError, RuntimeError) as error:  # torchvision fails so beside a torch of another build
        raise InputError(
            "network.name",
            rule=f"{SMP}... needs segmentation_models_pytorch",
            got=error,
            cure="pip install segmentation-models-pytorch",
        ) from error


def _decoder_levels(module: nn.Module, channels_in: int, stride: int) -> dict[int, tuple[str, int]]:
    """The blocks that last run at each resolution, found by what comes out of them."""
    found: dict[int, tuple[str, int]] = {}
    size = 2 * stride

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            found[(size // output.shape[-1]).bit_length() - 1] = name, output.shape[1]

        return hook

    blocks: Any = module.get_submodule("decoder.blocks")
    hooks = [block.register_forward_hook(note(f"decoder.blocks.{name}")) for name, block in blocks.named_children()]
    training = module.training
    with torch.no_grad():
        module.eval()(torch.zeros(1, channels_in, size, size))
    module.train(training)
    for hook in hooks:
        hook.remove()
    return found
