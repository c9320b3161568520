# SPDX-License-Identifier: Apache-2.0
"""`ContrastiveLoss` of MONAI."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from secl_ops import spec
from secl_ops.compat.common import two_views
from secl_ops.spec import ContrastSpec


class ContrastiveLoss(nn.Module):
    """`monai.losses.ContrastiveLoss`, the NT-Xent of SimCLR on two views, without a tensor of all pairs.

    With cosine s_ij = r_i . r_j / temperature over the 2 B rows of both and p(i) the other view of row i:

        L_i = logsumexp over j != i of s_ij - s_ip(i)

    averaged over all rows. MONAI expands every pair to its width, O(B^2 F) numbers. Source: Chen et al. 2020,
    arXiv:2002.05709.

    Args:
        temperature: Divides the similarity.
        batch_size: Not needed, there neither; a value warns.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.monai import ContrastiveLoss
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = ContrastiveLoss(temperature=0.5)(first, torch.tensor([[0.8, 0.6], [0.6, 0.8]]))
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.8707
    """

    def __init__(self, temperature: float | Tensor = 0.5, batch_size: int = -1, *, backend: str = "auto") -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        if batch_size != -1:
            warnings.warn("batch_size is read off each batch; leave it out", stacklevel=2)
        self.temperature, self.backend = temperature, backend

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return f"temperature={self.temperature!r}"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # [B, F] each
        """The loss of two views of one batch."""
        spec.check_rows("input", input)
        return two_views(input, target, ("input", "target"), self.temperature, self.backend)
