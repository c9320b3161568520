# SPDX-License-Identifier: Apache-2.0
"""Keys from earlier steps: a ring of rows for each class, on the device, without host synchronisation."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from secl_ops import spec
from secl_ops.distributed import rows_of_all


class ClassQueue(nn.Module):
    """Keep the last `size` rows of each class.

    The state is in `state_dict`: a resumed run goes on with the same keys. The loss reads `keys` where they lie and
    never again: rows may be enqueued before the backward pass. `DistributedDataParallel` overwrites buffers by those of
    rank 0 at each forward pass: under `forward_sync_buffers=False` (`broadcast_buffers=False` before torch 2.13) each
    rank keeps its own rows. With `group=` every rank takes the rows of all, and the queues stay equal.

    Args:
        num_classes: C; rows with a label outside 0 .. C - 1 are left out.
        size: Rows kept of each class.
        dim: Width D of a row.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> queue = secl_ops.ClassQueue(num_classes=2, size=2, dim=1)
        >>> queue.enqueue(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 1, 1]))
        >>> queue.keys.flatten().tolist(), queue.key_labels.tolist()
        ([0.0, 0.0, 3.0, 2.0], [-1, -1, 1, 1])
    """

    rows: Tensor  # [C * size + 1, D]; the last row takes what is left out
    labels: Tensor  # [C * size + 1] int32
    written: Tensor  # [C] int64, rows of each class so far

    def __init__(self, num_classes: int, size: int, dim: int) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("size", size), ("dim", dim)):
            spec.check_positive_int(name, value)
        spec.check_places("num_classes * size", num_classes * size)
        self.num_classes, self.size, self.dim = num_classes, size, dim
        self.register_buffer("rows", torch.zeros(num_classes * size + 1, dim))
        self.register_buffer("labels", torch.full((num_classes * size + 1,), -1, dtype=torch.int32))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def keys(self) -> Tensor:
        """Rows [C * size, D], a view; an empty place is zero."""
        return self.rows.narrow(0, 0, self.num_classes * self.size)

    @property
    def key_labels(self) -> Tensor:
        """Labels [C * size] int32, a view; -1: empty."""
        return self.labels.narrow(0, 0, self.num_classes * self.size)

    def warn_if_overwritten(self) -> None:
        """Say where every rank reads the rows of rank 0, and what it enqueues is lost."""
        around = None if torch.compiler.is_compiling() else DistributedDataParallel._get_active_ddp_module()
        if around is None or around.process_group.size() == 1 or not around.will_sync_module_buffers():
            return
        if any(one is self.rows for one in around.modules_buffers):
            warnings.warn(
                "DistributedDataParallel overwrites the rows of a ClassQueue by those of rank 0 at each forward pass; "
                "build it with forward_sync_buffers=False (broadcast_buffers=False before torch 2.13), for each rank "
                "to keep its own",
                stacklevel=2,
            )

    @torch.no_grad()
    def enqueue(self, rows: Tensor, labels: Tensor, *, group: ProcessGroup | None = None) -> None:
        """Append rows [n, D] with labels [n]; of more than `size` rows of one class the last stay.

        With a group each of its processes appends the rows of all, as many of each, in the order of the processes.

        Raises:
            TypeError, ValueError: An argument breaks its rule; the message names it.
        """
        if group is None:
            self._check(rows, labels)
        else:
            rows, labels = rows_of_all(rows, labels, group, partial(self._check, rows, labels))
        labels = labels.long()
        member = labels.unsqueeze(1) == torch.arange(self.num_classes, device=labels.device)  # [n, C]
        place = member.cumsum(dim=0) - 1  # how many of its class came before
        total = member.sum(dim=0)
        kept = member & (place >= total - self.size)
        first = torch.arange(self.num_classes, device=labels.device) * self.size
        slot = first + (self.written + place) % self.size
        inside = kept.any(dim=1)
        target = torch.where(inside, (slot * kept).sum(dim=1), self.num_classes * self.size)
        self.rows.index_copy_(0, target, rows.to(self.rows.dtype).masked_fill(inside.logical_not().unsqueeze(1), 0.0))
        self.labels.index_copy_(0, target, torch.where(inside, labels, -1).to(torch.int32))
        self.written += total

    def _check(self, rows: Tensor, labels: Tensor) -> None:
        """Refuse what cannot be appended."""
        spec.check_rows("rows", rows)
        if rows.shape[1] != self.dim:
            raise ValueError(f"rows must be {self.dim} wide, the queue's dim; got {rows.shape[1]}")
        spec.check_integers("labels", labels, rows.shape[0], rows, "rows")
        spec.check_device("rows", rows, self.rows, "the queue")
