# SPDX-License-Identifier: Apache-2.0
"""The values of few rows: the rows lie as they come, each pair is looked at, and a step is as few launches as it can.

`few_value_kernel`: loss, log-sum-exp and pull of each anchor.  `few_sums_kernel`, `few_draws_kernel` and
`few_merge_kernel`: the same where the keys are cut into parts, a program for each, to fill the card.
Nothing is put in order first: for few rows a launch costs more.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.contrast import merged_denominator
from secl_ops.engines.triton.plan import share
from secl_ops.engines.triton.primitives import LN2, finite_or_zero, merge_logits, product, softplus2, tile_pointers

LOSS, LSE, PULL, COUNT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # rows of the state [4, N]
TOP, SUM_OF, NEAR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # of what a part of the keys adds, [5, parts, N]
PULLS, POSITIVES = tl.constexpr(3), tl.constexpr(4)


@triton.jit
def load_names(p_labels, p_groups, o_row, count):
    """Label of each row, -1 past the end, and its group, 0 without groups."""
    m_row = o_row < count
    b_label = tl.where(m_row, tl.load(p_labels + o_row, mask=m_row, other=0).to(tl.int32), -1)  # -1 is no byte
    if p_groups is None:
        b_group = tl.zeros(o_row.shape, tl.int32)
    else:
        b_group = tl.load(p_groups + o_row, mask=m_row, other=0).to(tl.int32)
    return b_label, b_group


@triton.jit
def load_gone(p_exclude, o_anchor, count):
    """The key that each anchor must not see, -1 for none."""
    if p_exclude is None:
        b_gone = tl.full(o_anchor.shape, -1, tl.int64)
    else:
        b_gone = tl.load(p_exclude + o_anchor, mask=o_anchor < count, other=-1).to(tl.int64)
    return b_gone


@triton.jit
def pairs_of(row, other, m_apart, NEGATIVES: tl.constexpr):
    """Which pairs [BN, BM] are in the denominator, and which are positive, of those that nothing else parts."""
    b_label, b_group = row
    b_other_label, b_other_group = other
    m_pair = ~m_apart & (b_label >= 0)[:, None] & (b_other_label >= 0)[None, :]
    m_pair = m_pair & (b_group[:, None] == b_other_group[None, :])
    m_same = b_label[:, None] == b_other_label[None, :]
    m_inside = m_pair & ~m_same if NEGATIVES else m_pair
    return m_inside, m_pair & m_same


@triton.jit
def load_chunk(p_rows, o_column, m_row, WIDTH: tl.constexpr):
    """Columns of rows [n, BLOCK_D]; zeros where there are none."""
    return tl.load(p_rows, mask=m_row[:, None] & (o_column < WIDTH)[None, :], other=0.0)


@triton.jit
def few_dots(p_rows, p_others, m_row, m_other, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """`<row, other>` of every pair [BN, BM]."""
    o_column = tl.arange(0, BLOCK_D)
    b_dot = tl.zeros([m_row.shape[0], m_other.shape[0]], tl.float32)
    if WIDTH <= 2 * BLOCK_D:  # more in a row spill
        for start in tl.static_range(0, WIDTH, BLOCK_D):
            b_row = load_chunk(p_rows + start, start + o_column, m_row, WIDTH)
            b_other = load_chunk(p_others + start, start + o_column, m_other, WIDTH)
            b_dot = product(b_row, tl.trans(b_other), b_dot)  # [BN, BD] @ [BD, BM] -> [BN, BM]
    else:
        for start in range(0, WIDTH, BLOCK_D):
            b_row = load_chunk(p_rows + start, start + o_column, m_row, WIDTH)
            b_other = load_chunk(p_others + start, start + o_column, m_other, WIDTH)
            b_dot = product(b_row, tl.trans(b_other), b_dot)  # [BN, BD] @ [BD, BM] -> [BN, BM]
    return b_dot


@triton.jit
def real(b_label, o_row, count, CLEAN: tl.constexpr):
    """Rows that are read: all there are where those that are ignored are zeros, else those that are not ignored."""
    m_row = o_row < count if CLEAN else b_label >= 0
    return m_row


@triton.jit
def load_anchors(
    p_anchors, p_labels, p_groups, p_exclude, n_anchors,
    WIDTH: tl.constexpr, CLEAN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The anchors of a program: place, names, the key that each must not see, which are read, and where they lie."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    anchor = load_names(p_labels, p_groups, o_anchor, n_anchors)
    b_gone = load_gone(p_exclude, o_anchor, n_anchors)
    p_row = tile_pointers(p_anchors, o_anchor.to(tl.int64), tl.arange(0, BLOCK_D), WIDTH)
    return o_anchor, anchor, b_gone, real(anchor[0], o_anchor, n_anchors, CLEAN), p_row


@triton.jit
def contrast_tile(
    anchors, p_keys, p_labels, p_groups, start, n_keys, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of anchors and a tile of keys [BN, BM], and which pairs are in the denominator and which are positive."""
    o_anchor, anchor, b_gone, m_anchor, p_row = anchors
    o_key = start + tl.arange(0, BLOCK_M)
    key = load_names(p_labels, p_groups, o_key, n_keys)
    m_apart = o_key[None, :] == (o_anchor if SELF else b_gone)[:, None]
    m_inside, m_positive = pairs_of(anchor, key, m_apart, NEGATIVES)
    p_key = tile_pointers(p_keys, o_key.to(tl.int64), tl.arange(0, BLOCK_D), WIDTH)
    m_key = real(key[0], o_key, n_keys, CLEAN)
    return few_dots(p_row, p_key, m_anchor, m_key, WIDTH, BLOCK_D) * scale2, m_inside, m_positive


@triton.jit
def sum_tiles(
    anchors, p_keys, p_labels, p_groups, first, stop, n_keys, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of the denominator over keys [first, stop), number of positives and, under "all", their sum."""
    b_top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    if BOUNDED:  # of unit rows no logit is above the scale
        b_top = tl.full([BLOCK_N], 0.0, tl.float32) + scale2
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_near = tl.zeros([BLOCK_N], tl.float32)
    b_count = tl.zeros([BLOCK_N], tl.int32)
    for start in range(first, stop, BLOCK_M):
        b_logit, m_inside, m_positive = contrast_tile(
            anchors, p_keys, p_labels, p_groups, start, n_keys, scale2, WIDTH, SELF, NEGATIVES, CLEAN, BLOCK_M, BLOCK_D
        )
        b_count += tl.sum(m_positive.to(tl.int32), 1)
        if not NEGATIVES:
            b_near += tl.sum(tl.where(m_positive, b_logit, 0.0), 1)
        b_logit = tl.where(m_inside, b_logit, float("-inf"))
        b_top, b_sum, _, _ = merge_logits(b_logit, b_top, b_sum, BOUNDED)
    return b_top, b_sum, b_near, b_count


@triton.jit
def draw_tiles(
    anchors, p_keys, p_labels, p_groups, first, stop, n_keys, scale2, b_lse,
    WIDTH: tl.constexpr, SELF: tl.constexpr, CLEAN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Under "negatives": losses of the positives among keys [first, stop), and their slopes, summed."""
    b_near = tl.zeros([BLOCK_N], tl.float32)
    b_pull = tl.zeros([BLOCK_N], tl.float32)
    for start in range(first, stop, BLOCK_M):
        b_logit, _, m_positive = contrast_tile(
            anchors, p_keys, p_labels, p_groups, start, n_keys, scale2, WIDTH, SELF, True, CLEAN, BLOCK_M, BLOCK_D
        )
        b_soft, b_slope = softplus2(b_lse[:, None] - b_logit)
        b_near += tl.sum(tl.where(m_positive, b_soft, 0.0), 1)
        b_pull += tl.sum(tl.where(m_positive, b_slope, 0.0), 1)
    return b_near, b_pull


@triton.jit
def store_state(p_state, o_anchor, n_anchors, b_lse, b_near, b_pull, b_count, NEGATIVES: tl.constexpr):
    """Loss, log-sum-exp (base 2), pull and number of positives of each anchor, from the sums over all keys."""
    m_counted = b_count > 0
    b_divisor = tl.maximum(b_count, 1).to(tl.float32)
    if NEGATIVES:
        b_loss = b_near / b_divisor
        b_pull = b_pull / b_divisor
    else:
        b_loss = tl.where(m_counted, (b_lse - b_near / b_divisor) * LN2, 0.0)
        b_pull = m_counted.to(tl.float32)
    m_row = o_anchor < n_anchors
    tl.store(p_state + LOSS * n_anchors + o_anchor, b_loss, mask=m_row)
    tl.store(p_state + LSE * n_anchors + o_anchor, b_lse, mask=m_row)
    tl.store(p_state + PULL * n_anchors + o_anchor, b_pull, mask=m_row)
    tl.store(p_state + COUNT * n_anchors + o_anchor, b_count.to(tl.float32), mask=m_row)


@triton.jit(do_not_specialize=("n_anchors", "n_keys"))
def few_value_kernel(
    p_anchors, p_keys,  # [N, WIDTH], [M, WIDTH]
    p_labels, p_key_labels, p_groups, p_key_groups, p_exclude,  # [N], [M], [N] or None, [M] or None, [N] or None
    p_state,  # [4, N]
    n_anchors, n_keys, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Loss, log-sum-exp (base 2), pull and number of positives of each anchor."""
    anchors = load_anchors(p_anchors, p_labels, p_groups, p_exclude, n_anchors, WIDTH, CLEAN, BLOCK_N, BLOCK_D)
    b_top, b_sum, b_near, b_count = sum_tiles(
        anchors, p_keys, p_key_labels, p_key_groups, 0, n_keys, n_keys, scale2,
        WIDTH, SELF, NEGATIVES, CLEAN, BOUNDED, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    b_lse = tl.log2(b_sum) + finite_or_zero(b_top)
    b_pull = b_near
    if NEGATIVES:
        b_near, b_pull = draw_tiles(
            anchors, p_keys, p_key_labels, p_key_groups, 0, n_keys, n_keys, scale2, b_lse,
            WIDTH, SELF, CLEAN, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
    store_state(p_state, anchors[0], n_anchors, b_lse, b_near, b_pull, b_count, NEGATIVES)


@triton.jit(do_not_specialize=("n_anchors", "n_keys"))
def few_sums_kernel(
    p_anchors, p_keys, p_labels, p_key_labels, p_groups, p_key_groups, p_exclude,  # as of `few_value_kernel`
    p_parts,  # [5, parts, N]
    n_anchors, n_keys, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What one part of the keys adds to each anchor's denominator."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    first, stop = share(tl.cdiv(n_keys, BLOCK_M), part, parts)
    anchors = load_anchors(p_anchors, p_labels, p_groups, p_exclude, n_anchors, WIDTH, CLEAN, BLOCK_N, BLOCK_D)
    b_top, b_sum, b_near, b_count = sum_tiles(
        anchors, p_keys, p_key_labels, p_key_groups, first * BLOCK_M, stop * BLOCK_M, n_keys, scale2,
        WIDTH, SELF, NEGATIVES, CLEAN, BOUNDED, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    o_anchor = anchors[0]
    m_row, p_out = o_anchor < n_anchors, p_parts + part * n_anchors + o_anchor
    tl.store(p_out + TOP * parts * n_anchors, b_top, mask=m_row)
    tl.store(p_out + SUM_OF * parts * n_anchors, b_sum, mask=m_row)
    tl.store(p_out + POSITIVES * parts * n_anchors, b_count.to(tl.float32), mask=m_row)
    if not NEGATIVES:
        tl.store(p_out + NEAR * parts * n_anchors, b_near, mask=m_row)


@triton.jit(do_not_specialize=("n_anchors", "n_keys"))
def few_draws_kernel(
    p_anchors, p_keys, p_labels, p_key_labels, p_groups, p_key_groups, p_exclude,  # as of `few_value_kernel`
    p_parts,  # [5, parts, N]
    n_anchors, n_keys, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, CLEAN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Under "negatives": what the positives among one part of the keys add to each anchor."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    first, stop = share(tl.cdiv(n_keys, BLOCK_M), part, parts)
    anchors = load_anchors(p_anchors, p_labels, p_groups, p_exclude, n_anchors, WIDTH, CLEAN, BLOCK_N, BLOCK_D)
    o_anchor = anchors[0]
    b_near, b_pull = draw_tiles(
        anchors, p_keys, p_key_labels, p_key_groups, first * BLOCK_M, stop * BLOCK_M, n_keys, scale2,
        merged_lse(p_parts, o_anchor, n_anchors, parts), WIDTH, SELF, CLEAN, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    m_row, p_out = o_anchor < n_anchors, p_parts + part * n_anchors + o_anchor
    tl.store(p_out + NEAR * parts * n_anchors, b_near, mask=m_row)
    tl.store(p_out + PULLS * parts * n_anchors, b_pull, mask=m_row)


@triton.jit
def merged_lse(p_parts, o_anchor, n_anchors, parts):
    """Log-sum-exp (base 2) of each anchor over all parts of the keys."""
    p_top, p_sum = p_parts + TOP * parts * n_anchors, p_parts + SUM_OF * parts * n_anchors
    b_top, b_sum = merged_denominator(p_top, p_sum, o_anchor, n_anchors, parts)
    return tl.log2(b_sum) + finite_or_zero(b_top)


@triton.jit
def added(p_parts, o_anchor, n_anchors, parts):
    """The sum of a number of each anchor over all parts of the keys, in their order."""
    b_total = tl.zeros(o_anchor.shape, tl.float32)
    for part in range(0, parts):
        b_total += tl.load(p_parts + part * n_anchors + o_anchor, mask=o_anchor < n_anchors, other=0.0)
    return b_total


@triton.jit(do_not_specialize=("n_anchors", "parts"))
def few_merge_kernel(
    p_parts, p_state,  # [5, parts, N], [4, N]
    n_anchors, parts, NEGATIVES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The state of each anchor from what the parts of the keys add to it."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_lse, each = merged_lse(p_parts, o_anchor, n_anchors, parts), parts * n_anchors
    b_near = added(p_parts + NEAR * each, o_anchor, n_anchors, parts)
    b_pull = added(p_parts + PULLS * each, o_anchor, n_anchors, parts) if NEGATIVES else b_near
    b_count = added(p_parts + POSITIVES * each, o_anchor, n_anchors, parts)
    store_state(p_state, o_anchor, n_anchors, b_lse, b_near, b_pull, b_count, NEGATIVES)
