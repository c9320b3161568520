# SPDX-License-Identifier: Apache-2.0
"""The tensors of one call of the loss: checked together, then arranged as one key matrix and its pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secl_ops import spec
from secl_ops.spec import ContrastSpec, Flag, Pairs


class ContrastInput(NamedTuple):
    """Arguments of `info_nce` that are tensors; shapes and meaning stand there."""

    anchors: Tensor  # [N, D]
    keys: Tensor | None  # [M, D]
    anchor_labels: Tensor  # [N]
    key_labels: Tensor | None  # [M]
    weights: Tensor | None  # [N]
    positives: Tensor | None  # [P, D]
    positive_labels: Tensor | None  # [P]
    anchor_groups: Tensor | None  # [N]
    key_groups: Tensor | None  # [M]
    exclude: Tensor | None  # [N]

    def check(self, options: ContrastSpec) -> None:
        """Refuse what the contract forbids; values are looked at only under `validate`, since that synchronises."""
        spec.check_rows("anchors", self.anchors)
        spec.check_integers("anchor_labels", self.anchor_labels, self.anchors.shape[0], self.anchors, "anchors")
        self._check_keys()
        self._check_positives()
        for name in ("anchor_groups", "exclude"):
            value = getattr(self, name)
            if value is not None:
                spec.check_integers(name, value, self.anchors.shape[0], self.anchors, "anchors")
        if self.weights is not None:
            spec.check_weights(self.weights, self.anchors)
        if isinstance(options.temperature, Tensor):
            spec.check_device("temperature", options.temperature, self.anchors, "anchors")
        if options.validate:
            self._check_values()

    def _check_keys(self) -> None:
        spec.check_together({"keys": self.keys, "key_labels": self.key_labels})
        if self.keys is None or self.key_labels is None:
            if self.key_groups is not None:
                raise ValueError("key_groups goes with keys; without keys anchor_groups serves both sides")
            if self.exclude is not None:
                raise ValueError("exclude goes with keys; without keys each anchor is already blind to itself")
            return
        spec.check_rows("keys", self.keys, like=self.anchors, like_name="anchors")
        spec.check_integers("key_labels", self.key_labels, self.keys.shape[0], self.keys, "keys")
        spec.check_together({"anchor_groups": self.anchor_groups, "key_groups": self.key_groups})
        if self.key_groups is not None:
            spec.check_integers("key_groups", self.key_groups, self.keys.shape[0], self.keys, "keys")

    def _check_positives(self) -> None:
        spec.check_together({"positives": self.positives, "positive_labels": self.positive_labels})
        if self.positives is None or self.positive_labels is None:
            return
        spec.check_rows("positives", self.positives, like=self.anchors, like_name="anchors")
        spec.check_integers(
            "positive_labels", self.positive_labels, self.positives.shape[0], self.positives, "positives"
        )
        if self.anchor_groups is not None:
            raise ValueError("positives belong to no group; pass either positives or groups, not both")

    def _check_values(self) -> None:
        for name in ("anchor_labels", "key_labels", "positive_labels"):
            labels = getattr(self, name)
            if labels is not None:
                spec.check_label_range(name, labels)
        for name in ("anchor_groups", "key_groups"):
            groups = getattr(self, name)
            if groups is not None:
                spec.check_group_range(name, groups)
        if self.exclude is not None and self.keys is not None:
            spec.check_exclude_range(self.exclude, self.keys.shape[0])
        if self.weights is not None and bool((self.weights < 0).any()):
            raise ValueError(f"weights must be at least 0; got {float(self.weights.min())}")

    def arrange(self, flags: Flag) -> tuple[Tensor | None, Pairs, Flag]:
        """Key rows (None: the anchors in both roles), which pairs count, and the flags with SELF where it holds."""
        labels = self.anchor_labels.to(torch.int32)
        groups = None if self.anchor_groups is None else self.anchor_groups.to(torch.int32)
        if self.keys is None and self.positives is None:
            return None, Pairs(labels, labels, groups, groups, None, 0, self.anchors.shape[0]), flags | Flag.SELF
        keys, key_labels, exclude = self.anchors, labels, self.exclude
        key_groups = groups if self.key_groups is None else self.key_groups.to(torch.int32)
        if self.keys is not None and self.key_labels is not None:
            # A copy: labels that are a view of a queue may be overwritten before the backward pass reads them.
            keys, key_labels = self.keys, self.key_labels.to(torch.int32, copy=True)
        else:
            exclude = torch.arange(self.anchors.shape[0], device=self.anchors.device)
        exclude = None if exclude is None else exclude.to(torch.int64)
        count, start = keys.shape[0], 0
        if self.positives is not None and self.positive_labels is not None:
            if exclude is not None:
                exclude = exclude.masked_fill(exclude >= count, -1)  # it names a key, never a prototype
            keys = torch.cat([keys, self.positives])
            key_labels, start = torch.cat([key_labels, self.positive_labels.to(torch.int32)]), count
        return keys, Pairs(labels, key_labels, groups, key_groups, exclude, start, count), flags
