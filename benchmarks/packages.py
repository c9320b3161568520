# SPDX-License-Identifier: Apache-2.0
"""The same loss by other packages (`pip install .[rivals]`) and by torch's chunked cross-entropy, where they can."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Problem
from benchmarks.rivals import Loss

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows [N, D], keys [M, D], target [N] -> mean loss


class CannotExpressError(Exception):
    """This package has no form of the loss that the case asks for; the message says what is missing."""


def metric_learning(problem: Problem) -> Loss:
    """SupConLoss for "all"; NTXentLoss for "negatives", which pairs every positive with every negative."""
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    criterion = (SupConLoss if problem.denominator == "all" else NTXentLoss)(temperature=problem.temperature)
    anchors, keys, labels, key_labels = problem[:4]
    options = {} if keys is None else {"ref_emb": keys, "ref_labels": key_labels}

    def loss() -> Tensor:
        value: Tensor = criterion(anchors, labels, **options)
        return value

    return loss


def keops(problem: Problem) -> Loss:
    """Symbolic N x M matrices that KeOps reduces tile by tile."""
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)
    anchors, keys, labels, key_labels, temperature, denominator = problem
    others_labels = labels if key_labels is None else key_labels

    def column(values: Tensor, axis: int) -> LazyTensor:
        return LazyTensor(values.to(anchors.dtype).unsqueeze(1).unsqueeze(1 - axis))

    def loss() -> Tensor:
        unit = functional.normalize(anchors, dim=1)
        others = unit if keys is None else functional.normalize(keys, dim=1)
        similarity = (LazyTensor(unit[:, None, :]) * LazyTensor(others[None, :, :])).sum(-1) / temperature
        difference = (column(labels, 0) - column(others_labels, 1)).abs()
        same = (0.5 - difference).step()
        out = 0.0 * same  # 1 for the anchor's own place
        if keys is None:
            place = torch.arange(len(unit), device=unit.device)
            out = (0.5 - (column(place, 0) - column(place, 1)).abs()).step()
        positive = same - out
        count = positive.sum(1).squeeze(1)
        if denominator == "all":
            lse = (similarity - 1e4 * out).logsumexp(1).squeeze(1)
            value: Tensor = (lse - (positive * similarity).sum(1).squeeze(1) / count).mean()
            return value
        lse = (similarity - 1e4 * same).logsumexp(1)
        gap = LazyTensor(lse[:, None, :]) - similarity
        soft = gap.relu() + (1.0 + (-gap.abs()).exp()).log()
        value = ((positive * soft).sum(1).squeeze(1) / count).mean()
        return value

    return loss


def _by_cross_entropy(problem: Problem, cross_entropy: CrossEntropy) -> Loss:
    """Cross-entropy over all keys with one target; several positives of "all" enter through the mean of their class.

    logsumexp_j s_ij - mean_p s_ip = (logsumexp_j s_ij - s_it) + s_it - <a_i, mean of the class> / temperature
    """
    anchors, keys, labels, key_labels, temperature, denominator = problem
    if keys is None or key_labels is None:
        raise CannotExpressError("cannot express it: its softmax cannot leave out an anchor's own key")
    classes, target, count = _classes(key_labels, labels)
    single = bool((count == 1).all())
    if not single and denominator == "negatives":
        raise CannotExpressError("cannot express it: its softmax runs over all keys, not over the negatives alone")

    def loss() -> Tensor:
        unit, others = functional.normalize(anchors, dim=1), functional.normalize(keys, dim=1)
        value = cross_entropy(unit / temperature, others, target)
        if single:
            return value
        sums = torch.zeros(len(count), others.shape[1], dtype=others.dtype, device=others.device)
        means = sums.index_add(0, classes, others) / count[:, None].to(others.dtype)
        correction = (unit * (others[target] - means[classes[target]])).sum(dim=1).float() / temperature
        return value + correction.mean()

    return loss


def _classes(key_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class number of each key, the first key of each anchor's class, and how many keys each class of anchors has."""
    values, classes = torch.unique(key_labels, return_inverse=True)
    first = torch.full_like(values, len(key_labels))
    first.scatter_reduce_(0, classes, torch.arange(len(key_labels), device=key_labels.device), "amin")
    mine = torch.searchsorted(values, labels)
    count = torch.ones_like(values)
    used = torch.unique(mine)
    count[used] = classes.bincount(minlength=len(values))[used]
    return classes, first[mine], count


def linear_cross_entropy(problem: Problem) -> Loss:
    """`torch.nn.functional.linear_cross_entropy`, chunked: new in torch 2.13."""
    fused = getattr(functional, "linear_cross_entropy", None)
    if fused is None:
        raise CannotExpressError(f"torch {torch.__version__} has no linear_cross_entropy; torch 2.13 has")
    options = torch.nn.LinearCrossEntropyOptions()
    return _by_cross_entropy(problem, lambda rows, keys, target: fused(rows, keys, target, options=options))


def cut_cross_entropy(problem: Problem) -> Loss:
    """Apple's cut-cross-entropy, without its filter of small gradients: that one drops a flat softmax."""
    from cut_cross_entropy import linear_cross_entropy as cut

    return _by_cross_entropy(problem, lambda rows, keys, target: cut(rows, keys, target, filter_eps=None))


def inf_cl(problem: Problem) -> Loss:
    """Inf-CL's kernel on one GPU: one positive of each row, given by its place."""
    from inf_cl import cal_flash_loss

    def mean(rows: Tensor, keys: Tensor, target: Tensor) -> Tensor:
        value: Tensor = cal_flash_loss(rows, keys, target, head_dim=rows.shape[1]).mean()
        return value

    return _by_cross_entropy(problem, mean)


def memeff(problem: Problem) -> Loss:
    """MemoryEfficientCLIP's one-sided losses: key i is the one positive of row i; gradients not rescaled."""
    from memeff import MemoryEfficientLiTLoss, MemoryEfficientQwen3Loss

    anchors, keys, labels, key_labels, temperature, _ = problem
    paired = key_labels is not None and torch.equal(labels, key_labels) and len(torch.unique(labels)) == len(labels)
    if keys is None or not paired:
        raise CannotExpressError("cannot express it: it pairs row i with key i, N = M, one positive each")
    if keys.requires_grad:
        both = MemoryEfficientQwen3Loss(temperature, margin=2.0, stable=False)
        return lambda: both(anchors, keys)
    frozen = MemoryEfficientLiTLoss(temperature, stable=False)
    return lambda: frozen(anchors, keys)
