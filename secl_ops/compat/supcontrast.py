# SPDX-License-Identifier: Apache-2.0
"""`SupConLoss` of SupContrast, the code of Khosla et al."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secl_ops import spec
from secl_ops.compat.common import check_base, raised
from secl_ops.functional import info_nce
from secl_ops.spec import ContrastSpec

MODES = ("all", "one")


class SupConLoss(nn.Module):
    """`losses.SupConLoss` of SupContrast on several views of a batch, without a matrix of all pairs.

    With s_ij = r_i . r_j / temperature over all B x V rows as they are (normalise them before, as there) and positives
    P(i), the other rows of the label:

        L_i = temperature / base_temperature * (logsumexp over j != i of s_ij - mean over P(i) of s_ip)

    averaged over all anchors, those without a positive as 0. Without labels and mask the positives are the other views
    of the same sample: SimCLR. Source: Khosla et al. 2020, arXiv:2004.11362.

    Args:
        temperature: Divides the similarity.
        contrast_mode: "all": every view is an anchor; "one": the first alone.
        base_temperature: See the formula.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.supcontrast import SupConLoss
        >>> views = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]], requires_grad=True)
        >>> loss = SupConLoss(temperature=0.5, base_temperature=0.5)(views)  # [samples, views, width]
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.8707
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        check_base(base_temperature)
        spec.check_choice("contrast_mode", contrast_mode, MODES)
        self.temperature, self.contrast_mode, self.base_temperature = temperature, contrast_mode, base_temperature
        self.backend = backend

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        names = ("temperature", "contrast_mode", "base_temperature")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self,
        features: Tensor,  # [B, V, ...]
        labels: Tensor | None = None,  # [B]
        mask: Tensor | None = None,  # [B, B]
    ) -> Tensor:
        """The loss of one batch; a mask must be that of some labels, and to see that waits for the device."""
        spec.check_tensor("features", features)
        if features.ndim < 3:
            raise ValueError(f"features must have shape [samples, views, ...]; got {tuple(features.shape)}")
        samples, views = features.shape[:2]
        rows = features.flatten(2).transpose(0, 1).flatten(0, 1)  # view by view
        spec.check_rows("features", rows)
        one = self._labels(features, labels, mask).repeat(views)
        anchors, keys, key_labels, exclude = rows, None, None, None
        if self.contrast_mode == "one":
            anchors, keys, key_labels, exclude = rows[:samples], rows, one, torch.arange(samples, device=rows.device)
        loss = info_nce(
            anchors, keys, anchor_labels=one[: anchors.shape[0]], key_labels=key_labels, exclude=exclude,
            temperature=self.temperature, denominator="all", normalize=False, reduction="sum", backend=self.backend,
        )  # fmt: skip
        return loss * (self.temperature / self.base_temperature / max(1, anchors.shape[0]))

    def _labels(self, features: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """The label of each sample [B]: the one that is given, that of its row of the mask, or its number."""
        samples = features.shape[0]
        if labels is not None and mask is not None:
            raise ValueError("labels and mask say the same; got both; pass one of them")
        if mask is not None:
            return _of_mask(mask, samples).to(features.device)
        if labels is None:
            return torch.arange(samples, device=features.device)
        spec.check_tensor("labels", labels)
        labels = labels.reshape(-1).to(features.device)  # a column too, and from anywhere, as there
        spec.check_integers("labels", labels, samples, features, "features")
        return raised(labels, labels)[0]


def _of_mask(mask: Tensor, samples: int) -> Tensor:
    """The labels [B] whose mask this is."""
    spec.check_tensor("mask", mask)
    if mask.shape != (samples, samples):
        raise ValueError(f"mask must have shape [{samples}, {samples}], one row per sample; got {tuple(mask.shape)}")
    labels = torch.arange(samples, device=mask.device) if samples == 0 else (mask != 0).int().argmax(dim=1)
    if not torch.equal(mask.float(), (labels[:, None] == labels[None, :]).float()):
        raise ValueError(
            "mask must be 1 where two samples have one label and 0 elsewhere, on both sides alike; got other pairs; "
            "pass labels, or weigh pairs in plain torch"
        )
    return labels
