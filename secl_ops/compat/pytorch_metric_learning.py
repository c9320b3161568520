# SPDX-License-Identifier: Apache-2.0
"""`SupConLoss` and `NTXentLoss` of pytorch-metric-learning, inside its `CrossBatchMemory` or one without pair lists."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secl_ops import spec
from secl_ops.compat.common import alike, raised
from secl_ops.functional import info_nce
from secl_ops.replay import recall
from secl_ops.spec import ContrastSpec

REDUCERS = {
    "AvgNonZeroReducer": "avg_non_zero", "MeanReducer": "mean", "SumReducer": "sum", "DoNothingReducer": "none",
}  # fmt: skip
DISTANCES = ("CosineSimilarity", "DotProductSimilarity")


class _Arranged(NamedTuple):
    """What a call compares."""

    anchors: Tensor  # [N, D]
    labels: Tensor  # [N]
    keys: Tensor | None  # [M, D]; None: the anchors, each blind to itself
    key_labels: Tensor | None  # [M]
    exclude: Tensor | None  # [N]
    contrasted: Tensor  # [] bool: there is a negative pair
    rows: int | Tensor  # anchors, without those that are ignored

    def positives(self) -> Tensor:
        """Positives of each anchor [N]; a key that it is blind to is always one of its label."""
        if self.key_labels is None:
            return alike(self.labels, self.labels)[0] - 1
        count, _ = alike(self.labels, self.key_labels)
        return count if self.exclude is None else count - (self.exclude >= 0).long()


class _PairLoss(nn.Module):
    """Options of both losses, and what their arguments mean."""

    denominator: str
    reductions: tuple[str, ...]

    def __init__(
        self, temperature: float | Tensor, distance: object | None, reducer: object | None, reduction: str, backend: str
    ) -> None:
        super().__init__()
        ContrastSpec(temperature, backend=backend)
        self.temperature, self.backend = temperature, backend
        self.normalize = _normalizes(distance)
        self.reduction = reduction if reducer is None else _reduction(reducer)
        spec.check_choice("reduction", self.reduction, self.reductions)

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return f"temperature={self.temperature!r}, reduction={self.reduction!r}"

    def forward(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,  # [M, D]
        ref_labels: Tensor | None = None,  # [M]
    ) -> Tensor:
        """The loss of one batch; `indices_tuple` is what `CrossBatchMemory` passes, and waits for the device."""
        return self.reduced(_arrange(embeddings, labels, indices_tuple, ref_emb, ref_labels))

    @abstractmethod
    def reduced(self, given: _Arranged) -> Tensor:
        """The loss of what is compared."""

    def _loss(self, given: _Arranged, reduction: str, weights: Tensor | None = None) -> Tensor:
        loss = info_nce(
            given.anchors, given.keys, anchor_labels=given.labels, key_labels=given.key_labels, exclude=given.exclude,
            temperature=self.temperature, denominator=self.denominator, normalize=self.normalize, weights=weights,
            reduction=reduction, backend=self.backend,
        )  # fmt: skip
        return torch.where(given.contrasted, loss, 0.0)


class SupConLoss(_PairLoss):
    """`pytorch_metric_learning.losses.SupConLoss` of Khosla et al. (2020), without a matrix of all pairs.

    With cosine s_ij = a_i . k_j / temperature and positives P(i), negatives Neg(i) of anchor i:

        L_i = logsumexp over P(i) and Neg(i) of s_ij - mean over P(i) of s_ip

    averaged over the anchors whose loss is above 0; 0 where no pair is negative. Source: arXiv:2004.11362. Unlike there
    a NaN is not dropped from the average, and one positive beside one negative pair gives a loss.

    Args:
        temperature: Divides the similarity.
        distance: None, or that package's `CosineSimilarity` or `DotProductSimilarity`.
        reducer: None, or that package's reducer of the same name as one of the reductions.
        reduction: "avg_non_zero" (`AvgNonZeroReducer`, the default there too), "mean" over all anchors (`MeanReducer`),
            "sum" or "none", the loss of each anchor [N].
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.pytorch_metric_learning import SupConLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
        >>> loss = SupConLoss(temperature=0.5)(embeddings, torch.tensor([0, 0, 1, 1]))
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.8707
    """

    denominator = "all"
    reductions = ("avg_non_zero", "mean", "sum", "none")

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        distance: object | None = None,
        reducer: object | None = None,
        *,
        reduction: str = "avg_non_zero",
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, distance, reducer, reduction, backend)

    def reduced(self, given: _Arranged) -> Tensor:
        """The loss of what is compared."""
        if self.reduction in ("mean", "sum"):
            total = self._loss(given, "sum")
            return total / given.rows if self.reduction == "mean" else total
        losses = self._loss(given, "none")
        if self.reduction == "none":
            return losses
        kept = ~(losses <= 0)
        return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)


class NTXentLoss(_PairLoss):
    """`pytorch_metric_learning.losses.NTXentLoss`, the NT-Xent of SimCLR for labels, without a matrix of all pairs.

    With cosine s_ij = a_i . k_j / temperature, each positive pair against the negatives of its anchor, Neg(i):

        L_ip = -log(exp s_ip / (exp s_ip + sum over Neg(i) of exp s_in))

    averaged over the positive pairs: an anchor of more positives weighs more. Source: Chen et al. 2020,
    arXiv:2002.05709. A loss above 87 does not saturate, as it does there in fp32.

    Args:
        temperature: Divides the similarity.
        distance: None, or that package's `CosineSimilarity` or `DotProductSimilarity`.
        reducer: None, or that package's `MeanReducer` or `SumReducer`.
        reduction: "mean" over the positive pairs (`MeanReducer`, the default there too) or "sum"; the loss of each pair
            never exists.
        backend: As in `info_nce`.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.pytorch_metric_learning import NTXentLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
        >>> loss = NTXentLoss(temperature=0.5)(embeddings, torch.tensor([0, 0, 1, 1]))
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.8707
    """

    denominator = "negatives"
    reductions = ("mean", "sum")

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        distance: object | None = None,
        reducer: object | None = None,
        *,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, distance, reducer, reduction, backend)

    def reduced(self, given: _Arranged) -> Tensor:
        """The loss of what is compared."""
        wide = torch.float64 if given.anchors.dtype == torch.float64 else torch.float32
        return self._loss(given, self.reduction, given.positives().to(wide))


class CrossBatchMemory(nn.Module):
    """`pytorch_metric_learning.losses.CrossBatchMemory` around one of these losses, without its lists of all pairs.

    The batch enters a ring of the last K rows, and each of its rows is compared with all rows of the ring but itself:
    L_i is that of the loss inside. The ring lies on the device in fixed shapes; its rows are in `state_dict`. Source:
    Wang et al., CVPR 2020, arXiv:1912.06798.

    Args:
        loss: A `SupConLoss` or `NTXentLoss` of this module.
        embedding_size: Width D of a row.
        memory_size: K.
        miner: None.

    Raises:
        TypeError, ValueError: An option or argument breaks its rule, or cannot be computed; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.pytorch_metric_learning import CrossBatchMemory, SupConLoss
        >>> criterion = CrossBatchMemory(SupConLoss(), embedding_size=8, memory_size=64)
        >>> for step in range(3):
        ...     loss = criterion(torch.randn(12, 8, requires_grad=True), torch.arange(12) % 3)
        >>> loss.backward()
    """

    rows: Tensor  # [K + 1, D]; the last takes what is not enqueued
    row_labels: Tensor  # [K + 1] int64
    written: Tensor  # [1] int64, rows so far

    def __init__(
        self, loss: SupConLoss | NTXentLoss, embedding_size: int, memory_size: int = 1024, miner: object | None = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, _PairLoss):
            raise TypeError(f"loss must be a SupConLoss or NTXentLoss of this module; got {type(loss).__name__}")
        for name, value in (("embedding_size", embedding_size), ("memory_size", memory_size)):
            spec.check_positive_int(name, value)
        _refuse_mining("miner", miner)
        self.loss, self.embedding_size, self.memory_size = loss, embedding_size, memory_size
        self.register_buffer("rows", torch.zeros(memory_size + 1, embedding_size))
        self.register_buffer("row_labels", torch.zeros(memory_size + 1, dtype=torch.int64))
        self.register_buffer("written", torch.zeros(1, dtype=torch.int64))

    def forward(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,  # [N] bool
    ) -> Tensor:
        """The loss of one batch; under a mask its rows alone enter the ring, and the others alone are anchors."""
        _refuse_mining("indices_tuple", indices_tuple)
        spec.check_rows("embeddings", embeddings)
        spec.check_tensor("labels", labels)
        labels = labels.to(embeddings.device)
        count = embeddings.shape[0]
        spec.check_integers("labels", labels, count, embeddings, "embeddings")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must be {self.embedding_size} wide; got {embeddings.shape[1]}")
        if count > self.memory_size:
            raise ValueError(f"embeddings must be at most memory_size={self.memory_size} rows; got {count}")
        taken = torch.ones(count, dtype=torch.bool, device=embeddings.device)
        if enqueue_mask is not None:
            spec.check_like_labels("enqueue_mask", enqueue_mask, labels, torch.bool)
            taken = enqueue_mask
        (rows, row_labels, written), first, _ = recall(self, self.rows, self.row_labels, self.written)
        slot = (written + taken.cumsum(0) - 1) % self.memory_size
        place = torch.where(taken, slot, self.memory_size)
        for ring, its_labels in ((rows, row_labels), (self.rows, self.row_labels))[: 2 if first else 1]:
            ring.index_copy_(0, place, embeddings.detach().to(ring.dtype).masked_fill(~taken[:, None], 0.0))
            its_labels.index_copy_(0, place, labels.long().masked_fill(~taken, 0))
        held = written + taken.sum()
        if first:
            self.written.copy_(held)
        known = torch.arange(self.memory_size, device=embeddings.device) < held
        some = labels[:1].long() if count else row_labels[:1]  # an empty place adds no class
        labels, key_labels, contrasted = raised(labels, torch.where(known, row_labels[:-1], some))
        key_labels, keys = torch.where(known, key_labels, -1), rows[:-1].to(embeddings.dtype)
        if enqueue_mask is None:
            given = _Arranged(embeddings, labels, keys, key_labels, slot, contrasted, max(1, count))
        else:
            anchors = (~taken).sum().clamp(min=1)
            labels = torch.where(taken, -1, labels)
            given = _Arranged(embeddings, labels, keys, key_labels, None, contrasted, anchors)
        return self.loss.reduced(given)

    def reset_queue(self) -> None:
        """Empty the ring."""
        self.written.zero_()


def _refuse_mining(name: str, value: object) -> None:
    if value is not None:
        raise ValueError(f"{name} must be None; got {type(value).__name__}; mined pairs cannot be taken: leave it out")


def _normalizes(distance: object | None) -> bool:
    """Whether a distance of that package divides the rows by their norm."""
    if distance is None:
        return True
    plain = getattr(distance, "p", 2) == 2 and getattr(distance, "power", 1) == 1
    if type(distance).__name__ not in DISTANCES or not plain:
        raise ValueError(
            f"distance must be None or {' or '.join(DISTANCES)} with p=2 and power=1; got {type(distance).__name__}; "
            "only products of rows are computed: leave it out"
        )
    return bool(getattr(distance, "normalize_embeddings", True))


def _reduction(reducer: object) -> str:
    """The reduction that a reducer of that package stands for."""
    found = REDUCERS.get(type(reducer).__name__)
    if found is None:
        raise ValueError(
            f"reducer must be None or one of {', '.join(REDUCERS)}; got {type(reducer).__name__}; take "
            'reduction="none" and reduce the losses yourself'
        )
    return found


def _arrange(
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: tuple[Tensor, ...] | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> _Arranged:
    """Checked arguments as `info_nce` takes them."""
    spec.check_rows("embeddings", embeddings)
    spec.check_together({"ref_emb": ref_emb, "ref_labels": ref_labels})
    spec.check_tensor("labels", labels)
    same = ref_labels is labels  # that package then takes the keys for the anchors
    labels = labels.to(embeddings.device)  # as there
    spec.check_integers("labels", labels, embeddings.shape[0], embeddings, "embeddings")
    if ref_emb is None or ref_labels is None:
        labels, _, contrasted = raised(labels, labels)
        if indices_tuple is None:
            return _Arranged(embeddings, labels, None, None, None, contrasted, max(1, embeddings.shape[0]))
        ref_emb, key_labels = embeddings, labels
    else:
        spec.check_rows("ref_emb", ref_emb, like=embeddings, like_name="embeddings")
        spec.check_tensor("ref_labels", ref_labels)
        ref_labels = ref_labels.to(embeddings.device)
        spec.check_integers("ref_labels", ref_labels, ref_emb.shape[0], ref_emb, "ref_emb")
        labels, key_labels, contrasted = raised(labels, ref_labels)
    exclude = None
    if indices_tuple is not None:
        exclude = _blind(indices_tuple, labels, key_labels)
    elif same:
        exclude = torch.arange(embeddings.shape[0], device=embeddings.device)
    return _Arranged(embeddings, labels, ref_emb, key_labels, exclude, contrasted, max(1, embeddings.shape[0]))


def _blind(pairs: tuple[Tensor, ...], labels: Tensor, key_labels: Tensor) -> Tensor:
    """The one key of its label that each anchor misses in a list of all other pairs, [N]; -1: none."""
    if len(pairs) != 4:
        raise ValueError(
            "indices_tuple must be four tensors (anchors, positives, anchors, negatives), as CrossBatchMemory passes "
            f"them; got {len(pairs)}; triplets are mined: leave the miner out"
        )
    keys = key_labels.shape[0]
    for place, (each, rows) in enumerate(zip(pairs, (labels.shape[0], keys) * 2, strict=True)):
        _check_numbers(f"indices_tuple[{place}]", each, rows)
    anchors, positives, others, negatives = (each.long() for each in pairs)
    count, total = alike(labels, key_labels)
    listed = torch.zeros_like(count).index_add(0, anchors, torch.ones_like(anchors))
    missing = count - listed
    complete = (
        len(negatives) + count.sum() == len(labels) * keys  # every negative pair is there
        and bool((missing <= 1).all())
        and bool((labels[anchors] == key_labels[positives]).all())
        and bool((labels[others] != key_labels[negatives]).all())
        and all(_distinct(left * keys + right) for left, right in ((anchors, positives), (others, negatives)))
    )
    if not complete:
        raise ValueError(
            "indices_tuple must list every pair but for one positive at most that an anchor is blind to, as "
            "CrossBatchMemory does without a miner; got other pairs; mined pairs cannot be taken: leave the miner out"
        )
    return torch.where(missing == 1, total - torch.zeros_like(count).index_add(0, anchors, positives), -1)


def _check_numbers(name: str, numbers: Tensor, rows: int) -> None:
    spec.check_tensor(name, numbers)
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"{name} must be numbers of rows, [pairs]; got {tuple(numbers.shape)} of {numbers.dtype}")
    least, most = map(int, numbers.aminmax()) if numbers.numel() else (0, -1)
    if least < 0 or most >= rows:
        raise ValueError(f"{name} must hold numbers from 0 to {rows - 1}; got {least}..{most}")


def _distinct(numbers: Tensor) -> bool:
    if bool((numbers[1:] > numbers[:-1]).all()):  # as that package lists them
        return True
    ordered = numbers.sort().values
    return not bool((ordered[1:] == ordered[:-1]).any())
