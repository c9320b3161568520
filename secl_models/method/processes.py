# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: who this one is, and sums, rows and gradients across all of them.

The joined batch of a step is divided among them. Every loss is a quotient of sums over the joined batch; each process
sends the gradient of its own part back, and the sum of these gradients is that of the joined batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from secl_models.data.sampling import Share
from secl_models.options.errors import InputError

# One process validates while the others wait in their next exchange.
PATIENCE = timedelta(minutes=30)


def launched() -> Share:
    """This process among those that `torchrun` started; the only one without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Share(int(os.environ.get("RANK", "0")), count) if count > 1 else Share()


class Processes:
    """All processes of a run, as one of them sees them; a single one exchanges nothing.

    Args:
        share: This one.
    """

    def __init__(self, share: Share = Share()) -> None:  # noqa: B008  # immutable
        self.share = share

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.share.count > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, validates and writes."""
        return self.share.rank == 0

    def require_divides(self, **images: int) -> None:
        """Refuse a batch of which the processes cannot take equal parts.

        Args:
            **images: Of a step, by option of `train`.

        Raises:
            InputError: Names the option.
        """
        count = self.share.count
        for name, number in images.items():
            if number % count:
                raise InputError(
                    f"train.{name}",
                    rule=f"a multiple of the {count} processes, which divide the images of a step",
                    got=number,
                    cure=f"write {-(-number // count) * count}, or start another number of processes",
                )

    def total(self, part: Tensor) -> Tensor:
        """The sum of all parts; the gradient is that of this process's own part.

        Args:
            part: Any shape, the same everywhere.
        """
        if not self.several:
            return part
        summed: Tensor = _Total.apply(part, self)  # type: ignore[no-untyped-call]  # torch types no Function
        return summed

    @torch.no_grad()
    def gather(self, rows: Tensor, leading: int, images: int, classes: int = 1) -> Tensor:
        """Rows of all processes in the order of the joined batch, without a gradient.

        Args:
            rows: [classes * images * k, ...], in each class image by image, the labelled ones first.
            leading: Labelled images of this process.
            images: Images of this process.
            classes: Of a draw of pixels, which lies class by class.

        Returns:
            [classes * count * images * k, ...].
        """
        if not self.several:
            return rows
        found = rows.new_empty(self.share.count * rows.shape[0], *rows.shape[1:])
        with self._answering():
            dist.all_gather(list(found.chunk(self.share.count)), rows.contiguous())
        each = found.view(self.share.count, classes, images, rows.shape[0] // (classes * images), *rows.shape[1:])
        parts = (each[:, :, :leading], each[:, :, leading:])
        return torch.cat([part.transpose(0, 1).flatten(1, 2) for part in parts], 1).flatten(0, 2)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter], wish: bool) -> Tensor | None:
        """Sum the gradients of all processes in one exchange, and count the wishes to stop.

        Args:
            parameters: Those that have a gradient have one in every process.
            wish: Whether this process was asked to stop.

        Returns:
            How many were, a scalar on the device; None where this is the only process.
        """
        if not self.several:
            return None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), gradients[0].new_full((1,), float(wish))])
        self._sum(flat)
        parts = torch.split(flat[:-1], [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view(own.shape) for part, own in zip(parts, gradients, strict=True)])
        return flat[-1]

    @torch.no_grad()
    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's floating buffers, such as the statistics of a batch norm."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if not self.several or not buffers:
            return
        flat = torch.cat([buffer.reshape(-1).float() for buffer in buffers])
        with self._answering():
            dist.broadcast(flat, 0)
        for buffer, part in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view(buffer.shape))

    def require_one(self, what: Mapping[str, object]) -> None:
        """Refuse to go on where the processes differ in something that they must share.

        Raises:
            InputError: Names what differs, and the values of the first process and of this one.
        """
        if not self.several:
            return
        found: list[Any] = [None] * self.share.count
        with self._answering():
            dist.all_gather_object(found, dict(what))
        for name in what:
            values = [each[name] for each in found]
            if any(value != values[0] for value in values):
                listed = ", ".join(f"{str(value)[:80]} in process {rank}" for rank, value in enumerate(values))
                raise InputError(
                    name,
                    rule="the same in every process of a run",
                    got=listed,
                    cure="start all with one command, on one data folder and one --out that every machine sees",
                )

    def _sum(self, tensor: Tensor) -> None:
        with self._answering():
            dist.all_reduce(tensor)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn the failure of an exchange into who noticed it and what to do."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"process {self.share.rank} of {self.share.count}",
                rule="all processes of a run go on together",
                got=f"another one that stopped or does not answer ({reason[:200]})",
                cure="see what that one said, then go on with the same command and --resume",
            ) from error


class _Total(torch.autograd.Function):
    """Sum over the processes; each takes back the gradient of its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, processes: Processes) -> Tensor:
        summed = part.clone()
        processes._sum(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def start_fabric(device: torch.device, precision: str, share: Share) -> Fabric:
    """Fabric on this process's device, joined with the other processes where there are any.

    Args:
        device: Of this process.
        precision: As `train.precision`; "auto" is what suits the device.
        share: This process among the others.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which greets from every process
    asked: Any = precision  # Fabric annotates the values one by one
    if precision == "auto":
        asked = "bf16-mixed" if device.type == "cuda" else "32-true"
    if share.count == 1:
        return Fabric(accelerator=device.type, devices=[device.index] if device.type == "cuda" else 1, precision=asked)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(share.count)))
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=share.count // here,
        strategy=DDPStrategy(timeout=PATIENCE),
        precision=asked,
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """Part from the other processes at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()
