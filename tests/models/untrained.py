# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of networks that nobody trained: random weights show what happens to a grid as well as good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secl_models.data.preprocess import Preprocess
from secl_models.method import checkpoint
from secl_models.method.networks import ContrastModel, TappedModule, build_network
from secl_models.options.schema import NetworkConfig, RunConfig, load_preset, override, to_dict

CLASSES = {1: "a", 200: "b", 600: "c"}
FLAT = ("data.dims=2", "data.patch=[16,24]", "contrast.grid=[2,2]")
DEEP = ("data.dims=3", "data.patch=[16,24,8]", "contrast.grid=[2,2,1]")


def untrained(
    folder: Path, *options: str, classes: dict[int, str] = CLASSES, channels: int = 1, spacing: str = "null"
) -> Path:
    """Write `last.pt` into a new folder and return the folder."""
    fixed = (
        "network.channels=[4,8,16]", "network.projection=8", "data.normalize=volume",
        "data.orientation=[1,0,0,0,1,0,0,0,1]", f"data.spacing={spacing}",
    )  # fmt: skip
    config: RunConfig = override(load_preset("demo"), [*fixed, *(options or FLAT)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(config.network, config.data.dims, channels, len(classes))
    model = ContrastModel(network, config.network.projection)
    with torch.no_grad():  # at once between the classes: every class is predicted somewhere
        for name, parameter in network.named_parameters():
            if name.startswith("module.output_block") and parameter.ndim > 1:
                parameter.mul_(20)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "format": checkpoint.FORMAT, "step": 0, "teacher": model.state_dict(), "config": to_dict(config),
        "preprocess": Preprocess.from_config(config.data).to_dict(), "classes": classes, "channels": channels,
    }  # fmt: skip
    checkpoint.save(folder / checkpoint.LAST, state)
    return folder


def pointwise(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    """As many classes as wanted for next to no work."""
    layer = nn.Conv3d if dims == 3 else nn.Conv2d
    return TappedModule(nn.Sequential(layer(channels_in, classes + 1, 1)), ["0"], [classes + 1])


def blobs(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    """Smooth random intensities, so that neighbouring voxels get one class."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(1, 1, *(max(2, n // 4) for n in shape))).astype(np.float32))
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return 100 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode)[0, 0].numpy()


def write_nifti(path: Path, array: Any, affine: Any, **fields: Any) -> Path:
    """A NIfTI file with header fields of one's choice."""
    image: Any = nib.Nifti1Image(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


class _Last(nn.Module):
    def __init__(self, dims: int, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = (nn.Conv3d if dims == 3 else nn.Conv2d)(channels, classes + 1, 1)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.copy_(torch.arange(classes + 1.0))  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x)
        return logits


def last_class(config: NetworkConfig, dims: int, channels_in: int, classes: int) -> TappedModule:
    """The last class everywhere."""
    return TappedModule(nn.Sequential(_Last(dims, channels_in, classes)), ["0"], [classes + 1])
