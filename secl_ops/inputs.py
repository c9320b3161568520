# SPDX-License-Identifier: Apache-2.0
"""The tensors of one call of the loss: checked together, then arranged as shards of keys and their pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from secl_ops import spec
from secl_ops.spec import Pairs

Several = Tensor | Sequence[Tensor]  # one piece, or a list or tuple of one for each shard of the keys


class Options(Protocol):
    """What the options of every loss say of its rows."""

    @property
    def normalize(self) -> bool: ...
    @property
    def backend(self) -> str: ...
    @property
    def validate(self) -> bool: ...
    @property
    def tensors(self) -> dict[str, Tensor]: ...


class Shard(NamedTuple):
    """Some of the keys and which pairs the anchors form with them."""

    keys: Tensor | None  # [M, D]; None: the anchors in both roles
    pairs: Pairs


class ContrastInput(NamedTuple):
    """Arguments of a loss that are tensors; shapes and meaning stand with `info_nce`."""

    anchors: Tensor  # [N, D]
    keys: Several | None  # [M, D]
    anchor_labels: Tensor  # [N]
    key_labels: Several | None  # [M]
    weights: Tensor | None = None  # [N]
    positives: Tensor | None = None  # [P, D]
    positive_labels: Tensor | None = None  # [P]
    positive_groups: Tensor | None = None  # [P]
    anchor_groups: Tensor | None = None  # [N]
    key_groups: Several | None = None  # [M]
    exclude: Tensor | None = None  # [N]
    key_weights: Several | None = None  # [M]

    def check(self, options: Options) -> None:
        """Refuse what breaks a rule; values are looked at only under `validate`, since that synchronises."""
        spec.check_rows("anchors", self.anchors)
        spec.check_integers("anchor_labels", self.anchor_labels, self.anchors.shape[0], self.anchors, "anchors")
        self._check_keys()
        self._check_key_weights()
        self._check_positives()
        for name in ("anchor_groups", "exclude"):
            value = getattr(self, name)
            if value is not None:
                spec.check_integers(name, value, self.anchors.shape[0], self.anchors, "anchors")
        if self.weights is not None:
            spec.check_per_row("weights", self.weights, self.anchors, "anchors")
        for name, value in options.tensors.items():
            spec.check_device(name, value, self.anchors, "anchors")
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
        spec.check_together({"anchor_groups": self.anchor_groups, "key_groups": self.key_groups})
        names = _names("keys", self.keys)
        if not names:
            raise ValueError("keys must hold at least one tensor; got an empty list; pass None for self-contrast")
        for name in ("key_labels", "key_groups", "key_weights"):
            value = getattr(self, name)
            if value is not None and _amount(value) != _amount(self.keys):
                raise ValueError(
                    f"{name} must come in the pieces of keys, {_amount(self.keys)}; got {_amount(value)}; pass a "
                    "tensor with a tensor, a list with a list"
                )
        for name, keys in zip(names, _pieces(self.keys), strict=True):
            spec.check_rows(name, keys, like=self.anchors, like_name="anchors")
        for kind in ("key_labels", "key_groups"):
            values = getattr(self, kind)
            if values is None:
                continue
            for name, keys_name, value, keys in zip(
                _names(kind, values), names, _pieces(values), _pieces(self.keys), strict=True
            ):
                spec.check_integers(name, value, keys.shape[0], keys, keys_name)

    def _check_key_weights(self) -> None:
        if self.key_weights is None:
            return
        names, pieces = _names("key_weights", self.key_weights), _pieces(self.key_weights)
        owners, rows_of = _names("keys", self.keys), _pieces(self.keys)
        if self.keys is None:
            spec.check_tensor("key_weights", self.key_weights)
            owners, rows_of = ["anchors"], [self.anchors]
        for name, value, rows, rows_name in zip(names, pieces, rows_of, owners, strict=True):
            spec.check_per_row(name, value, rows, rows_name)
            if value.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{name} get no gradient; got a tensor that requires one; pass {name}.detach()")

    def _check_positives(self) -> None:
        spec.check_together({"positives": self.positives, "positive_labels": self.positive_labels})
        if self.positives is None or self.positive_labels is None:
            if self.positive_groups is not None:
                raise ValueError("positive_groups goes with positives; pass positives and positive_labels as well")
            return
        spec.check_rows("positives", self.positives, like=self.anchors, like_name="anchors")
        for name in ("positive_labels", "positive_groups"):
            value = getattr(self, name)
            if value is not None:
                spec.check_integers(name, value, self.positives.shape[0], self.positives, "positives")
        if self.positive_groups is not None and self.anchor_groups is None:
            raise ValueError("positive_groups goes with anchor_groups; pass both, or neither")

    def _check_values(self) -> None:
        for name in ("anchor_labels", "key_labels", "positive_labels"):
            labels = getattr(self, name)
            for part, value in zip(_names(name, labels), _pieces(labels), strict=True):
                spec.check_label_range(part, value)
        for name in ("anchor_groups", "key_groups", "positive_groups"):
            groups = getattr(self, name)
            for part, value in zip(_names(name, groups), _pieces(groups), strict=True):
                spec.check_group_range(part, value)
        if self.exclude is not None and self.keys is not None:
            spec.check_exclude_range(self.exclude, sum(keys.shape[0] for keys in _pieces(self.keys)))
        for name in ("weights", "key_weights"):
            weights = getattr(self, name)
            for part, value in zip(_names(name, weights), _pieces(weights), strict=True):
                wrong = ~((value >= 0) & value.isfinite())
                if bool(wrong.any()):
                    raise ValueError(f"{part} must be finite and at least 0; got {float(value[wrong][0])}")

    def arrange(self) -> list[Shard]:
        """The keys as shards; the anchors alone, in both roles, are one without keys."""
        labels = self.anchor_labels.to(torch.int32)
        groups = None if self.anchor_groups is None else self.anchor_groups.to(torch.int32)
        rows, prototypes = self.anchors.shape[0], self.positives is not None
        start = rows if prototypes else 0
        if self.keys is not None:
            shards = self._key_shards(labels, groups, attract=not prototypes)
        elif self.key_weights is None:
            shards = [Shard(None, Pairs(labels, labels, groups, groups, None, start, rows))]
        else:  # a pair does not count alike for its two rows: they are keys apart
            itself = torch.arange(rows, device=labels.device)
            names, copies = self._weighed(labels, _pieces(self.key_weights)[0])
            shards = [Shard(self.anchors, Pairs(labels, names, groups, groups, itself, start, rows, copies))]
        if self.positives is not None and self.positive_labels is not None:
            own = None if self.positive_groups is None else self.positive_groups.to(torch.int32)
            pairs = Pairs(
                labels,
                self.positive_labels.to(torch.int32, copy=True),
                None if own is None else groups,
                own,
                None,
                0,
                0,
            )
            shards.append(Shard(self.positives, pairs))
        return shards

    def _key_shards(self, labels: Tensor, groups: Tensor | None, *, attract: bool) -> list[Shard]:
        shards, first = [], 0
        parts = _pieces(self.keys)
        absent: list[Tensor | None] = [None] * len(parts)
        key_groups, key_weights = (_pieces(given) or absent for given in (self.key_groups, self.key_weights))
        pieces = zip(parts, _pieces(self.key_labels), key_groups, key_weights, strict=True)
        for keys, key_labels, own, weights in pieces:
            count = keys.shape[0]
            exclude = None if self.exclude is None else self.exclude.to(torch.int64)
            if exclude is not None and len(parts) > 1:  # it numbers the keys of all shards together
                exclude = torch.where((exclude >= first) & (exclude < first + count), exclude - first, -1)
            # A copy: labels that are a view of a queue may be overwritten before the backward pass reads them.
            names, copies = self._weighed(key_labels.to(torch.int32, copy=True), weights)
            pairs = Pairs(
                labels, names, groups, None if own is None else own.to(torch.int32), exclude,
                0 if attract else count, count, copies,
            )  # fmt: skip
            shards.append(Shard(keys, pairs))
            first += count
        return shards

    def _weighed(self, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Labels and weights of keys as the engines read them: whoever counts 0 times is ignored."""
        if weights is None:
            return labels, None
        copies = weights.detach().to(torch.promote_types(self.anchors.dtype, torch.float32))
        ignored = (copies == 0) | (labels < 0)
        return torch.where(ignored, -1, labels), torch.where(ignored, 1.0, copies)


def _pieces(value: Several | None) -> list[Tensor]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]  # refused later


def _names(name: str, value: Several | None) -> list[str]:
    """How messages call each piece."""
    if isinstance(value, (list, tuple)):
        return [f"{name}[{place}]" for place in range(len(value))]
    return [] if value is None else [name]


def _amount(value: Several) -> str:
    return f"a list of {len(value)}" if isinstance(value, (list, tuple)) else "one tensor"
