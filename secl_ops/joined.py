# SPDX-License-Identifier: Apache-2.0
"""Keys of several processes: the anchors of each against the keys of all, and one loss of all anchors.

Few keys are gathered: each process then holds those of all. Many go round in a ring, in which each process holds its
own and two blocks that visit: once for the log-sum-exp, once for the positives at it, and once more in the backward
pass with the gradient that they collect. Each block is contrasted while the next one is on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secl_ops import ops
from secl_ops.autograd import (
    Places,
    apply,
    folded,
    graphless,
    key_source,
    shrink_factor,
    temperature_gradient,
    to_source,
    unit_source,
    weight_gradient,
)
from secl_ops.distributed import Ranks, between_graphs
from secl_ops.engines.reference import Origin
from secl_ops.engines.select import select
from secl_ops.first_order import first_order
from secl_ops.inputs import ContrastInput, Shard
from secl_ops.merging import Call, Near, Scanned, chained, merged_nears, merged_scans, near, of_counted, scan
from secl_ops.spec import ContrastSpec, Pairs

# Up to here a gathered copy of all keys, with a gradient in fp32, is small beside a network's activations, and one
# exchange takes less than the many of a ring wait for each other.
GATHERED_BYTES = 64 << 20
ALIGNED = 16  # bytes, from which on the integers of a parcel may be read as what they are


class Block(NamedTuple):
    """Keys that the anchors meet at once: those of one process, or of all."""

    rows: Tensor  # [m, D]
    labels: Tensor  # [m] int32
    groups: Tensor | None  # [m] int32
    exclude: Tensor | None  # [N] int64, counted from the first of these
    weights: Tensor | None = None  # [m] float

    def pairs(self, anchor_labels: Tensor, anchor_groups: Tensor | None, attract: bool) -> Pairs:
        """The pairs that the anchors form with these; without attraction none is positive."""
        count = self.labels.shape[0]
        start = 0 if attract else count
        return Pairs(anchor_labels, self.labels, anchor_groups, self.groups, self.exclude, start, count, self.weights)

    def gathered(self, ranks: Ranks) -> Block:
        """The blocks of all processes as one."""
        count = self.labels.shape[0]
        numbers = self._numbers()
        found = ranks.gathered(numbers.unsqueeze(0)).transpose(0, 1).reshape(len(numbers), -1)
        exclude = self.exclude
        if exclude is not None:
            exclude = torch.where((exclude >= 0) & (exclude < count), exclude + ranks.rank * count, -1)
        return self._numbered(ranks.gathered(self.rows), found)._replace(exclude=exclude)

    def packed(self) -> Tensor:
        """Rows and integers as the bytes of one parcel."""
        rows, numbers = (values.reshape(-1).view(torch.uint8) for values in (self.rows, self._numbers()))
        return torch.cat([rows, rows.new_zeros(-len(rows) % ALIGNED), numbers])

    def unpacked(self, parcel: Tensor) -> Block:
        """The block that came in a parcel, of the shapes of this one; none of its keys is excluded."""
        count, size = self.labels.shape[0], self.rows.numel() * self.rows.element_size()
        rows = parcel[:size].view(self.rows.dtype).view(self.rows.shape)
        words = 0 if self.weights is None else self.weights.element_size() // 4
        numbers = parcel[size + -size % ALIGNED :].view(torch.int32)
        return self._numbered(rows, numbers.view(1 + (self.groups is not None) + words, count))

    def _numbers(self) -> Tensor:
        """Labels, groups and the words of the weights, [1 to 4, m] int32."""
        numbers = [self.labels] if self.groups is None else [self.labels, self.groups]
        if self.weights is not None:
            numbers += self.weights.unsqueeze(1).view(torch.int32).unbind(1)
        return torch.stack(numbers)

    def _numbered(self, rows: Tensor, numbers: Tensor) -> Block:
        """A block of these numbers, which has what this one has; none of its keys is excluded."""
        labels, *rest = numbers
        groups = None if self.groups is None else rest.pop(0)
        weights = None
        if self.weights is not None:
            weights = torch.stack(rest, 1).view(self.weights.dtype).flatten()
        return Block(rows, labels, groups, None, weights)


class Meeting(NamedTuple):
    """The anchors of this process and the keys of all."""

    ranks: Ranks
    ring: bool  # else the block is the gathered one
    rows: Tensor  # [N, D]
    anchor_labels: Tensor  # [N] int32
    anchor_groups: Tensor | None  # [N] int32
    block: Block
    attract: bool  # whether keys may be positives
    options: ContrastSpec
    ordered: bool

    def contrast(self, others: Sequence[Call], wanted: bool) -> tuple[Scanned, Near]:
        """Log-sum-exp and positives over the keys of all and those of other calls.

        In a ring one block follows the other and nothing is kept of it but what it adds.
        """
        if not self.ring:
            known = [self._call(self.block), *others]
            if len(known) == 1:
                loss, lse, pull, count, gradient, _ = known[0].run_whole(wanted)
                return Scanned(lse, None), Near(loss, pull, count, gradient if wanted else None)
            known, scanned = scan(known, wanted)
            return scanned, near(known, scanned.lse, wanted)
        lse, mean = reduce(_both_scans, (scan([call], wanted)[1] for call in self._round(others)))
        visits = self._round(others) if self.attract else iter(others)
        return Scanned(lse, mean), reduce(_both_nears, (near([call], lse, wanted) for call in visits))

    def key_gradient(self, push: Tensor, draw: Tensor, lse: Tensor) -> Tensor:
        """The gradient of this process's keys [M, D], from the anchors of all."""
        if not self.ring:
            return self.ranks.brought_home(self._call(self.block).key_gradient(push, draw, lse))
        return self.ranks.home(
            self.block.packed(), lambda *visit: self._call(self._visiting(*visit)).key_gradient(push, draw, lse)
        )

    def _call(self, block: Block) -> Call:
        pairs = block.pairs(self.anchor_labels, self.anchor_groups, self.attract)
        return Call(self.rows, block.rows.to(self.rows.dtype), pairs, None, self.options, self.ordered and self.ring)

    def _round(self, others: Sequence[Call]) -> Iterator[Call]:
        for source, parcel in self.ranks.ring(self.block.packed()):
            yield self._call(self._visiting(source, parcel))
        yield from others

    def _visiting(self, source: int, parcel: Tensor) -> Block:
        return self.block if source == self.ranks.rank else self.block.unpacked(parcel)


NOTHING: tuple[Tensor | None, ...] = (None, None, None)


def _both_scans(one: Scanned, other: Scanned) -> Scanned:
    return merged_scans([one, other])


def _both_nears(one: Near, other: Near) -> Near:
    return merged_nears([one, other])


class Side(NamedTuple):
    """Rows as they are compared, and how they were made."""

    unit: Tensor  # [n, D]
    inverse: Tensor | None  # [n]
    place: Tensor | None  # [n] of a feature map

    def back(self, grad: Tensor, origin: Origin, options: ContrastSpec) -> Tensor | None:
        """The gradient of what the rows came from."""
        return to_source(grad, None, *self, origin, options)


class Reduced(NamedTuple):
    """What a reduction over the anchors of all processes makes of this one's."""

    value: Tensor  # [] float, or [N] under "none"
    factor: Tensor  # [N] d value / d loss_i
    push: Tensor  # [N]
    draw: Tensor  # [N]
    excess: Tensor  # [N] d value / d weight_i, times the divisor
    divisor: Tensor  # [] sum of the weights under "mean", else 1


def reduced(found: Near, weights: Tensor | None, options: ContrastSpec, ranks: Ranks) -> Reduced:
    """`ops.reduce` over the anchors of all processes; the same bits in each of them."""
    value, factor, push, draw = ops.reduce(found.loss, found.pull, found.count, weights, "none", options.backend)
    one = found.loss.new_ones(())
    if options.reduction == "none":
        return Reduced(value, factor, push, draw, found.loss, one)
    total, weight = ranks.total(torch.stack([value.sum(), factor.sum()]))
    if options.reduction == "sum":
        return Reduced(total, factor, push, draw, found.loss, one)
    divisor = torch.where(weight > 0, weight, 1.0)
    value = total / divisor
    return Reduced(value, factor / divisor, push / divisor, draw / divisor, found.loss - value, divisor)


class JoinedContrast(torch.autograd.Function):
    """The loss of this process's anchors against the keys of all, reduced over the anchors of all.

    A temperature tensor is folded into the anchors alone, since the keys also meet those of other processes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,  # [N, D], or [B, D, *spatial]
        keys: Tensor | None,  # [M, D], or [B', D, *spatial']; None: the anchors
        beside: Tensor | None,  # [P, D], keys that the anchors of this process alone meet
        temperature: Tensor | None,  # one element
        weights: Tensor | None,  # [N]
        pairs: Sequence[Pairs],  # with the keys, and with those beside
        options: ContrastSpec,
        places: Places,
        ordered: bool,
        ranks: Ranks,
    ) -> Tensor:
        of_anchors, of_keys, of_beside, of_temperature, of_weights = ctx.needs_input_grad[:5]
        first, beside_pairs = pairs[0], pairs[-1]
        own = side = Side(*unit_source(anchors, places.anchors, first.anchor_labels, options), places.anchors)
        if keys is not None:
            side = Side(*unit_source(keys, places.keys, first.key_labels, options), places.keys)
        shrink = shrink_factor(own.unit, temperature)
        block = Block(side.unit, first.key_labels, first.key_groups, first.exclude, first.key_weights)
        ring = side.unit.numel() * side.unit.element_size() * ranks.size > GATHERED_BYTES
        meeting = Meeting(
            ranks, ring, folded(own.unit, shrink), first.anchor_labels, first.anchor_groups,
            block if ring else block.gathered(ranks), first.positive_start == 0, options, ordered,
        )  # fmt: skip
        others: list[Call] = []
        other = NOTHING
        if beside is not None:
            unit, inverse, factor = key_source(beside, None, beside_pairs.key_labels, of_beside, options)
            others = [Call(meeting.rows, unit.to(meeting.rows.dtype), beside_pairs, factor, options, ordered)]
            other = (unit, inverse, None)
        (lse, mean), found = meeting.contrast(others, of_anchors or of_temperature)
        value, *factors, excess, divisor = reduced(found, weights, options, ranks)
        learns = of_anchors if keys is None else of_keys
        ctx.save_for_backward(
            *own, *(side if of_keys else NOTHING), *(other if of_beside else NOTHING),
            meeting.block.rows if learns else None, *meeting.block[1:], *beside_pairs[:5],
            first.anchor_labels, first.anchor_groups, shrink, temperature, lse, mean, found.gradient, *factors,
            *((weights, excess, found.count, divisor) if of_weights else (None,) * 4),
        )  # fmt: skip
        ctx.ranks, ctx.ring, ctx.options, ctx.ordered = ranks, ring, options, ordered
        ctx.attract, ctx.range = meeting.attract, beside_pairs[5:7]
        ctx.origins = [None if each is None else Origin.of(each) for each in (anchors, keys, beside)]
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        saved, options = iter(ctx.saved_tensors), ctx.options
        own, side, other = (Side(*islice(saved, 3)) for _ in range(3))
        block, beside_pairs = Block(*islice(saved, 5)), Pairs(*islice(saved, 5), *ctx.range)
        anchor_labels, anchor_groups, shrink, temperature, lse, mean, gradient, *factors = islice(saved, 10)
        of_anchors, of_keys, of_beside, of_temperature, of_weights = ctx.needs_input_grad[:5]
        if options.reduction != "none":  # the loss that every process returns is one of these rows
            grad_value = ctx.ranks.total(grad_value.reshape(1))
        upstream = grad_value.expand(lse.shape)
        grad_loss, push, draw = (of_counted(number, upstream) for number in factors)
        rows = folded(own.unit, shrink)
        meeting = Meeting(
            ctx.ranks, ctx.ring, rows, anchor_labels, anchor_groups, block, ctx.attract, options, ctx.ordered
        )
        grads: list[Tensor | None] = [None] * 5
        if of_anchors or of_temperature:
            grad_rows = chained(gradient, mean, grad_loss, push)
            if of_temperature:
                grads[3] = temperature_gradient(grad_rows, rows, temperature)
            if of_anchors:
                grad_rows = grad_rows if shrink is None else grad_rows * shrink
                if ctx.origins[1] is None:
                    grad_rows = grad_rows + meeting.key_gradient(push, draw, lse)
                grads[0] = own.back(grad_rows, ctx.origins[0], options)
        if of_keys:
            grads[1] = side.back(meeting.key_gradient(push, draw, lse), ctx.origins[1], options)
        if of_beside:
            call = Call(rows, other.unit.to(rows.dtype), beside_pairs, None, options, ctx.ordered)
            grads[2] = other.back(call.key_gradient(push, draw, lse), ctx.origins[2], options)
        if of_weights:
            weights, excess, count, divisor = saved
            grads[4] = weight_gradient(upstream / divisor, (weights, excess, count, excess), "sum")
        return *grads, *(None,) * 5


@between_graphs
def info_nce(given: ContrastInput, options: ContrastSpec, group: object) -> Tensor | None:
    """The loss of rows against the keys of all processes; None where this one is alone."""
    ranks = Ranks.of(group)
    if ranks is None:
        return None
    with ranks.refusing_together(given.anchors):
        given.check(options)
        shards = _in_one_piece(given).arrange()
    return contrast_joined(given.anchors, shards, options, ranks, weights=given.weights)


def _in_one_piece(given: ContrastInput) -> ContrastInput:
    """The same of checked rows, with a list of keys joined."""
    if not isinstance(given.keys, (list, tuple)):
        return given
    labels, groups = (
        None if pieces is None else torch.cat([piece.to(torch.int32) for piece in pieces])
        for pieces in (given.key_labels, given.key_groups)
    )
    copies = None if given.key_weights is None else torch.cat([*given.key_weights])
    return given._replace(keys=torch.cat([*given.keys]), key_labels=labels, key_groups=groups, key_weights=copies)


def contrast_joined(
    anchors: Tensor,  # [N, D], or [B, D, *spatial]
    shards: Sequence[Shard],  # the keys that all processes meet, and perhaps some that this one alone does
    options: ContrastSpec,
    ranks: Ranks,
    *,
    weights: Tensor | None = None,  # [N]
    places: Places = Places(),  # noqa: B008  # immutable
    ordered: bool = False,
    fills: bool = False,  # whether a queue takes the keys afterwards
) -> Tensor:
    """The loss of checked rows, or of the pixels of checked maps, against the keys of all processes."""
    with ranks.refusing_together(anchors):
        ranks.require_served(anchors)
        select(options.backend, anchors.device, anchors.dtype, "info_nce", anchors.shape[1])
    keys, beside = shards[0].keys, None if len(shards) == 1 else shards[1].keys
    pairs = [shard.pairs for shard in shards]
    if keys is None:
        own = torch.arange(pairs[0].key_labels.shape[0], device=anchors.device)  # whom an anchor must not see
        pairs[0] = pairs[0]._replace(exclude=own)
    sources = graphless(anchors, keys, beside, options.learned, weights)
    ranks.agree(_described(anchors, sources, pairs, options, fills), anchors.device)
    loss: Tensor = apply(JoinedContrast, *sources, pairs, options, places, ordered, ranks)
    return loss


def _described(
    anchors: Tensor, sources: Sequence[Tensor | None], pairs: Sequence[Pairs], options: ContrastSpec, fills: bool
) -> dict[str, object]:
    """What must be the same in every process: whatever decides what is exchanged, and what the loss is."""
    names, first, width = ("anchors", "keys", "positives", "temperature", "weights"), pairs[0], anchors.shape[1]
    learning = [name for name, each in zip(names, sources, strict=True) if each is not None and each.requires_grad]
    return {
        "call": "a loss",
        "anchors": [first.anchor_labels.shape[0], width],
        "keys": "the anchors" if sources[1] is None else [first.key_labels.shape[0], width],
        "dtype": anchors.dtype,
        "groups": first.anchor_groups is not None,
        "key weights": first.key_weights is not None,
        "positives": first.positive_start > 0,
        "queue": ("read and filled" if fills else "read") if first.positive_start == 0 and len(pairs) > 1 else "none",
        "denominator": options.denominator,
        "normalize": options.normalize,
        "reduction": options.reduction,
        "temperature": "a number" if options.learned is None else "a tensor",  # it may change at every step
        "gradients of": ", ".join(learning) or "nothing",
    }
