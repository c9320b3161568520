# SPDX-License-Identifier: Apache-2.0
"""Losses of papers on segmentation whose code is no package, each one call of `info_nce` on rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from secl_ops import spec
from secl_ops.compat.common import alike
from secl_ops.functional import info_nce
from secl_ops.pixels import class_means

SUBCLASSES = ("inner", "boundary")


def reco(
    queries: Tensor,  # [N, D]
    query_labels: Tensor,  # [N]
    keys: Tensor,  # [M, D]
    key_labels: Tensor,  # [M]
    *,
    num_classes: int,
    negatives: int = 512,
    temperature: float = 0.5,
    backend: str = "auto",
) -> Tensor:
    """Pull hard pixels to the mean of their class, push them from drawn pixels of classes that are like it (ReCo).

    With cosine s over the temperature, m_c the mean of the keys of class c and R_c its drawn negatives:

        L_i = -log(exp s(q_i, m_c) / (exp s(q_i, m_c) + sum over R_c of exp s(q_i, k)))

    averaged over the queries of each class, then over the classes that have keys. A negative is of a class c' other
    than c with a chance as exp s(m_c, m_c'), then any key of it; torch's generator draws them once for each class (the
    public code: anew for each query). Source: Liu et al., ICLR 2022, arXiv:2104.04465.

    Args:
        queries: Rows that learn: pixels of a low confidence, there 256 of each class.
        query_labels: Integers [N]; -1: ignored.
        keys: Rows of all pixels with a valid label; they get no gradient.
        key_labels: Integers [M]; -1: ignored.
        num_classes: C.
        negatives: Keys drawn for each class.
        temperature: Divides the similarity.
        backend: As in `info_nce`.

    Returns:
        The loss; 0 with a graph where fewer than two classes have keys.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.published import reco
        >>> keys, labels = torch.randn(60, 8), torch.arange(60) % 3
        >>> queries = keys[:12].clone().requires_grad_()
        >>> reco(queries, labels[:12], keys, labels, num_classes=3, negatives=20).backward()
    """
    _check_sides(("queries", queries), ("query_labels", query_labels), ("keys", keys), ("key_labels", key_labels))
    spec.check_positive_int("negatives", negatives)
    keys = keys.detach()
    prototypes, count = class_means(keys, key_labels, num_classes)
    drawn = _draw_alike(prototypes, count, key_labels, negatives, temperature)
    return _against_drawn(queries, query_labels, prototypes, keys, drawn, temperature, backend)


def u2pl(
    anchors: Tensor,  # [N, D]
    anchor_labels: Tensor,  # [N]
    prototypes: Tensor,  # [C, D]
    keys: Tensor,  # [M, D]
    key_classes: Tensor,  # [M]
    *,
    negatives: int | None = 50,
    temperature: float = 0.5,
    backend: str = "auto",
) -> Tensor:
    """Pull reliable pixels to the mean of their class, push them from unreliable pixels that are hardly of it (U2PL).

    With cosine s over the temperature, m_c the prototype of class c and R_c its drawn negatives:

        L_i = -log(exp s(a_i, m_c) / (exp s(a_i, m_c) + sum over R_c of exp s(a_i, k)))

    averaged over the anchors of each class, then over the classes with a prototype. A pixel is a negative of the
    classes that its prediction ranks low; a `ClassQueue` keeps them under those classes. They are drawn once for each
    class (the public code: anew for each anchor). Source: Wang et al., CVPR 2022, arXiv:2203.03884.

    Args:
        anchors: Rows that learn, there 256 of each class.
        anchor_labels: Integers [N]; -1: ignored.
        prototypes: Row c is the teacher's mean of class c; zeros: that class is absent. They get no gradient.
        keys: Negatives; they get no gradient.
        key_classes: The class [M] whose anchors each key is a negative of; -1: of none.
        negatives: Keys drawn for each class; None: all.
        temperature: Divides the similarity.
        backend: As in `info_nce`.

    Returns:
        The loss; an anchor without negatives has 0.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch, secl_ops
        >>> from secl_ops.compat.published import u2pl
        >>> queue = secl_ops.ClassQueue(num_classes=3, size=40, dim=8)
        >>> queue.enqueue(torch.randn(60, 8), torch.arange(60) % 3)
        >>> anchors = torch.randn(12, 8, requires_grad=True)
        >>> u2pl(anchors, torch.arange(12) % 3, torch.randn(3, 8), queue.keys, queue.key_labels).backward()
    """
    _check_memory(anchors, anchor_labels, prototypes, keys, key_classes)
    if negatives is None:
        return _against_means(anchors, anchor_labels, prototypes, keys, key_classes, temperature, backend)
    spec.check_positive_int("negatives", negatives)
    chance = torch.rand(prototypes.shape[0], negatives, dtype=torch.float64, device=keys.device)
    drawn = _draw_own(chance, key_classes)
    return _against_drawn(anchors, anchor_labels, prototypes, keys, drawn, temperature, backend)


def mona(
    anchors: Tensor,  # [N, D]
    anchor_labels: Tensor,  # [N]
    prototypes: Tensor,  # [C, D]
    keys: Tensor,  # [M, D]
    key_classes: Tensor,  # [M]
    *,
    negatives: int = 512,
    strata: int = 16,
    antithetic: bool = True,
    temperature: float = 0.5,
    backend: str = "auto",
) -> Tensor:
    """The loss of `u2pl` with negatives spread over their list (MONA; ARCO's stratified and antithetic sampling).

    L_i as in `u2pl`. Of a class with m keys the j-th negative is key number floor(m (j mod S + u_j) / S) of S strata;
    under `antithetic` every second round of the strata takes 1 - u of the round before. Source: You et al., TPAMI 2024,
    arXiv:2209.13476, and NeurIPS 2023, arXiv:2302.01735.

    Args:
        anchors: As in `u2pl`, and so are all arguments that are not named here.
        anchor_labels: See `u2pl`.
        prototypes: See `u2pl`.
        keys: See `u2pl`.
        key_classes: See `u2pl`.
        negatives: Keys drawn for each class.
        strata: S; where it does not divide `negatives`, the largest number that divides both.
        antithetic: Draw in pairs that mirror each other (SAG), or each by itself (SG).
        temperature: Divides the similarity.
        backend: As in `info_nce`.

    Returns:
        The loss; an anchor without negatives has 0.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.published import mona
        >>> anchors, classes = torch.randn(12, 8, requires_grad=True), torch.arange(12) % 3
        >>> mona(anchors, classes, torch.randn(3, 8), torch.randn(90, 8), torch.arange(90) % 3).backward()
    """
    _check_memory(anchors, anchor_labels, prototypes, keys, key_classes)
    spec.check_positive_int("negatives", negatives)
    spec.check_positive_int("strata", strata)
    spec.check_bool("antithetic", antithetic)
    chance = _spread(prototypes.shape[0], negatives, strata, antithetic, keys.device)
    drawn = _draw_own(chance, key_classes)
    return _against_drawn(anchors, anchor_labels, prototypes, keys, drawn, temperature, backend)


def spcl(
    anchors: Tensor,  # [N, D]
    anchor_labels: Tensor,  # [N]
    inner: Tensor,  # [M, D]
    inner_labels: Tensor,  # [M]
    boundary: Tensor,  # [M', D]
    boundary_labels: Tensor,  # [M']
    *,
    subclass: str,
    temperature: float = 0.5,
    backend: str = "auto",
) -> Tensor:
    """Pull pixels to the centroids of their class and part, push them from both parts of the other classes (SPCL).

    With cosine s_ij over the temperature, P(i) the centroids of the anchor's class in its own part, Neg(i) those of
    other classes in both parts; its own class's in the other part are neither:

        L_i = mean over P(i) of softplus(logsumexp over Neg(i) of s_in - s_ip)

    averaged over the anchors of each class, then over the classes; the public code multiplies by temperature / 0.07.
    Source: SPCL, ICASSP 2026, arXiv:2602.00174.

    Args:
        anchors: Rows that learn: uncertain pixels of one part of their class.
        anchor_labels: Integers [N]; -1: ignored.
        inner: Centroids of the inner parts, one for each image and class.
        inner_labels: Integers [M]; -1: an empty place.
        boundary: The same of the boundaries.
        boundary_labels: Integers [M'].
        subclass: The part that the anchors come from: "inner" or "boundary".
        temperature: Divides the similarity; there 0.5 inside.
        backend: As in `info_nce`.

    Returns:
        The loss; 0 with a graph where no anchor has a positive.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.

    Example:
        >>> import torch
        >>> from secl_ops.compat.published import spcl
        >>> inner, boundary, classes = torch.randn(9, 8), torch.randn(9, 8), torch.arange(9) % 3
        >>> anchors = torch.randn(12, 8, requires_grad=True)
        >>> spcl(anchors, torch.arange(12) % 3, inner, classes, boundary, classes, subclass="inner").backward()
    """
    spec.check_choice("subclass", subclass, SUBCLASSES)
    given = ("anchors", anchors), ("anchor_labels", anchor_labels)
    _check_sides(*given, ("inner", inner), ("inner_labels", inner_labels))
    _check_sides(*given, ("boundary", boundary), ("boundary_labels", boundary_labels))
    own, own_labels = (inner, inner_labels) if subclass == "inner" else (boundary, boundary_labels)
    return info_nce(
        anchors, [inner, boundary], anchor_labels=anchor_labels, key_labels=[inner_labels, boundary_labels],
        positives=own, positive_labels=own_labels, weights=_share(anchors, anchor_labels), temperature=temperature,
        backend=backend,
    )  # fmt: skip


def _check_sides(*named: tuple[str, Tensor]) -> None:
    """Refuse anchors and keys, and labels of each, that do not go together."""
    (name, anchors), (labels_name, labels), (keys_name, keys), (key_labels_name, key_labels) = named
    spec.check_rows(name, anchors)
    spec.check_integers(labels_name, labels, anchors.shape[0], anchors, name)
    spec.check_rows(keys_name, keys, like=anchors, like_name=name)
    spec.check_integers(key_labels_name, key_labels, keys.shape[0], keys, keys_name)


def _check_memory(
    anchors: Tensor, anchor_labels: Tensor, prototypes: Tensor, keys: Tensor, key_classes: Tensor
) -> None:
    _check_sides(("anchors", anchors), ("anchor_labels", anchor_labels), ("keys", keys), ("key_classes", key_classes))
    spec.check_rows("prototypes", prototypes, like=anchors, like_name="anchors")


def _share(anchors: Tensor, labels: Tensor) -> Tensor:
    """Weights [N] by which each class counts the same."""
    labels = labels.long()
    wide = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    return 1 / alike(labels, labels)[0].to(wide)


def _keys_of(classes: Tensor, chance: Tensor, key_labels: Tensor) -> Tensor:
    """Number of a key of each class, at this chance of 0 .. 1 in its list; -1 where the class has none."""
    ordered, place = key_labels.long().sort(stable=True)
    first, last = (torch.searchsorted(ordered, classes.contiguous(), right=right) for right in (False, True))
    number = first + torch.minimum((chance * (last - first)).long(), last - first - 1)
    if len(place) == 0:
        return torch.full_like(first, -1)
    return torch.where(last > first, place[number.clamp(0, len(place) - 1)], -1)


def _draw_own(chance: Tensor, key_classes: Tensor) -> Tensor:
    """Number of a key of each class [C, K] at these places in its list."""
    own = torch.arange(chance.shape[0], device=chance.device)[:, None].expand_as(chance)
    return _keys_of(own, chance, key_classes)


def _spread(classes: int, negatives: int, strata: int, antithetic: bool, device: torch.device) -> Tensor:
    """Places of 0 .. 1 in a list for each class [C, negatives], equally many in each stratum."""
    strata = math.gcd(strata, negatives)
    number = torch.arange(negatives, device=device)
    within = torch.rand(classes, negatives, dtype=torch.float64, device=device)
    if antithetic:
        mirrored = number // strata % 2 == 1
        within = torch.where(mirrored, 1 - within[:, torch.where(mirrored, number - strata, number)], within)
    return (number % strata + within) / strata


def _draw_alike(
    prototypes: Tensor,  # [C, D]
    count: Tensor,  # [C]
    key_labels: Tensor,  # [M]
    negatives: int,
    temperature: float,
) -> Tensor:
    """ReCo's draw: number of a key of another class for each class [C, negatives], more often of one like it."""
    classes = len(count)
    unit = normalize(prototypes.double(), dim=1)
    other = (count > 0) & ~torch.eye(classes, dtype=torch.bool, device=count.device)
    chance = torch.where(other, unit @ unit.T / temperature, -torch.inf).softmax(dim=1).nan_to_num(0.0)
    steps = (chance * 2**40).round().long().cumsum(dim=1)  # whole numbers: the same on every device
    throw = torch.rand(classes, negatives, dtype=torch.float64, device=count.device)
    wanted = torch.searchsorted(steps, (throw * steps[:, -1:]).long(), right=True)  # of no class: the number of classes
    return _keys_of(wanted, torch.rand_like(throw), key_labels)


def _against_drawn(
    anchors: Tensor,
    anchor_labels: Tensor,
    prototypes: Tensor,
    keys: Tensor,
    drawn: Tensor,  # [C, K]
    temperature: float,
    backend: str,
) -> Tensor:
    """The loss against these keys of each class; -1: none."""
    own = torch.arange(drawn.shape[0], device=keys.device)[:, None]
    classes = torch.where(drawn < 0, -1, own).flatten()
    rows = keys[drawn.clamp(min=0).flatten()] if len(keys) else keys.new_zeros(len(classes), keys.shape[1])
    return _against_means(anchors, anchor_labels, prototypes, rows, classes, temperature, backend)


def _against_means(
    anchors: Tensor,  # [N, D]
    anchor_labels: Tensor,  # [N]
    prototypes: Tensor,  # [C, D]
    keys: Tensor,  # [K, D]
    key_classes: Tensor,  # [K]
    temperature: float,
    backend: str,
) -> Tensor:
    """Mean over the classes with a prototype of the mean over their anchors; a key is a negative of its class alone."""
    classes = prototypes.shape[0]
    present = (prototypes.detach() != 0).any(dim=1)
    loss = info_nce(
        anchors, keys.detach(), anchor_labels=anchor_labels, anchor_groups=anchor_labels,
        key_labels=torch.where(key_classes < 0, -1, classes), key_groups=key_classes, positives=prototypes.detach(),
        positive_labels=torch.where(present, torch.arange(classes, device=anchors.device), -1),
        weights=_share(anchors, anchor_labels), temperature=temperature, reduction="sum", backend=backend,
    )  # fmt: skip
    return loss / present.sum().clamp(min=1)
