# SPDX-License-Identifier: Apache-2.0
"""`NTXentLoss`, with its memory bank, and `SupConLoss` of lightly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secl_ops import spec
from secl_ops.compat.common import paired, raised, two_views
from secl_ops.replay import recall
from secl_ops.spec import ContrastSpec


class NTXentLoss(nn.Module):
    """`lightly.loss.NTXentLoss`: the loss of SimCLR on two views, or that of MoCo against a bank of earlier rows.

    With cosine s_ij = r_i . r_j / temperature over the 2 B rows of both views and p(i) the other view of row i:

        L_i = logsumexp over j != i of s_ij - s_ip(i)

    averaged over all rows. With a bank the anchors are the first view's rows, and the denominator holds the anchor's
    own second view and the bank's rows. A bank begins with random rows; under a gradient it then takes the second
    view's, begins again at its first row once it is full, and drops what is left of that batch, as there. Its rows
    are in `state_dict`. Source: Chen et al. 2020, arXiv:2002.05709; He et al. 2020, arXiv:1911.05722.

    Args:
        temperature: Divides the similarity.
        memory_bank_size: 0, or (rows, width) of the bank.
        gather_distributed: False; for the keys of other processes call `info_nce` with `group`.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.lightly import NTXentLoss
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = NTXentLoss(temperature=0.5)(first, torch.tensor([[0.8, 0.6], [0.6, 0.8]]))
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.8707
    """

    rows: Tensor  # [K + 1, D], unit; the last takes what is dropped
    place: Tensor  # [1] int64, where the next batch goes

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        _refuse_gathering(gather_distributed)
        self.temperature, self.backend = temperature, backend
        self.size = _bank_size(memory_bank_size)
        if self.size is not None:
            count, width = self.size
            random = torch.nn.functional.normalize(torch.randn(count, width), dim=1)
            self.register_buffer("rows", torch.cat([random, torch.zeros(1, width)]))
            self.register_buffer("place", torch.zeros(1, dtype=torch.int64))

    @property
    def bank(self) -> Tensor:
        """Rows [K, D] of the memory bank, a view."""
        return self.rows[:-1]

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return f"temperature={self.temperature!r}, memory_bank_size={self.size or 0}"

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:  # [B, D] each
        """The loss of two views of one batch."""
        spec.check_rows("out0", out0)
        if self.size is None:
            return two_views(out0, out1, ("out0", "out1"), self.temperature, self.backend)
        spec.check_rows("out1", out1, like=out0, like_name="out0")
        if out1.shape != out0.shape:
            raise ValueError(f"out1 must have the shape of out0, {tuple(out0.shape)}; got {tuple(out1.shape)}")
        if out0.shape[1] != self.size[1]:
            raise ValueError(f"out0 must be as wide as memory_bank_size says, {self.size[1]}; got {out0.shape[1]}")
        (bank,), first, _ = recall(self, self.bank)
        loss = paired(out0, out1, bank, self.temperature, self.backend)
        if first and out0.requires_grad:
            self._take(out1)
        return loss

    @torch.no_grad()
    def _take(self, batch: Tensor) -> None:
        count = self.rows.shape[0] - 1
        place = self.place + torch.arange(batch.shape[0], device=batch.device)
        unit = torch.nn.functional.normalize(batch.to(self.rows.dtype), dim=1)
        lost = place >= count
        self.rows.index_copy_(0, torch.where(lost, count, place), unit.masked_fill(lost[:, None], 0.0))
        after = self.place + batch.shape[0]
        self.place.copy_(torch.where(after >= count, 0, after))


class SupConLoss(nn.Module):
    """`lightly.loss.supcon_loss.SupConLoss` on two views, without a matrix of all pairs.

    With cosine s_ij = r_i . r_j / temperature over the 2 B rows of both views and positives P(i), the other rows of
    the label, or without labels of the number:

        L_i = temperature * (logsumexp over j != i of s_ij - mean over P(i) of s_ip)

    averaged over all rows. Source: Khosla et al. 2020, arXiv:2004.11362.

    Args:
        temperature: Divides the similarity.
        gather_distributed: False; for the keys of other processes call `info_nce` with `group`.
        rescale: Multiply the loss by the temperature.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.lightly import SupConLoss
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = SupConLoss(temperature=0.5)(first, torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([0, 1]))
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.4354
    """

    def __init__(
        self,
        temperature: float = 0.5,
        gather_distributed: bool = False,
        rescale: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        _refuse_gathering(gather_distributed)
        spec.check_bool("rescale", rescale)
        self.temperature, self.rescale, self.backend = temperature, rescale, backend

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return f"temperature={self.temperature!r}, rescale={self.rescale!r}"

    def forward(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None) -> Tensor:  # [B, D] each, [B]
        """The loss of two views of one batch."""
        spec.check_rows("out0", out0)
        if labels is not None:
            spec.check_integers("labels", labels, out0.shape[0], out0, "out0")
            labels = raised(labels, labels)[0]
        loss = two_views(out0, out1, ("out0", "out1"), self.temperature, self.backend, labels)
        return loss * self.temperature if self.rescale else loss


def _refuse_gathering(gather_distributed: object) -> None:
    if gather_distributed is not False:
        raise ValueError(
            f"gather_distributed must be False; got {gather_distributed!r}; for the keys of other processes call "
            "secl_ops.info_nce with group"
        )


def _bank_size(size: int | Sequence[int]) -> tuple[int, int] | None:
    """Rows and width of the bank; None without one."""
    if size == 0:
        return None
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"memory_bank_size must be 0 or (rows, width); got {size!r}; say the width as well")
    for part in size:
        spec.check_positive_int("memory_bank_size", part)
    return size[0], size[1]
