# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks whose inner feature maps can be read, and the projection head on gathered rows.

The networks are MONAI's; forward hooks on named layers read their maps, so any other module serves as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from secl_models.method.norms import quicken_norms
from secl_models.method.output import Output
from secl_models.method.smp_networks import build_smp
from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig
from secl_models.options.smp import SMP


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


class _Drop:
    """Forward hook that scales the channels of a layer's output, once, where it was told by how much."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None  # [B, C]

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        kept, self.kept = self.kept, None
        return None if kept is None else output * kept.view(*kept.shape, *[1] * (output.ndim - 2))


class TappedModule(nn.Module):
    """Any network that maps an image to logits, with the outputs of named layers beside them.

    Args:
        module: Network, [B, C, *spatial] -> logits [B, K + 1, *spatial].
        layers: Names as in `module.named_modules()` whose outputs [B, C_t, *spatial_t] are contrasted.
        channels: Width C_t of each of these outputs.
        last: Name and width of the layer near the output that prototypes and centroids live on; None: the last of
            `layers`.
        dropped: Names and widths of the layers whose channels a perturbed pass drops, as method `disagreement` does.

    Raises:
        InputError: A layer does not exist, or the two sequences differ in length.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
        >>> output = TappedModule(net, layers=["0"], channels=[8])(torch.zeros(2, 1, 16, 16))
        >>> tuple(output.logits.shape), tuple(output.features[0].shape)
        ((2, 3, 16, 16), (2, 8, 16, 16))
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        channels: Sequence[int],
        *,
        last: tuple[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
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
        name, self.last_channels = last or (layers[-1], channels[-1])
        self._dropped = {layer: _Drop() for layer in dropped or {}}
        self._widths = tuple((dropped or {}).values())
        self._taps = [_Tap() for _ in (*layers, name)]
        # What is dropped is dropped before a tap of the same layer reads it.
        for layer, drop in self._dropped.items():
            self._layer(layer).register_forward_hook(drop)
        for layer, tap in zip((*layers, name), self._taps, strict=True):
            self._layer(layer).register_forward_hook(tap)

    @property
    def dropped_channels(self) -> int:
        """Channels of all layers that a perturbed pass drops from; 0: the network names none."""
        return sum(self._widths)

    def _layer(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.module.named_modules())
        if name not in modules:
            raise InputError(
                f"layer {name!r}",
                rule="the name of a layer of the network",
                got="no such layer",
                cure=f"choose one of {', '.join(n for n in modules if n)}",
            )
        return modules[name]

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Output:
        """Run the network: [B, C, *spatial] -> Output(logits, features, last).

        Args:
            x: Images.
            kept: [B, dropped_channels] factor on each channel that may be dropped; None: nothing is.
        """
        if kept is not None:
            for hook, part in zip(self._dropped.values(), kept.split(self._widths, 1), strict=True):
                hook.kept = part
        logits = self.module(x)
        *features, last = (tap.take() for tap in self._taps)
        return Output(logits, tuple(features), last)


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


class LinearHead(nn.Module):
    """A linear map of the channels of a feature map, at first the identity: [B, C, *spatial] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels, channels)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map the channels of every pixel."""
        weight = self.layer.weight.expand(len(features), -1, -1)
        mapped = torch.baddbmm(self.layer.bias.view(1, -1, 1), weight, features.flatten(2))
        return mapped.view(features.shape)


class ContrastModel(nn.Module):
    """Network, one projection head per tap and the head near the output: what is trained and averaged.

    Args:
        network: Segments.
        projection: Width D of a contrasted row.
        last: What the map near the output goes through: "linear", "projection" or None. The other weights are drawn
            the same whatever it is.
    """

    def __init__(self, network: TappedModule, projection: int, last: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(ProjectionHead(channels, projection) for channels in network.channels)
        width = network.last_channels
        self.last_head: nn.Module = nn.Identity()
        if last == "linear":
            self.last_head = LinearHead(width)
        elif last == "projection":
            self.last_head = ProjectionHead(width, projection)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Output:
        """Run the network, as `TappedModule` does; the objective applies the heads."""
        output: Output = self.network(x, kept)
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
    quicken_norms(module)
    encoder = ["input_block", *(f"downsamples.{level}" for level in range(levels - 2)), "bottleneck"]
    decoder = [*(f"upsamples.{levels - 2 - level}" for level in range(levels - 1)), "bottleneck"]  # by level
    return TappedModule(
        module,
        [decoder[tap] for tap in config.taps],
        [config.channels[tap] for tap in config.taps],
        last=(decoder[config.last], config.channels[config.last]),
        dropped=dict(zip(encoder, config.channels, strict=True)),
    )


def _smp(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    module, levels = build_smp(config.name, config.channels, dims, channels_in, classes)
    layers, channels = zip(*(levels[tap] for tap in config.taps), strict=True)
    return TappedModule(module, layers, channels, last=levels[config.last])


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
        config: `name` is "unet" (MONAI's DynUNet with instance norm), "smp:Unet/resnet34" and the like, see
            `build_smp`, or "package.module:function" for a function of your own that takes the arguments of this one
            and returns a `TappedModule`.
        dims: 2 for slices, 3 for patches of a volume.
        channels_in: Image channels.
        classes: Structures K, without background; the logits have K + 1 channels.

    Returns:
        The network with freshly drawn weights.

    Raises:
        InputError: Unknown name, or levels and taps that do not fit.
    """
    if config.name.startswith(SMP):
        return _smp(config, dims, channels_in, classes)
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
            rule=f"one of {', '.join(NETWORKS)}, smp:ARCHITECTURE/ENCODER or package.module:function",
            got=config.name,
            cure="name a known network",
        )
    return NETWORKS[config.name](config, dims, channels_in, classes)
