# SPDX-License-Identifier: Apache-2.0
"""A network with a decoder to tap, and what both losses give it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils import checkpoint

import secl_ops
from tests.budget import assert_within_budget

NAME = "decoder.blocks.0"
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 1, 6, 6, generator=RANDOM)
LABELS = torch.randint(0, 3, (2, 6, 6), generator=RANDOM)


class Block(nn.Module):
    """A convolution and its activation."""

    def __init__(self, channels: int, out: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x))
        return out


class Net(nn.Module):
    """An encoder, a decoder of two blocks, and a classifier; `run` runs each block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Block(1, 4)
        self.decoder = nn.ModuleDict({"blocks": nn.ModuleList([Block(4, 5), Block(5, 4)])})
        self.head = nn.Conv2d(4, 3, 1)
        self.run: Callable[[nn.Module, Tensor], Tensor] = plainly

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks():
            x = self.run(block, x)
        out: Tensor = self.head(x)
        return out

    def blocks(self) -> Iterator[nn.Module]:
        blocks = self.decoder["blocks"]
        assert isinstance(blocks, nn.ModuleList)
        return iter(blocks)

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the map of the first block."""
        first, second = self.blocks()
        features: Tensor = first(self.encoder(x))
        return self.head(second(features)), features


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = block(x)
    return out


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = checkpoint.checkpoint(block, x, use_reentrant=False)
    return out


def reentrant(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = checkpoint.checkpoint(block, x, use_reentrant=True)
    return out


def both_losses(logits: Tensor, features: Tensor) -> Tensor:
    contrast = secl_ops.pixel_contrast(features, LABELS, per_class=4, num_classes=3, seed=0)
    return nn.functional.cross_entropy(logits, LABELS) + contrast


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@functools.cache
def truth(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gradients of both losses where the model hands its features over itself."""
    model = Net().to(dtype)
    return gradients(model, both_losses(*model.by_hand(IMAGES.to(dtype))))


def assert_gradients(name: str, found: list[Tensor]) -> None:
    """Hold gradients that were summed in another order than plain torch's against the truth in float64."""
    for ours, exact, plain in zip(found, truth(torch.float64), truth(), strict=True):
        assert_within_budget(name, ours, exact, plain, amplification=4)
