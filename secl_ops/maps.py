# SPDX-License-Identifier: Apache-2.0
"""The drop-in: from feature maps and label maps to one loss, as a function and as a module."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from secl_ops import spec
from secl_ops.autograd import Places
from secl_ops.functional import contrast_sources
from secl_ops.inputs import ContrastInput
from secl_ops.pixels import PixelSample, draw_pixels, gather_pixels
from secl_ops.queue import ClassQueue
from secl_ops.shards import contrast_shards
from secl_ops.spec import ContrastSpec, Pairs, SampleSpec

SEED_STRIDE = 0x9E3779B97F4A7C15
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
    ignore_index: int = -1,
    eligible: Tensor | None = None,  # shape of labels, bool
    key_eligible: Tensor | None = None,  # shape of key_labels, bool
    scores: Tensor | None = None,  # shape of labels, floating
    strategy: str = "uniform",
    queue: ClassQueue | None = None,
    temperature: float | Tensor = 0.1,
    denominator: str = "negatives",
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Sample pixels by label, gather their features, and contrast them: `info_nce` on feature maps.

    The loss is that of `info_nce` over `sample_pixels(labels)`; label maps of another resolution are brought to the
    feature map's by nearest neighbour. With a teacher's map the keys are its pixels (drawn apart, a gradient only if it
    asks for one); without, the anchors contrast themselves. A queue adds its rows to the keys and then takes this
    call's.

    Args:
        features: The student's map [B, D, *spatial].
        labels: Class of every pixel, or pseudo-labels, at any resolution.
        key_features: The teacher's map.
        key_labels: Its labels; None: `labels`.
        per_class: Pixels of each class and image, at most.
        num_classes: Number of classes; given, since reading it off the data would wait for the device.
        seed: As in `sample_pixels`.
        ignore_index: Label that is never drawn.
        eligible: Where False a pixel is not drawn as an anchor, for example below a confidence.
        key_eligible: The same for keys; None: `eligible` where `key_labels` is None.
        scores: For strategy "hard".
        strategy: "uniform", "stratified" or "hard" (keys of a teacher are then drawn uniformly).
        queue: Rows of earlier calls.
        temperature: As in `info_nce`, and so are denominator, normalize, reduction, backend and validate.
        denominator: See `info_nce`.
        normalize: See `info_nce`.
        reduction: See `info_nce`; "none" gives one loss per drawn place.
        backend: See `info_nce`.
        validate: See `info_nce`.

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
    contrast = ContrastSpec(temperature, denominator, normalize, reduction, backend, validate)
    options = SampleSpec(per_class, num_classes, ignore_index, strategy, backend)
    spec.check_map("features", features)
    _check_queue(queue, num_classes, features)
    if key_features is None and (key_labels is not None or key_eligible is not None):
        raise ValueError("key_labels and key_eligible go with key_features; pass key_features as well")
    anchor = _draw("features", features, "labels", labels, eligible, scores, options, seed)
    key = anchor
    if key_features is not None:
        spec.check_like_map("key_features", key_features, features)
        if key_labels is None:
            key_labels, key_eligible = labels, eligible if key_eligible is None else key_eligible
        uniform = replace(options, strategy="uniform") if strategy == "hard" else options
        key = _draw("key_features", key_features, "key_labels", key_labels, key_eligible, None, uniform, seed, KEY_DRAW)
    if queue is not None:
        return _with_queue(features, anchor, key_features, key, queue, contrast)
    if isinstance(temperature, Tensor):
        spec.check_device("temperature", temperature, features, "features")
    count = key.label.shape[0]
    pairs = Pairs(anchor.label, key.label, None, None, None, 0, count)
    places = Places(anchor.index, None if key_features is None else key.index)
    return contrast_sources(features, key_features, pairs, contrast, places=places, ordered=True)


def _with_queue(
    features: Tensor,  # [B, D, *spatial]
    anchor: PixelSample,
    key_features: Tensor | None,  # [B', D, *spatial']
    key: PixelSample,
    queue: ClassQueue,
    options: ContrastSpec,
) -> Tensor:
    """The loss against this call's keys and the queue's, which then takes this call's."""
    gather = partial(gather_pixels, unique=True, backend=options.backend)
    anchors = gather(features, anchor.index)
    exclude = torch.arange(anchors.shape[0], device=anchors.device) if key_features is None else None
    newest = anchors if key_features is None else gather(key_features, key.index)
    given = ContrastInput(  # the queue is read where it lies
        anchors, [newest, queue.keys.to(newest.dtype)], anchor.label, [key.label, queue.key_labels], exclude=exclude
    )
    given.check(options)
    loss = contrast_shards(anchors, given.arrange(), options, ordered=True).loss
    queue.enqueue(newest.detach(), key.label)
    return loss


def _draw(
    map_name: str,
    features: Tensor,  # [B, D, *spatial]
    labels_name: str,
    labels: Tensor,  # [B, *any]
    eligible: Tensor | None,
    scores: Tensor | None,
    options: SampleSpec,
    seed: int | Tensor,
    stream: int = 0,
) -> PixelSample:
    spec.check_map(map_name, features)
    spec.check_label_map(labels_name, labels)
    if features.shape[1] < 1:
        raise ValueError(f"{map_name} must have at least one channel; got shape {tuple(features.shape)}")
    if labels.ndim != features.ndim - 1 or labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"{labels_name} must have the batch and the number of spatial axes of {map_name}, "
            f"{tuple(features.shape)}; got {tuple(labels.shape)}"
        )
    spec.check_device(labels_name, labels, features, map_name)
    if labels.numel() == 0 < features.numel():
        raise ValueError(f"{labels_name} must not be empty where {map_name} is not; got shape {tuple(labels.shape)}")
    if eligible is not None:
        spec.check_like_labels("eligible", eligible, labels, torch.bool)
    if scores is not None:
        spec.check_like_labels("scores", scores, labels, None)
    size = features.shape[2:]
    return draw_pixels(
        _nearest(labels, size), options, eligible=None if eligible is None else _nearest(eligible, size),
        scores=None if scores is None else _nearest(scores, size), seed=seed, stream=stream,
    )  # fmt: skip


def _check_queue(queue: object, num_classes: int, features: Tensor | None = None) -> None:
    if queue is None:
        return
    if not isinstance(queue, ClassQueue):
        raise TypeError(f"queue must be a ClassQueue; got {type(queue).__name__}")
    if queue.num_classes != num_classes:
        raise ValueError(f"queue must hold num_classes={num_classes} classes; it was made for {queue.num_classes}")
    if features is not None:
        if queue.dim != features.shape[1]:
            raise ValueError(
                f"queue must be as wide as features, {features.shape[1]}; it was made with dim={queue.dim}"
            )
        spec.check_device("queue", queue.rows, features, "features")


def _nearest(values: Tensor, size: torch.Size) -> Tensor:
    """The value at the centre of each cell of the new grid [B, *size]; integers stay exact."""
    for axis, new in enumerate(size, start=1):
        old = values.shape[axis]
        if old != new:
            centre = (2 * torch.arange(new, device=values.device) + 1) * old // (2 * new)
            values = values.index_select(axis, centre)
    return values


class PixelContrastLoss(nn.Module):
    """`pixel_contrast` with its options kept, its draws counted on the device, and optionally a queue.

    Every forward pass draws fresh pixels, also when it is replayed from a CUDA graph; the counter is in `state_dict`,
    so that a resumed run goes on with the sequence.

    Args:
        per_class: See `pixel_contrast`, and so are the other options.
        num_classes: Number of classes.
        ignore_index: Label that is never drawn; many data sets use 255.
        strategy: "uniform", "stratified" or "hard".
        queue: A `ClassQueue` whose rows are keys as well.
        temperature: A float; or a `nn.Parameter` of one element, which then learns with the network.
        denominator: "negatives" or "all".
        normalize: Divide each row by its norm.
        reduction: "mean", "sum" or "none".
        backend: "auto", "reference", "native" or "triton".
        validate: Also check values, which waits for the device.
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

    draws: Tensor  # [1] int64, the seed of the next draw

    def __init__(
        self,
        per_class: int,
        num_classes: int,
        *,
        ignore_index: int = -1,
        strategy: str = "uniform",
        queue: ClassQueue | None = None,
        temperature: float | Tensor = 0.1,
        denominator: str = "negatives",
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        validate: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, denominator, normalize, reduction, backend, validate)
        SampleSpec(per_class, num_classes, ignore_index, strategy, backend)
        _check_queue(queue, num_classes)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int; got {type(seed).__name__}")
        self.per_class, self.num_classes, self.ignore_index = per_class, num_classes, ignore_index
        self.strategy, self.denominator, self.normalize = strategy, denominator, normalize
        self.reduction, self.backend, self.queue = reduction, backend, queue
        self.temperature, self.validate = temperature, validate
        # An odd factor keeps different seeds apart, and far from each other's sequences.
        first = (seed * SEED_STRIDE + 2**63) % 2**64 - 2**63
        self.register_buffer("draws", torch.tensor([first], dtype=torch.int64))

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        names = ("per_class", "num_classes", "ignore_index", "strategy", "temperature", "denominator", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

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
        loss = pixel_contrast(
            features, labels, key_features, key_labels, per_class=self.per_class, num_classes=self.num_classes,
            seed=self.draws, ignore_index=self.ignore_index, eligible=eligible, key_eligible=key_eligible,
            scores=scores, strategy=self.strategy, queue=self.queue, temperature=self.temperature,
            denominator=self.denominator, normalize=self.normalize, reduction=self.reduction, backend=self.backend,
            validate=self.validate,
        )  # fmt: skip
        self.draws += 1
        return loss
