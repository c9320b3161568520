# SPDX-License-Identifier: Apache-2.0
"""`PixelContrastLoss` of ContrastiveSeg, within a batch and against its memory of regions and pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secl_ops import spec
from secl_ops.compat.common import check_base
from secl_ops.functional import info_nce
from secl_ops.pixels import class_means, gather_pixels, sample_pixels
from secl_ops.queue import ClassQueue
from secl_ops.replay import recall
from secl_ops.spec import ContrastSpec

BITS = 30  # of chance beside a class and its kind in one int64


class PixelContrastLoss(nn.Module):
    """`PixelContrastLoss` of ContrastiveSeg: anchors half hard and half easy, drawn on the device in fixed shapes.

    A class of an image with more than `max_views` pixels gives n = min(max_samples // number of these, max_views)
    anchors: n // 2 that are predicted wrongly and the rest that are not, more of one kind where the other has fewer.
    With s_ij = a_i . k_j / temperature over rows as they are (normalise the map before, as there):

        L_i = temperature / base_temperature * mean over P(i) of softplus(logsumexp over Neg(i) of s_in - s_ip)

    averaged over the anchors that have a positive (one without is NaN there). The keys are the anchors, or all rows of
    a memory and no anchor. Pixels come from torch's generator. Source: Wang et al., ICCV 2021, arXiv:2101.11939.

    Args:
        temperature: Divides the similarity.
        base_temperature: See the formula.
        max_samples: Anchors of a batch, at most.
        max_views: Anchors of a class and image, at most.
        ignore_label: Label that is never drawn; neither is one below 0.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.contrastiveseg import PixelContrastLoss
        >>> feats = torch.nn.functional.normalize(torch.randn(2, 16, 8, 8), dim=1).requires_grad_()
        >>> labels, predict = torch.randint(0, 3, (2, 32, 32)), torch.randint(0, 3, (2, 8, 8))
        >>> PixelContrastLoss(max_views=10)(feats, labels, predict).backward()
    """

    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        max_samples: int = 1024,
        max_views: int = 100,
        ignore_label: int = -1,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        check_base(base_temperature)
        for name, value in (("max_samples", max_samples), ("max_views", max_views)):
            spec.check_positive_int(name, value)
        _check_ignored(ignore_label)
        self.temperature, self.base_temperature, self.backend = temperature, base_temperature, backend
        self.max_samples, self.max_views, self.ignore_label = max_samples, max_views, ignore_label

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        names = ("temperature", "base_temperature", "max_samples", "max_views", "ignore_label")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self,
        feats: Tensor,  # [B, D, *spatial]
        labels: Tensor,  # [B, *any]
        predict: Tensor,  # [B, *spatial]
        queue: RegionPixelQueue | None = None,
    ) -> Tensor:
        """The loss of one batch; labels of another size are brought to the map's by nearest neighbour, as there."""
        spec.check_map("feats", feats)
        labels = _of_map(labels, feats)
        _check_predicted(predict, feats)
        index, classes = _draw_anchors(labels, predict, self.max_samples, self.max_views, self.ignore_label)
        anchors = gather_pixels(feats, index, unique=True, backend=self.backend)
        keys, key_labels = None, None
        if queue is not None:
            if not isinstance(queue, RegionPixelQueue):
                raise TypeError(f"queue must be a RegionPixelQueue; got {type(queue).__name__}; fill one by enqueue")
            keys, key_labels = queue.read(anchors)
        loss = info_nce(
            anchors, keys, anchor_labels=classes, key_labels=key_labels, temperature=self.temperature,
            normalize=False, backend=self.backend,
        )  # fmt: skip
        return loss * (self.temperature / self.base_temperature)


class RegionPixelQueue(nn.Module):
    """The memory of ContrastiveSeg: means of regions and single pixels of each class, without its known faults.

    Of every class and image the mean row goes to one `ClassQueue`, `pixels` rows that chance draws among the pixels of
    that class (there: of the image) to another, all normalised. An empty place is no key (there: a zero row of
    class 0), and class 0 is one like the others (there: left out).

    Args:
        num_classes: C; labels outside 0 .. C - 1 are left out.
        size: Rows kept of each class, in either queue.
        dim: Width D of a row.
        pixels: Rows that a class of an image gives, at most.
        ignore_label: Label that is never enqueued.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.contrastiveseg import PixelContrastLoss, RegionPixelQueue
        >>> feats = torch.nn.functional.normalize(torch.randn(2, 16, 8, 8), dim=1).requires_grad_()
        >>> labels, predict = torch.randint(0, 3, (2, 32, 32)), torch.randint(0, 3, (2, 8, 8))
        >>> queue = RegionPixelQueue(num_classes=3, size=50, dim=16)
        >>> queue.enqueue(feats, labels)
        >>> PixelContrastLoss(max_views=10)(feats, labels, predict, queue).backward()
    """

    def __init__(self, num_classes: int, size: int, dim: int, pixels: int = 10, ignore_label: int = -1) -> None:
        super().__init__()
        spec.check_positive_int("pixels", pixels)
        _check_ignored(ignore_label)
        self.regions, self.singles = (ClassQueue(num_classes, size, dim) for _ in range(2))
        self.num_classes, self.pixels, self.ignore_label = num_classes, pixels, ignore_label

    def read(self, anchors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows and labels of both queues, in the dtype of the anchors."""
        rows, labels = [], []
        for queue in (self.regions, self.singles):
            if queue.dim != anchors.shape[1]:
                raise ValueError(
                    f"queue must be as wide as feats, {anchors.shape[1]}; it was made with dim={queue.dim}"
                )
            (keys, key_labels), _, _ = recall(queue, queue.keys, queue.key_labels)
            rows.append(keys.to(anchors.dtype))
            labels.append(key_labels)
        return rows, labels

    @torch.no_grad()
    def enqueue(self, feats: Tensor, labels: Tensor) -> None:
        """Take the regions and some pixels of a map [B, D, *spatial] with labels [B, *any], after the loss.

        Raises:
            TypeError, ValueError: An argument breaks its rule; the message names it.
        """
        spec.check_map("feats", feats)
        labels = _of_map(labels, feats)
        known = (labels != self.ignore_label) & (labels >= 0) & (labels < self.num_classes)
        images = zip(feats.flatten(2).float(), torch.where(known, labels, -1).flatten(1), strict=True)
        regions = [class_means(image.T, own, self.num_classes) for image, own in images]
        if regions:
            means, count = map(torch.cat, zip(*regions, strict=True))
            classes = torch.arange(self.num_classes, device=labels.device).repeat(len(regions))
            self.regions.enqueue(nn.functional.normalize(means, dim=1), torch.where(count > 0, classes, -1))
        sample = sample_pixels(
            labels, self.pixels, num_classes=self.num_classes, ignore_index=self.ignore_label, eligible=known,
            seed=torch.randint(2**62, (1,), device=labels.device),
        )  # fmt: skip
        self.singles.enqueue(gather_pixels(feats, sample.index, normalize=True), sample.label)


def _draw_anchors(
    labels: Tensor,  # [B, *spatial]
    predict: Tensor,  # [B, *spatial]
    max_samples: int,
    max_views: int,
    ignore_label: int,
) -> tuple[Tensor, Tensor]:
    """Number in the batch and class of each anchor [max_samples], image by image; -1 where there are fewer.

    Example:
        >>> import torch
        >>> index, classes = _draw_anchors(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 1, 0, 1]]), 3, 2, -1)
        >>> index[1:].tolist(), classes.tolist()
        ([1, -1], [0, 0, -1])
    """
    images, pixels = labels.shape[0], math.prod(labels.shape[1:])
    if images * pixels == 0:
        nothing = torch.full((max_samples,), -1, device=labels.device)
        return nothing, nothing
    kinds = (labels != predict).flatten(1).long()
    chance = torch.randint(2**BITS, kinds.shape, device=labels.device)
    # By class, the easy pixels first, and by chance among them: what is below 0 is not drawn, whatever it is.
    code, order = ((2 * labels.flatten(1).long().clamp(min=-1) + kinds) * 2**BITS + chance).sort(dim=1)
    code = code >> BITS
    hard, one = code % 2, code - code % 2
    first, middle, last = (torch.searchsorted(code, one + kind) for kind in range(3))  # where its class begins, ...
    place = torch.arange(pixels, device=labels.device).expand_as(code)
    taken = (last - first > max_views) & (one >= 0) & (one != 2 * ignore_label)
    groups = (taken & (place == first)).sum()
    views = (max_samples // groups.clamp(min=1)).clamp(max=max_views)
    kept_hard = torch.minimum(torch.maximum(views // 2, views - (middle - first)), last - middle)
    chosen = taken & torch.where(hard == 1, place - middle < kept_hard, place - first < views - kept_hard)
    nth = torch.searchsorted(chosen.flatten().cumsum(0), torch.arange(1, max_samples + 1, device=labels.device))
    there = nth < chosen.numel()
    nth = nth.clamp(max=chosen.numel() - 1)
    number = nth // pixels * pixels + order.flatten()[nth]
    return torch.where(there, number, -1), torch.where(there, (one // 2).flatten()[nth], -1)


def _check_ignored(ignore_label: object) -> None:
    if isinstance(ignore_label, bool) or not isinstance(ignore_label, int):
        raise TypeError(f"ignore_label must be an int; got {type(ignore_label).__name__}")


def _check_predicted(predict: Tensor, feats: Tensor) -> None:
    spec.check_tensor("predict", predict)
    if predict.is_floating_point():
        raise TypeError(f"predict must hold the predicted class of each pixel; got {predict.dtype}; take argmax(1)")
    expected = (feats.shape[0], *feats.shape[2:])
    if predict.shape != expected:
        raise ValueError(
            f"predict must have shape {expected}, one class per pixel of feats; got {tuple(predict.shape)}"
        )
    spec.check_device("predict", predict, feats, "feats")


def _of_map(labels: Tensor, feats: Tensor) -> Tensor:
    """Labels [B, *spatial] at the map's size, each the one at the corner of its cell, as `interpolate` takes it."""
    spec.check_label_map("labels", labels)
    if labels.ndim != feats.ndim - 1 or labels.shape[0] != feats.shape[0]:
        raise ValueError(
            f"labels must have the batch and the number of spatial axes of feats, {tuple(feats.shape)}; got "
            f"{tuple(labels.shape)}"
        )
    spec.check_device("labels", labels, feats, "feats")
    if feats.numel() and not labels.numel():
        raise ValueError(f"labels must have a pixel for each of feats; got shape {tuple(labels.shape)}")
    for axis, new in enumerate(feats.shape[2:], start=1):
        old = labels.shape[axis]
        if old != new:  # whose corner it is, is rounded there
            place = torch.arange(old, dtype=torch.float32, device=labels.device)
            place = nn.functional.interpolate(place[None, None], size=new, mode="nearest").long().flatten()
            labels = labels.index_select(axis, place)
    return labels
