# SPDX-License-Identifier: Apache-2.0
"""The drop-in as a module: options, draws and a queue are kept from call to call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from secl_ops.distributed import Ranks
from secl_ops.maps import Maps, Parts, contrast_maps
from secl_ops.queue import ClassQueue
from secl_ops.replay import recall
from secl_ops.sigmoid_spec import SigmoidSpec
from secl_ops.spec import ContrastSpec, SampleSpec

SEED_STRIDE = 0x9E3779B97F4A7C15


class _Option:
    """An option of a module that frozen specs hold: read off the first; one that is set is checked as at the start."""

    def __init__(self, *specs: str) -> None:
        self._specs = specs

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        return self if module is None else getattr(getattr(module, self._specs[0]), self._name)

    def __set__(self, module: nn.Module, value: object) -> None:
        changed = {name: replace(getattr(module, name), **{self._name: value}) for name in self._specs}
        for name, options in changed.items():
            setattr(module, name, options)


class PixelLoss(nn.Module):
    """What the losses on maps have in common: options that are checked when they are set, and the draws' counter."""

    draws: Tensor  # [1] int64, the seed of the next draw
    contrast: ContrastSpec | SigmoidSpec
    per_class, num_classes, ignore_index, strategy = (_Option("sampling") for _ in range(4))
    normalize, reduction = (_Option("contrast") for _ in range(2))
    backend, validate = (_Option("sampling", "contrast") for _ in range(2))

    def __init__(
        self, sampling: SampleSpec, contrast: ContrastSpec | SigmoidSpec, head: nn.Module | None,
        key_head: nn.Module | None, queue: ClassQueue | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sampling, self.contrast = sampling, contrast
        Parts(head, key_head, queue).check(sampling.num_classes)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int; got {type(seed).__name__}")
        self.head, self.key_head, self.queue = head, key_head, queue
        # An odd factor keeps different seeds apart, and far from each other's sequences.
        first = (seed * SEED_STRIDE + 2**63) % 2**64 - 2**63
        self.register_buffer("draws", torch.tensor([first], dtype=torch.int64))

    def loss(self, given: Maps, seed: Tensor) -> Tensor:
        """The loss of one batch, whose pixels this seed draws."""
        raise NotImplementedError

    def forward(
        self,
        features: Tensor,  # [B, D, *spatial]
        labels: Tensor,  # [B, *any]
        key_features: Tensor | None = None,  # [B', D, *spatial']
        key_labels: Tensor | None = None,  # [B', *any]
        *,
        eligible: Tensor | None = None,
        key_eligible: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch; see `pixel_contrast`."""
        given = Maps(features, labels, key_features, key_labels, eligible, key_eligible, scores)
        (seed,), first, _ = recall(self, self.draws)
        loss = self.loss(given, seed)
        if first:
            self.draws += 1
        return loss


class PixelContrastLoss(PixelLoss):
    """`pixel_contrast` with its options kept, its draws counted on the device, and optionally a queue.

    Every forward pass draws fresh pixels, also when it is replayed from a CUDA graph; the counter is in `state_dict`,
    so that a resumed run goes on with the sequence. What `torch.utils.checkpoint` recomputes sees the draw and the
    queue of the pass that it repeats, and advances neither; of the queue it keeps a copy until then. In `eval()` and
    under `no_grad` the queue takes no rows.

    Args:
        per_class: See `pixel_contrast`, and so are the other options.
        num_classes: Number of classes.
        ignore_index: Label that is never drawn; many data sets use 255.
        strategy: "uniform", "stratified" or "hard".
        head: See `pixel_contrast`; its parameters are the module's, so give each to the optimiser once.
        key_head: See `pixel_contrast`; a teacher's should require no gradient, or stay away from the optimiser.
        queue: A `ClassQueue` whose rows are keys as well.
        temperature: A float; or a `nn.Parameter` of one element, which then learns with the network.
        denominator: "negatives" or "all".
        normalize: Divide each row by its norm.
        reduction: "mean", "sum" or "none".
        backend: "auto", "reference", "native" or "triton".
        validate: Also check values, which waits for the device.
        group: See `pixel_contrast`; a module that has one cannot be pickled, its `state_dict` can.
        seed: Start of the sequence of draws.

    Raises:
        TypeError, ValueError: An option breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> criterion = secl_ops.PixelContrastLoss(per_class=8, num_classes=3, ignore_index=255)
        >>> features = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 32, 32))
        >>> criterion(features, labels).backward()
    """

    contrast: ContrastSpec
    temperature: float | Tensor  # no _Option: a parameter must be the module's own to learn
    denominator = _Option("contrast")

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
        temperature: float | Tensor = 0.1,
        denominator: str = "negatives",
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        validate: bool = False,
        group: ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        contrast = ContrastSpec(temperature, denominator, normalize, reduction, backend, validate)
        sampling = SampleSpec(per_class, num_classes, ignore_index, strategy, backend, validate)
        super().__init__(sampling, contrast, head, key_head, queue, seed)
        self.temperature, self.group = temperature, group

    @property
    def group(self) -> ProcessGroup | None:
        """The processes that share the loss; None: this one alone."""
        return None if self._ranks is None else self._ranks.group

    @group.setter
    def group(self, group: ProcessGroup | None) -> None:
        self._ranks = Ranks.of(group)

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        names = ("per_class", "num_classes", "ignore_index", "strategy", "temperature", "denominator", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def loss(self, given: Maps, seed: Tensor) -> Tensor:
        """See `PixelLoss`."""
        options, temperature = self.contrast, self.temperature
        if temperature is not options.temperature:
            options = replace(options, temperature=temperature)
        parts = Parts(self.head, self.key_head, self.queue, self._ranks)
        return contrast_maps(given, self.sampling, (seed, None), options, parts)
