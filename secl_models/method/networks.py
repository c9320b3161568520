# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks whose inner feature maps can be read, and the projection head on gathered rows.

The networks are MONAI's; forward hooks on named layers read their maps, so any other module serves as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig


class Output(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor  # [B, K + 1, *spatial]
    features: tuple[Tensor, ...]  # one [B, C_t, *spatial_t] per tap


class _Tap:
    """Forward hook that holds a layer's last output; an object, so that a copied network gets its own."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.value = output

    def take(self) -> Tensor:
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("a tapped layer was not run by the network's forward pass")
        return value


class TappedModule(nn.Module):
    """Any network that maps an image to logits, with the outputs of named layers beside them.

    Args:
        module: Network, [B, C, *spatial] -> logits [B, K + 1, *spatial].
        layers: Names as in `module.named_modules()` whose outputs [B, C_t, *spatial_t] are contrasted.
        channels: Width C_t of each of these outputs.

    Raises:
        InputError: A layer does not exist, or the two sequences differ in length.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
        >>> output = TappedModule(net, layers=["0"], channels=[8])(torch.zeros(2, 1, 16, 16))
        >>> tuple(output.logits.shape), tuple(output.features[0].shape)
        ((2, 3, 16, 16), (2, 8, 16, 16))
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        if len(layers) != len(channels):
            raise InputError(
                "channels",
                rule="one width per tapped layer",
                got=f"{len(channels)} widths for {len(layers)} layers",
                cure="give layers and channels of one length",
            )
        self.module = module
        self.channels = tuple(channels)
        self._taps = [_Tap() for _ in layers]
        modules = dict(module.named_modules())
        for name, tap in zip(layers, self._taps, strict=True):
            if name not in modules:
                raise InputError(
                    f"layer {name!r}",
                    rule="the name of a layer of the network",
                    got="no such layer",
                    cure=f"choose one of {', '.join(n for n in modules if n)}",
                )
            modules[name].register_forward_hook(tap)

    def forward(self, x: Tensor) -> Output:
        """Run the network: [B, C, *spatial] -> Output(logits, features)."""
        logits = self.module(x)
        return Output(logits, tuple(tap.take() for tap in self._taps))


class ProjectionHead(nn.Module):
    """Linear, ReLU, Linear on rows [n, C] -> [n, D]; not normalised, since `info_nce` does that.

    Chen et al., A Simple Framework for Contrastive Learning, ICML 2020. Dropped at test time.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width))

    def forward(self, rows: Tensor) -> Tensor:
        """Project rows [n, C] to [n, D]."""
        projected: Tensor = self.layers(rows)
        return projected


class ContrastModel(nn.Module):
    """Network and one projection head per tap: what the optimiser trains and the teacher averages."""

    def __init__(self, network: TappedModule, projection: int) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(ProjectionHead(channels, projection) for channels in network.channels)

    def forward(self, x: Tensor) -> Output:
        """Run the network; the heads are applied to gathered rows by the objective."""
        output: Output = self.network(x)
        return output


def _unet(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    levels = len(config.channels)
    strides = [1] + [2] * (levels - 1)
    module = DynUNet(
        dims,
        channels_in,
        classes + 1,
        kernel_size=[3] * levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(config.channels),
    )
    layers = ["bottleneck" if tap == levels - 1 else f"upsamples.{levels - 2 - tap}" for tap in config.taps]
    return TappedModule(module, layers, [config.channels[tap] for tap in config.taps])


NETWORKS: dict[str, Callable[[NetworkConfig, int, int, int], TappedModule]] = {"unet": _unet}


def _imported(name: str) -> Callable[[NetworkConfig, int, int, int], TappedModule]:
    module, _, attribute = name.partition(":")
    try:
        factory: Callable[[NetworkConfig, int, int, int], TappedModule] = getattr(
            importlib.import_module(module), attribute
        )
    except (ImportError, AttributeError) as error:
        raise InputError(
            "network.name",
            rule="package.module:function that can be imported",
            got=f"{name} ({error})",
            cure="install the package or put its folder on PYTHONPATH",
        ) from error
    return factory


def build_network(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    """Build the network that a configuration names.

    Args:
        config: `name` is "unet" (MONAI's DynUNet with instance norm), or "package.module:function" for a function
            of your own that takes the arguments of this one and returns a `TappedModule`.
        dims: 2 for slices, 3 for patches of a volume.
        channels_in: Image channels.
        classes: Structures K, without background; the logits have K + 1 channels.

    Returns:
        The network with freshly drawn weights.

    Raises:
        InputError: Unknown name, or levels and taps that do not fit.
    """
    if ":" in config.name:
        network = _imported(config.name)(config, dims, channels_in, classes)
        if not isinstance(network, TappedModule):
            raise InputError(
                "network.name",
                rule="the function returns a secl_models.method.networks.TappedModule",
                got=type(network).__name__,
                cure="wrap your module: TappedModule(module, layers, channels)",
            )
        return network
    if config.name not in NETWORKS:
        raise InputError(
            "network.name",
            rule=f"one of {', '.join(NETWORKS)} or package.module:function",
            got=config.name,
            cure="name a known network",
        )
    return NETWORKS[config.name](config, dims, channels_in, classes)
