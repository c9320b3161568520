# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss on maps as a module, whose scale and bias learn."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from secl_ops.inputs import Shard
from secl_ops.maps import Maps, Parts, draw_sides, enqueue, recalled
from secl_ops.modules import PixelLoss
from secl_ops.queue import ClassQueue
from secl_ops.sigmoid import sigmoid_shards
from secl_ops.sigmoid_spec import SigmoidSpec
from secl_ops.spec import SampleSpec


class PixelSigmoidLoss(PixelLoss):
    """`PixelContrastLoss` with the loss of `sigmoid_contrast`: each pair of pixels on its own, scale and bias learn.

    Its parameters are `log_scale`, since a scale stays above 0, and `bias`; give them to the optimiser, without weight
    decay, or keep them as they are by `requires_grad_(False)`. Draws, queue and recomputation are those of
    `PixelContrastLoss`.

    Args:
        per_class: See `pixel_contrast`, and so are all options that are not named here.
        num_classes: Number of classes.
        ignore_index: Label that is never drawn; many data sets use 255.
        strategy: "uniform", "stratified" or "hard".
        head: See `pixel_contrast`; its parameters are the module's, so give each to the optimiser once.
        key_head: See `pixel_contrast`; a teacher's should require no gradient, or stay away from the optimiser.
        queue: A `ClassQueue` whose rows are keys as well.
        scale: What the scale starts at, above 0.
        bias: What the bias starts at; see `sigmoid_contrast`.
        normalize: Divide each row by its norm.
        reduction: "mean", "sum" or "none".
        backend: "auto", "reference", "native" or "triton".
        validate: Also check values, which waits for the device.
        seed: Start of the sequence of draws.

    Raises:
        TypeError, ValueError: An option breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> criterion = secl_ops.PixelSigmoidLoss(per_class=8, num_classes=3, ignore_index=255)
        >>> features = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 32, 32))
        >>> criterion(features, labels).backward()
        >>> print(f"{criterion.scale.item():.1f} {criterion.bias.item():.1f}")
        10.0 -10.0
    """

    contrast: SigmoidSpec

    def __init__(
        self,
        per_class: int,
        num_classes: int,
        *,
        ignore_index: int = -1,
        strategy: str = "uniform",
        head: nn.Module | None = None,
        key_head: nn.Module | None = None,
        queue: ClassQueue | None = None,
        scale: float = 10.0,
        bias: float = -10.0,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        validate: bool = False,
        seed: int = 0,
    ) -> None:
        contrast = SigmoidSpec(scale, bias, normalize, reduction, backend, validate)
        sampling = SampleSpec(per_class, num_classes, ignore_index, strategy, backend, validate)
        for name, value in contrast.tensors.items():
            raise TypeError(f"{name} must be a float, what the module's own parameter starts at; got {value.dtype}")
        if scale <= 0:
            raise ValueError(f"scale must be above 0, since its logarithm learns; got {scale}")
        super().__init__(sampling, contrast, head, key_head, queue, seed)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    @property
    def scale(self) -> Tensor:
        """What multiplies a similarity now."""
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        names = ("per_class", "num_classes", "ignore_index", "strategy", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def loss(self, given: Maps, seed: Tensor) -> Tensor:
        """See `PixelLoss`."""
        options = replace(self.contrast, scale=self.scale, bias=self.bias)
        parts = Parts(self.head, self.key_head, self.queue)
        anchors, keys, pairs, places = draw_sides(given, self.sampling, (seed, None), options, parts)
        newest = Shard(keys, pairs)
        if self.queue is None:
            return sigmoid_shards(anchors, [newest], options, places=places)
        past, takes = recalled(self.queue, anchors, pairs)
        loss = sigmoid_shards(anchors, [newest, past], options)
        if takes:
            enqueue(self.queue, anchors, newest)
        return loss
