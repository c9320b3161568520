# SPDX-License-Identifier: Apache-2.0
"""The kernels of few rows: the rows lie as they come, each pair is looked at, and a step is as few launches as it can.

`few_value_kernel`: loss, log-sum-exp and pull of each anchor.  `few_gradient_kernel`: the reduced loss, and the
gradient of the rows of one side in the roles that they play.

Nothing is put in order first, and no part of the keys is left to another program: for few rows a launch costs more.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.gradient import pair_weights
from secl_ops.engines.triton.primitives import (
    LN2,
    finite_or_zero,
    merge_logits,
    product,
    softplus2,
    tile_pointers,
    value_product,
)

LOSS, LSE, PULL, COUNT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # rows of the state [4, N]


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
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_tile, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    anchor = load_names(p_labels, p_groups, o_anchor, n_anchors)
    b_gone = load_gone(p_exclude, o_anchor, n_anchors)
    m_anchor = real(anchor[0], o_anchor, n_anchors, CLEAN)
    p_row = tile_pointers(p_anchors, o_anchor.to(tl.int64), o_column, WIDTH)
    b_top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    if BOUNDED:  # of unit rows no logit is above the scale
        b_top = tl.full([BLOCK_N], 0.0, tl.float32) + scale2
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_near = tl.zeros([BLOCK_N], tl.float32)  # of the positives: logits, or what they lack of their negatives
    b_pull = tl.zeros([BLOCK_N], tl.float32)
    b_count = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, n_keys, BLOCK_M):
        o_key = start + o_tile
        key = load_names(p_key_labels, p_key_groups, o_key, n_keys)
        m_apart = o_key[None, :] == (o_anchor if SELF else b_gone)[:, None]
        m_inside, m_positive = pairs_of(anchor, key, m_apart, NEGATIVES)
        p_key = tile_pointers(p_keys, o_key.to(tl.int64), o_column, WIDTH)
        m_key = real(key[0], o_key, n_keys, CLEAN)
        b_logit = few_dots(p_row, p_key, m_anchor, m_key, WIDTH, BLOCK_D) * scale2
        b_count += tl.sum(m_positive.to(tl.int32), 1)
        if not NEGATIVES:
            b_near += tl.sum(tl.where(m_positive, b_logit, 0.0), 1)
        b_logit = tl.where(m_inside, b_logit, float("-inf"))
        b_top, b_sum, _, _ = merge_logits(b_logit, b_top, b_sum, BOUNDED)
    b_lse = tl.log2(b_sum) + finite_or_zero(b_top)
    if NEGATIVES:
        for start in range(0, n_keys, BLOCK_M):
            o_key = start + o_tile
            key = load_names(p_key_labels, p_key_groups, o_key, n_keys)
            m_apart = o_key[None, :] == (o_anchor if SELF else b_gone)[:, None]
            _, m_positive = pairs_of(anchor, key, m_apart, NEGATIVES)
            p_key = tile_pointers(p_keys, o_key.to(tl.int64), o_column, WIDTH)
            m_key = real(key[0], o_key, n_keys, CLEAN)
            b_logit = few_dots(p_row, p_key, m_anchor, m_key, WIDTH, BLOCK_D) * scale2
            b_soft, b_slope = softplus2(b_lse[:, None] - b_logit)
            b_near += tl.sum(tl.where(m_positive, b_soft, 0.0), 1)
            b_pull += tl.sum(tl.where(m_positive, b_slope, 0.0), 1)
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


@triton.jit
def load_weight(p_state, p_weights, o_anchor, n_anchors):
    """Number of positives, and the weight of an anchor that has one."""
    m_row = o_anchor < n_anchors
    b_count = tl.load(p_state + COUNT * n_anchors + o_anchor, mask=m_row, other=0.0)
    if p_weights is None:
        b_weight = tl.full(o_anchor.shape, 1.0, tl.float32)
    else:
        b_weight = tl.load(p_weights + o_anchor, mask=m_row, other=0.0).to(tl.float32)
    return b_count, tl.where(b_count > 0.0, b_weight, 0.0)


@triton.jit
def reduced(p_state, p_weights, n_anchors, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The reduced loss, what each weight is divided by, and whether any anchor counts: in one order, everywhere."""
    b_loss = tl.zeros([BLOCK], tl.float32)
    b_total = tl.zeros([BLOCK], tl.float32)
    b_live = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n_anchors, BLOCK):
        o_anchor = start + tl.arange(0, BLOCK)
        _, b_weight = load_weight(p_state, p_weights, o_anchor, n_anchors)
        b_loss += tl.load(p_state + LOSS * n_anchors + o_anchor, mask=o_anchor < n_anchors, other=0.0) * b_weight
        b_total += b_weight
        b_live = tl.maximum(b_live, (b_weight != 0.0).to(tl.int32))
    total = tl.full([], 1.0, tl.float32)
    if MEAN:
        total = tl.sum(b_total, 0)
        total = tl.where(total > 0.0, total, 1.0)
    return tl.sum(b_loss, 0) / total, total, tl.max(b_live, 0) > 0


@triton.jit
def load_role(p_state, p_weights, o_anchor, n_anchors, total, scale):
    """What `pair_weights` must know of anchors, and which of them count."""
    b_count, b_weight = load_weight(p_state, p_weights, o_anchor, n_anchors)
    m_row = o_anchor < n_anchors
    b_lse = tl.load(p_state + LSE * n_anchors + o_anchor, mask=m_row, other=0.0)
    b_pull = tl.load(p_state + PULL * n_anchors + o_anchor, mask=m_row, other=0.0)
    b_factor = b_weight / total
    b_push, b_draw = scale * (b_pull * b_factor), scale * (b_factor / tl.maximum(b_count, 1.0))
    return (b_lse, b_push, b_draw, b_draw), (b_push != 0.0) | (b_draw != 0.0)


@triton.jit(do_not_specialize=("n_rows", "n_others"))
def few_gradient_kernel(
    p_rows, p_others,  # [R, WIDTH], [S, WIDTH]: anchors and keys, keys and anchors, or the same rows twice
    p_labels, p_other_labels, p_groups, p_other_groups, p_exclude,  # [R], [S], [R] or None, [S] or None, [N] or None
    p_state, p_weights,  # of the anchors: [4, N], [N] or None
    p_value, p_grad,  # [] or None, [R, WIDTH]
    n_rows, n_others, scale, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr, MEAN: tl.constexpr,
    ROWS_ARE_ANCHORS: tl.constexpr, ROWS_ARE_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Gradient of the reduced loss with respect to the rows; the first program also writes that loss."""
    n_anchors = n_rows if ROWS_ARE_ANCHORS else n_others
    value, total, live = reduced(p_state, p_weights, n_anchors, MEAN, SUM)
    if p_value is not None and tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(p_value, value)
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o_tile, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row = load_names(p_labels, p_groups, o_row, n_rows)
    m_read = real(row[0], o_row, n_rows, CLEAN)
    p_row = tile_pointers(p_rows, o_row.to(tl.int64), o_column, WIDTH)
    role, m_counted = load_role(p_state, p_weights, o_row, n_anchors, total, scale)
    b_gone = load_gone(p_exclude, o_row, n_rows) if ROWS_ARE_ANCHORS else o_row.to(tl.int64)
    b_grad = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    for start in range(0, n_others, BLOCK_M):
        o_other = start + o_tile
        other = load_names(p_other_labels, p_other_groups, o_other, n_others)
        other_role, m_other_counted = load_role(p_state, p_weights, o_other, n_anchors, total, scale)
        if SELF:
            m_apart = o_row[:, None] == o_other[None, :]
        elif ROWS_ARE_ANCHORS:
            m_apart = (b_gone[:, None] == o_other[None, :]) | ~m_counted[:, None]
        else:  # an anchor that does not count is no anchor: no NaN of its row reaches a key
            m_apart = (b_gone[:, None] == load_gone(p_exclude, o_other, n_others)[None, :]) | ~m_other_counted[None, :]
        m_inside, m_positive = pairs_of(row, other, m_apart, NEGATIVES)
        m_other = real(other[0], o_other, n_others, CLEAN)
        if not (SELF or ROWS_ARE_ANCHORS):
            m_other = m_other & m_other_counted
        o_place = o_other.to(tl.int64)
        b_dot = few_dots(p_row, tile_pointers(p_others, o_place, o_column, WIDTH), m_read, m_other, WIDTH, BLOCK_D)
        b_weight = pair_weights(
            b_dot, scale2, role, other_role, m_inside, m_positive, NEGATIVES, ROWS_ARE_ANCHORS, ROWS_ARE_KEYS, False
        )
        b_other = load_chunk(tile_pointers(p_others, o_place, o_out, WIDTH), o_out, m_other, WIDTH)
        b_grad = value_product(b_weight, b_other, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    m_live = row[0] >= 0
    if SELF:  # without an anchor that counts the gradient is 0, also where a row is NaN
        m_live = m_live & live
    elif ROWS_ARE_ANCHORS:
        m_live = m_live & m_counted
    m_out = (o_row < n_rows)[:, None] & (o_out < WIDTH)[None, :]
    p_out = tile_pointers(p_grad, o_row.to(tl.int64), o_out, WIDTH)
    tl.store(p_out, tl.where(m_live[:, None], b_grad, 0.0), mask=m_out)


@triton.jit(do_not_specialize=("n_anchors",))
def few_reduce_kernel(
    p_state, p_weights,  # [4, N], [N] or None
    p_value,  # []
    n_anchors, MEAN: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The reduced loss, where no gradient is asked for."""
    value, _, _ = reduced(p_state, p_weights, n_anchors, MEAN, SUM)
    tl.store(p_value, value)
