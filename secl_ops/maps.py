# SPDX-License-Identifier: Apache-2.0
"""The drop-in: from feature maps and label maps to one loss."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from secl_ops import small, spec
from secl_ops.autograd import Gather, Places, apply, contrast_sources
from secl_ops.distributed import Ranks, between_graphs
from secl_ops.inputs import ContrastInput, Options, Shard
from secl_ops.joined import contrast_joined
from secl_ops.pixels import PixelSample, check_seed, draw_pixels, nearest
from secl_ops.queue import ClassQueue
from secl_ops.remembered import remembered
from secl_ops.replay import recall
from secl_ops.shards import contrast_shards
from secl_ops.small_call import Pixels
from secl_ops.spec import ContrastSpec, Pairs, SampleSpec

KEY_DRAW = 0x5ECC  # the teacher's pixels are drawn apart from the student's


def pixel_contrast(
    features: Tensor,  # [B, D, *spatial] floating
    labels: Tensor,  # [B, *any] integer
    key_features: Tensor | None = None,  # [B', D, *spatial'] floating
    key_labels: Tensor | None = None,  # [B', *any] integer
    *,
    per_class: int,
    num_classes: int,
    seed: int | Tensor,
    key_seed: int | Tensor | None = None,
    ignore_index: int = -1,
    eligible: Tensor | None = None,  # shape of labels, bool
    key_eligible: Tensor | None = None,  # shape of key_labels, bool
    scores: Tensor | None = None,  # shape of labels, floating
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
) -> Tensor:
    """Sample pixels by label, gather their features, and contrast them: `info_nce` on feature maps.

    The loss is that of `info_nce` over `sample_pixels(labels)`; label maps of another resolution are brought to the
    feature map's by nearest neighbour. With a teacher's map the keys are its pixels (drawn apart, a gradient only if it
    asks for one); without, the anchors contrast themselves. A head projects the gathered rows, never a whole map. A
    queue adds its rows to the keys and then takes this call's: not in its `eval()`, nor under `no_grad`.

    With a group the anchors meet the pixels that all its processes drew, as `info_nce` says. Each process draws in a
    stream of its own, also from one seed. A queue takes the rows of all: it stays equal in all processes, each of
    which reads its own, once.

    Args:
        features: The student's map [B, D, *spatial].
        labels: Class of every pixel, or pseudo-labels, at any resolution.
        key_features: The teacher's map.
        key_labels: Its labels; None: `labels`.
        per_class: Pixels of each class and image, at most.
        num_classes: Number of classes; given, since reading it off the data would wait for the device.
        seed: As in `sample_pixels`.
        key_seed: The same for the pixels of `key_features`; None: it follows from `seed`.
        ignore_index: Label that is never drawn.
        eligible: Where False a pixel is not drawn as an anchor, for example below a confidence.
        key_eligible: The same for keys; None: `eligible` where `key_labels` is None.
        scores: For strategy "hard".
        strategy: "uniform", "stratified" or "hard" (keys of a teacher are then drawn uniformly).
        head: Maps the anchors' rows [n, D] to [n, P], as nn.Linear does, before they are normalised. A free place is a
            zero row that does not count, which a head that mixes rows (batch normalisation) nevertheless sees.
        key_head: The same for the rows of `key_features`, which may then differ from `features` in width and dtype;
            None: `head`, without a gradient. Without `key_features` the keys are the projected anchors.
        queue: Rows of earlier calls, as wide as the rows that are compared: D, or P with a head.
        temperature: As in `info_nce`, and so are denominator, normalize, reduction, backend and validate.
        denominator: See `info_nce`.
        normalize: See `info_nce`.
        reduction: See `info_nce`; "none" gives one loss per drawn place.
        backend: See `info_nce`.
        validate: See `info_nce`.
        group: See `info_nce`; in each process maps of as many images.

    Returns:
        The loss; 0 with a graph where nothing could be contrasted.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.
        RuntimeError: A named backend cannot run here.

    Example:
        >>> import torch, secl_ops
        >>> features = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        >>> labels = torch.arange(2 * 32 * 32).reshape(2, 32, 32) % 3
        >>> loss = secl_ops.pixel_contrast(features, labels, per_class=4, num_classes=3, seed=0)
        >>> loss.backward()
        >>> features.grad.shape
        torch.Size([2, 16, 8, 8])
    """
    given = Maps(features, labels, key_features, key_labels, eligible, key_eligible, scores)
    return contrast_maps(
        given,
        remembered(SampleSpec, per_class, num_classes, ignore_index, strategy, backend, validate),
        (seed, key_seed),
        remembered(ContrastSpec, temperature, denominator, normalize, reduction, backend, validate),
        Parts(head, key_head, queue, Ranks.of(group)),
    )  # fmt: skip


class Maps(NamedTuple):
    """Arguments of `pixel_contrast` that are maps; shapes and meaning stand there."""

    features: Tensor
    labels: Tensor
    key_features: Tensor | None
    key_labels: Tensor | None
    eligible: Tensor | None
    key_eligible: Tensor | None
    scores: Tensor | None

    def check(self, parts: Parts, options: Options) -> None:
        """Refuse feature maps that are none, or that do not go together."""
        spec.check_map("features", self.features)
        for name, value in options.tensors.items():
            spec.check_device(name, value, self.features, "features")
        if self.key_features is not None:
            if parts.key_head is None:
                spec.check_like_map("key_features", self.key_features, self.features)
            else:  # width and dtype are what the two heads make of them
                spec.check_map("key_features", self.key_features)
                spec.check_device("key_features", self.key_features, self.features, "features")
            return
        if self.key_labels is not None or self.key_eligible is not None:
            raise ValueError("key_labels and key_eligible go with key_features; pass key_features as well")
        if parts.key_head is not None:
            raise ValueError("key_head goes with key_features; without them head makes the keys; pass key_features")


class Parts(NamedTuple):
    """Modules that a call may use, and the processes that share it."""

    head: nn.Module | None = None
    key_head: nn.Module | None = None
    queue: ClassQueue | None = None
    ranks: Ranks | None = None

    def check(self, num_classes: int) -> None:
        """Refuse what is no such module, or not made for these classes."""
        spec.check_head("head", self.head)
        spec.check_head("key_head", self.key_head)
        if self.key_head is not None and self.head is None:
            raise ValueError("key_head goes with head; pass head as well")
        if self.queue is None:
            return
        if not isinstance(self.queue, ClassQueue):
            raise TypeError(f"queue must be a ClassQueue; got {type(self.queue).__name__}")
        if self.queue.num_classes != num_classes:
            raise ValueError(
                f"queue must hold num_classes={num_classes} classes; it was made for {self.queue.num_classes}"
            )


def contrast_maps(
    given: Maps,
    sampling: SampleSpec,
    seeds: tuple[int | Tensor, int | Tensor | None],  # of the anchors' pixels, of the keys'
    options: ContrastSpec,
    parts: Parts,
) -> Tensor:
    """`pixel_contrast` with its options packed."""
    few = _few(given, sampling, seeds, options) if parts == Parts() else None
    if few is not None:
        return few
    if parts.ranks is not None:
        return _joined_maps(given, sampling, seeds, options, parts, parts.ranks)
    return _contrast_maps(given, sampling, seeds, options, parts)


def _contrast_maps(
    given: Maps, sampling: SampleSpec, seeds: tuple[int | Tensor, int | Tensor | None], options: ContrastSpec,
    parts: Parts,
) -> Tensor:  # fmt: skip
    anchors, keys, pairs, places = draw_sides(given, sampling, seeds, options, parts)
    if parts.queue is not None:
        newest = Shard(keys, pairs)
        past, takes = recalled(parts.queue, anchors, pairs)
        loss = contrast_shards(anchors, [newest, past], options, ordered=True).loss
        if takes:
            enqueue(parts.queue, anchors, newest)
        return loss
    few = None
    if places.anchors is None:
        rows = ContrastInput(anchors, keys, pairs.anchor_labels, None if keys is None else pairs.key_labels)
        few = small.info_nce(rows, options, lambda: rows.check(options))
    return contrast_sources(anchors, keys, pairs, options, places=places, ordered=True) if few is None else few


@between_graphs
def _joined_maps(
    given: Maps, sampling: SampleSpec, seeds: tuple[int | Tensor, int | Tensor | None], options: ContrastSpec,
    parts: Parts, ranks: Ranks,
) -> Tensor:  # fmt: skip
    with ranks.refusing_together(given.features):
        anchors, keys, pairs, places = draw_sides(given, sampling, seeds, options, parts)
        newest, takes = Shard(keys, pairs), False
        shards = [newest]
        if parts.queue is not None:
            past, takes = recalled(parts.queue, anchors, pairs, ranks)
            shards.append(past)
    loss = contrast_joined(anchors, shards, options, ranks, places=places, ordered=True, fills=takes)
    if parts.queue is not None and takes:
        enqueue(parts.queue, anchors, newest, ranks)
    return loss


class Drawn(NamedTuple):
    """The two sides of a loss as they are compared: rows, or maps and the places in them."""

    anchors: Tensor  # [N, P], or [B, D, *spatial]
    keys: Tensor | None  # None: the anchors
    pairs: Pairs
    places: Places


def draw_sides(
    given: Maps, sampling: SampleSpec, seeds: tuple[int | Tensor, int | Tensor | None], options: Options, parts: Parts
) -> Drawn:
    """Check a call of a loss on maps, draw the pixels of both sides and project their rows."""
    _check(given, sampling, seeds, options, parts)
    features, key_features = given.features, given.key_features
    (seed, key_seed), stream = seeds, 0 if parts.ranks is None else parts.ranks.stream
    anchor = _draw(features, given.labels, given.eligible, given.scores, sampling, seed, stream)
    key = anchor
    if key_features is not None:
        key_labels, eligible = _of_keys(given)
        uniform = replace(sampling, strategy="uniform") if sampling.strategy == "hard" else sampling
        again = (seed, KEY_DRAW ^ stream) if key_seed is None else (key_seed, stream)
        key = _draw(key_features, key_labels, eligible, None, uniform, *again)
    pairs = Pairs(anchor.label, key.label, None, None, None, 0, key.label.shape[0])
    if parts.head is None and parts.queue is None:
        return Drawn(features, key_features, pairs, Places(anchor.index, None if key_features is None else key.index))
    return Drawn(*_project(given, anchor.index, key.index, options.backend, parts), pairs, Places())


def _few(
    given: Maps, sampling: SampleSpec, seeds: tuple[int | Tensor, int | Tensor | None], options: ContrastSpec
) -> Tensor | None:
    """The loss where few pixels are drawn on a CPU; None where the call goes the long way, which checks it."""
    seed, key_seed = seeds
    anchors = Pixels(given.features, given.labels, given.eligible, given.scores, seed)

    def check() -> None:
        _check(given, sampling, seeds, options, Parts())

    if given.key_features is None:
        alone = given.key_labels is None and given.key_eligible is None and key_seed is None
        return small.pixel_contrast(anchors, None, sampling, options, check) if alone else None
    labels, eligible = _of_keys(given)
    again = (seed, KEY_DRAW) if key_seed is None else (key_seed, 0)
    keys = Pixels(given.key_features, labels, eligible, None, *again)
    return small.pixel_contrast(anchors, keys, sampling, options, check)


def _check(
    given: Maps, sampling: SampleSpec, seeds: tuple[int | Tensor, int | Tensor | None], options: Options, parts: Parts
) -> None:
    """Refuse, by name, what breaks a rule; values are looked at only under `validate`, since that synchronises."""
    parts.check(sampling.num_classes)
    given.check(parts, options)
    features, key_features = given.features, given.key_features
    seed, key_seed = seeds
    if key_seed is not None and key_features is None:
        raise ValueError("key_seed goes with key_features; pass key_features as well")
    if parts.queue is not None:
        spec.check_device("queue", parts.queue.rows, features, "features")
        if parts.head is None:
            _check_width(parts.queue, features.shape[1], "features")
    _check_drawn("features", features, "labels", given.labels, given.eligible, given.scores, sampling)
    check_seed("seed", seed, given.labels)
    if key_features is not None:
        key_labels, eligible = _of_keys(given)
        _check_drawn("key_features", key_features, "key_labels", key_labels, eligible, None, sampling)
        if key_seed is not None:
            check_seed("key_seed", key_seed, given.labels)


def _of_keys(given: Maps) -> tuple[Tensor, Tensor | None]:
    """Labels and eligibility of the key map: its own, or those of the features."""
    if given.key_labels is not None:
        return given.key_labels, given.key_eligible
    return given.labels, given.eligible if given.key_eligible is None else given.key_eligible


def _project(given: Maps, index: Tensor, key_index: Tensor, backend: str, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """Rows of the anchors [N, P] and of the keys [M, P] in one dtype, through the heads; None: the anchors are both."""
    anchors = _rows(given.features, index, backend)
    if parts.head is not None:
        anchors = _headed("head", parts.head, anchors)
    if given.key_features is None:
        return anchors, None
    keys = _rows(given.key_features, key_index, backend)
    if parts.key_head is not None:
        keys = _headed("key_head", parts.key_head, keys)
    elif parts.head is not None:
        with torch.no_grad():
            keys = _headed("head", parts.head, keys)
    if keys.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"key_head(rows) must be as wide as head(rows), {anchors.shape[1]}; got {keys.shape[1]}; give both one P"
        )
    wide = torch.promote_types(anchors.dtype, keys.dtype)
    return anchors.to(wide), keys.to(wide)


def _rows(features: Tensor, index: Tensor, backend: str) -> Tensor:
    """`gather_pixels` of a checked map at pixels that were just drawn, each once."""
    rows: Tensor = apply(Gather, features, index, False, features.dtype, True, backend)
    return rows


def _headed(name: str, head: nn.Module, rows: Tensor) -> Tensor:
    found: Tensor = head(rows)
    spec.check_projection(name, found, rows)
    return found


def recalled(queue: ClassQueue, anchors: Tensor, pairs: Pairs, ranks: Ranks | None = None) -> tuple[Shard, bool]:
    """The queue's rows as keys of these anchors, and whether the queue is to take this call's."""
    _check_width(queue, anchors.shape[1], "head(rows)")
    if ranks is None:  # else the rows of rank 0 are those of every rank
        queue.warn_if_overwritten()
    (past, past_labels), first, learns = recall(queue, queue.keys, queue.key_labels)
    # The rows are read where they lie; the labels are copied, for they change before the backward pass reads them.
    own = Pairs(pairs.anchor_labels, past_labels.clone(), None, None, None, 0, past_labels.shape[0])
    return Shard(past.to(anchors.dtype), own), first and learns and queue.training


def enqueue(queue: ClassQueue, anchors: Tensor, newest: Shard, ranks: Ranks | None = None) -> None:
    """Give the queue the keys of this call."""
    keys = anchors if newest.keys is None else newest.keys
    queue.enqueue(keys.detach(), newest.pairs.key_labels, group=None if ranks is None else ranks.group)


def _check_width(queue: ClassQueue, width: int, of: str) -> None:
    if queue.dim != width:
        raise ValueError(
            f"queue must be as wide as {of}, {width}; it was made with dim={queue.dim}; make it with dim={width}"
        )


def _check_drawn(
    map_name: str,
    features: Tensor,  # [B, D, *spatial], checked
    labels_name: str,
    labels: Tensor,  # [B, *any]
    eligible: Tensor | None,
    scores: Tensor | None,
    options: SampleSpec,
) -> None:
    spec.check_label_map(labels_name, labels)
    if features.shape[1] < 1:
        raise ValueError(f"{map_name} must have at least one channel; got shape {tuple(features.shape)}")
    if labels.ndim != features.ndim - 1 or labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"{labels_name} must have the batch and the number of spatial axes of {map_name}, "
            f"{tuple(features.shape)}; got {tuple(labels.shape)}; drop a channel axis, as with labels[:, 0]"
        )
    spec.check_device(labels_name, labels, features, map_name)
    if labels.numel() == 0 < features.numel():
        raise ValueError(f"{labels_name} must not be empty where {map_name} is not; got shape {tuple(labels.shape)}")
    spec.check_drawn_from(labels, eligible, scores)
    if options.validate:
        spec.check_classes(labels_name, labels, eligible, options)


def _draw(
    features: Tensor,  # [B, D, *spatial]
    labels: Tensor,  # [B, *any]
    eligible: Tensor | None,
    scores: Tensor | None,
    options: SampleSpec,
    seed: int | Tensor,
    stream: int = 0,
) -> PixelSample:
    size = features.shape[2:]
    return draw_pixels(
        nearest(labels, size), options, eligible=None if eligible is None else nearest(eligible, size),
        scores=None if scores is None else nearest(scores, size), seed=seed, stream=stream,
    )  # fmt: skip
