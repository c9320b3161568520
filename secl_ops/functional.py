# SPDX-License-Identifier: Apache-2.0
"""What the loss means: its documented contract, over rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from secl_ops import joined, small, spec
from secl_ops.autograd import contrast_sources
from secl_ops.inputs import ContrastInput
from secl_ops.remembered import remembered
from secl_ops.shards import ContrastParts, contrast_shards
from secl_ops.spec import ContrastSpec


def info_nce(
    anchors: Tensor,  # [N, D] floating
    keys: Tensor | Sequence[Tensor] | None = None,  # [M, D] floating
    *,
    anchor_labels: Tensor,  # [N] integer
    key_labels: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    temperature: float | Tensor = 0.1,
    denominator: str = "negatives",
    normalize: bool = True,
    weights: Tensor | None = None,  # [N] floating
    positives: Tensor | None = None,  # [P, D] floating
    positive_labels: Tensor | None = None,  # [P] integer
    positive_groups: Tensor | None = None,  # [P] integer
    anchor_groups: Tensor | None = None,  # [N] integer
    key_groups: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    exclude: Tensor | None = None,  # [N] integer
    key_weights: Tensor | Sequence[Tensor] | None = None,  # [M] floating
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Contrast labelled rows: pull each anchor to the keys of its own label, push it from those of others.

    With similarity s_ij = a_i . k_j / temperature, positives P(i) (equal labels) and negatives Neg(i) (unequal ones):

        "negatives"  L_i = mean over p in P(i) of softplus(logsumexp over Neg(i) of s_in - s_ip)
        "all"        L_i = logsumexp over P(i) and Neg(i) of s_ij - mean over P(i) of s_ip

    "negatives" is the loss of Zhao et al. (ICCV 2021, arXiv:2012.06985) and ContrastiveSeg (arXiv:2101.11939), and
    plain InfoNCE where a label has one positive; "all" is SupCon (Khosla et al. 2020, arXiv:2004.11362, L_out).
    Either grows as log M with more keys: losses compare at one M, and a queue that fills raises them.
    A key of weight w counts as w keys: 2 as if it stood twice, 0 as if it were not there, fractions in between. With
    `key_weights` w_j and W_i, the sum of w_p over P(i),

        "negatives"  L_i = 1/W_i sum over P(i) of w_p softplus(log(sum over Neg(i) of w_n exp(s_in)) - s_ip)
        "all"        L_i = log(sum over P(i) and Neg(i) of w_j exp(s_ij)) - 1/W_i sum over P(i) of w_p s_ip

    and an anchor with W_i = 0 has no positive. In DyCON (Assefa et al. 2025, arXiv:2504.04566) the entropy of an anchor
    goes to `weights`, and as a key's to `key_weights`; its focal factors are a pair's, which neither can be.
    Memory is O((N + M) D) on every backend but "reference"; the same call gives the same bits; nothing waits for the
    device.

    With a group every process gives the same options and as many anchors and keys, padded with label -1. The loss
    under "mean" and "sum" is that of the joined batch, all anchors against all keys, the same bits in each process;
    under "none" that of the own anchors. The backward pass, which all must run, gives a row the sum of the gradients
    of all these losses, which is the world size times that of one: the world size is `DistributedDataParallel`'s to
    divide by, and its average is the gradient of the joined batch, also of a temperature and of weights. Keys beyond
    64 MiB in all go round in a ring: memory stays that of one process's rows. A list of keys is joined first, `exclude`
    numbers the process's own keys, `positives` stay with its own anchors, and a key that every process holds counts
    once for each. What one process refuses is refused in all, and none waits for it; on a GPU that holds for the first
    call of each kind, which waits for the device. torch.compile leaves a call between two graphs.

    Args:
        anchors: Rows [N, D] that learn: fp32, bf16, fp16 (accumulated in fp32) or fp64 ("reference" only). On a GPU
            fp32 rows are multiplied in three products of tf32, or, with SECL_FP32=exact in the environment, exactly.
        keys: Rows [M, D] to compare with; None: the anchors themselves, each blind to itself. A list of such tensors
            (this batch, a queue, ...) counts as one joined matrix and is read where it lies.
        anchor_labels: Integers [N] below 2^31; -1: ignored, contributes nothing and gets a zero gradient.
        key_labels: Integers [M]; required with `keys`, and a list with a list.
        temperature: Divides the similarity: a float above 0, or a one-element tensor, which then gets a gradient.
        denominator: "negatives" or "all".
        normalize: Divide each row by its L2 norm first; a zero row has similarity 0 with everything.
        weights: Factor [N] >= 0 on each anchor's loss.
        positives: Rows [P, D], for example class means, that are then the only positives; keys of the anchor's own
            label are neither positive nor negative.
        positive_labels: Integers [P]; required with `positives`.
        positive_groups: Integers [P]; without them every group of anchors sees the positives.
        anchor_groups: Integers [N], int32 in value; only keys of the same group are compared.
        key_groups: Integers [M]; required with `keys` and `anchor_groups`, and a list with a list.
        exclude: One key number per anchor [N] that it must not see, counted through a list; -1 for none.
        key_weights: How many keys each key counts as, [M] >= 0, of a list a list; without `keys` [N], of the anchors as
            keys. They get no gradient: pass soft ones (a confidence, exp(-entropy)) detached.
        reduction: "mean" over the anchors that have a positive (weighted by `weights`), "sum" or "none".
        backend: "auto", "reference", "native" or "triton".
        validate: Also check values (ranges of labels and exclude, weights, temperature), which waits for the device.
        group: The keys are those of all processes of this `torch.distributed` group, for example `group.WORLD` after
            `init_process_group`; None: this process's.

    Returns:
        The loss in fp32 (fp64 for fp64 rows): a scalar, or [N] under "none"; without a valid anchor 0, with a graph.

    Raises:
        TypeError: An argument of the wrong kind or dtype.
        ValueError: An argument of the wrong shape, device or value, or one without its partner.
        RuntimeError: A named backend cannot run here; each of its reasons is listed.

    Example:
        >>> import torch, secl_ops
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> loss = secl_ops.info_nce(rows, anchor_labels=torch.tensor([0, 0, 1, 1]), temperature=0.5)
        >>> print(f"{loss:.4f}")
        0.8707
    """
    options = remembered(ContrastSpec, temperature, denominator, normalize, reduction, backend, validate)
    given = ContrastInput(
        anchors, keys, anchor_labels, key_labels, weights,
        positives, positive_labels, positive_groups, anchor_groups, key_groups, exclude, key_weights,
    )  # fmt: skip
    if group is not None:
        joined_loss = joined.info_nce(given, options, group)
        if joined_loss is not None:
            return joined_loss
    small_loss = small.info_nce(given, options, lambda: given.check(options))
    if small_loss is not None:
        return small_loss
    given.check(options)
    shards = given.arrange()
    if len(shards) > 1:
        return contrast_shards(anchors, shards, options, weights=weights).loss
    return contrast_sources(anchors, *shards[0], options, weights=weights)


def info_nce_parts(
    anchors: Tensor,  # [N, D] floating
    keys: Tensor | Sequence[Tensor] | None = None,  # [M, D] floating
    *,
    anchor_labels: Tensor,  # [N] integer
    key_labels: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    lse: Tensor | None = None,  # [N] floating
    temperature: float | Tensor = 0.1,
    denominator: str = "negatives",
    normalize: bool = True,
    anchor_groups: Tensor | None = None,  # [N] integer
    key_groups: Tensor | Sequence[Tensor] | None = None,  # [M] integer
    exclude: Tensor | None = None,  # [N] integer
    key_weights: Tensor | Sequence[Tensor] | None = None,  # [M] floating
    backend: str = "auto",
    validate: bool = False,
) -> ContrastParts:
    """Find what merges the loss exactly when the keys lie in several places, for example on several GPUs.

    Each place k finds lse_k, the log-sum-exp of its own denominator; their lse = log sum_k exp lse_k goes back to each,
    which then finds the mean loss L_k of its own c_k positives at that lse. The loss over all keys is

        L_i = sum_k c_k L_k / sum_k c_k

    Both the loss and the lse carry gradients, so that plain torch (or a differentiable collective) may stand between
    the two calls; over the processes of a group `info_nce` does all of it. After the log-sum-exp merge of
    FlashAttention (Dao et al. 2022, arXiv:2205.14135).

    Args:
        anchors: As in `info_nce`, and so are all arguments that are not named here.
        keys: Those of this place.
        anchor_labels: See `info_nce`.
        key_labels: See `info_nce`.
        lse: Log-sum-exp [N] over all places, in place of this place's own.
        temperature: See `info_nce`.
        denominator: See `info_nce`.
        normalize: See `info_nce`.
        anchor_groups: See `info_nce`.
        key_groups: See `info_nce`.
        exclude: See `info_nce`; numbers the keys of this place.
        key_weights: See `info_nce`; c_k is then their sum over the positives.
        backend: See `info_nce`.
        validate: See `info_nce`.

    Returns:
        `ContrastParts(loss, lse, count)`, [N] each: the loss of each anchor (0 without a positive here), the
        log-sum-exp that it was found at (-inf over nothing) and the number of positives, or their weights' sum.

    Raises:
        TypeError, ValueError: An argument breaks its rule; the message names it.
        RuntimeError: A named backend cannot run here.

    Example:
        >>> import torch, secl_ops
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> call = {"anchors": rows[:2], "anchor_labels": torch.tensor([0, 1])}
        >>> places = [{"keys": rows[:3], "key_labels": torch.tensor([0, 1, 1])},
        ...           {"keys": rows[3:], "key_labels": torch.tensor([0])}]
        >>> lse = torch.stack([secl_ops.info_nce_parts(**call, **place).lse for place in places]).logsumexp(0)
        >>> parts = [secl_ops.info_nce_parts(**call, **place, lse=lse) for place in places]
        >>> loss = sum(part.count * part.loss for part in parts) / sum(part.count for part in parts)
        >>> joined = secl_ops.info_nce(rows[:2], rows, anchor_labels=torch.tensor([0, 1]),
        ...                            key_labels=torch.tensor([0, 1, 1, 0]), reduction="none")
        >>> bool((loss - joined).abs().max() < 1e-6)
        True
    """
    options = ContrastSpec(temperature, denominator, normalize, "none", backend, validate)
    given = ContrastInput(
        anchors, keys, anchor_labels, key_labels, None, None, None, None, anchor_groups, key_groups, exclude,
        key_weights,
    )  # fmt: skip
    given.check(options)
    if lse is not None:
        spec.check_per_row("lse", lse, anchors, "anchors")
        lse = lse.to(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    return contrast_shards(anchors, given.arrange(), options, lse=lse)
