# SPDX-License-Identifier: Apache-2.0
"""The contrast kernels: rows stay, the other side streams past; each output row is written once, by one program.

`denominator_kernel`: log-sum-exp and the softmax mean of the keys.  `positive_kernel`: the rest of the forward pass,
from the positives alone.  `gradient_kernel`: gradients from the saved state, rows being the keys, the anchors, or both.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.primitives import (
    LN2,
    dot_rows,
    finite_or_zero,
    load_anchor_state,
    load_exclude,
    load_factor,
    load_order,
    load_rows,
    load_side,
    merge_logits,
    pair_coefficients,
    pair_masks,
    rank_span,
    ranks_below,
    sigmoid2,
    softplus2,
    value_product,
)

SIZES = ("n_anchors", "n_keys", "positive_start", "negative_stop")


@triton.jit(do_not_specialize=SIZES)
def denominator_kernel(
    p_anchors, p_keys,  # [N, D], [M, D]
    p_anchor_labels, p_key_labels, p_anchor_groups, p_key_groups, p_exclude,  # [N], [M], [N], [M], [N]
    p_key_inverse,  # [M]: factor of each key, or None
    p_lse,  # [N]
    p_grad,  # [N, D]: mean_scale times the softmax mean of the keys
    n_anchors, n_keys, positive_start, negative_stop, scale2, bound2, mean_scale,
    WIDTH: tl.constexpr, NEGATIVES: tl.constexpr, SELF: tl.constexpr, BOUNDED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """First pass, over the denominator's keys: the log-sum-exp, and what it does to the anchor gradient."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    b_label, b_group = load_side(p_anchor_labels, p_anchor_groups, o_anchor, n_anchors)
    b_exclude = load_exclude(p_exclude, o_anchor, n_anchors)
    b_anchor = load_rows(p_anchors, o_anchor, b_label >= 0, tl.arange(0, BLOCK_D), WIDTH)
    b_top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    if BOUNDED:
        b_top = tl.full([BLOCK_N], 0.0, tl.float32) + bound2
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_mean = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    stop = n_keys
    if NEGATIVES:
        stop = tl.minimum(n_keys, negative_stop)
    for start in range(0, stop, BLOCK_M):
        o_key = start + tl.arange(0, BLOCK_M)
        b_key_label, b_key_group = load_side(p_key_labels, p_key_groups, o_key, n_keys)
        b_dot, b_key = dot_rows(
            b_anchor, p_anchors, o_anchor, b_label >= 0, p_keys, o_key, b_key_label >= 0, WIDTH, BLOCK_D
        )
        if p_key_inverse is not None:
            b_inverse = load_factor(p_key_inverse, o_key, n_keys)
            b_dot = b_dot * b_inverse[None, :]
        m_positive, m_inside = pair_masks(
            o_anchor[:, None], b_label[:, None], b_group[:, None], b_exclude[:, None],
            o_key[None, :], b_key_label[None, :], b_key_group[None, :], positive_start, negative_stop,
            SELF, p_anchor_groups is not None, p_exclude is not None,
        )  # fmt: skip
        if not NEGATIVES:
            m_inside = m_inside | m_positive
        b_logit = tl.where(m_inside, b_dot * scale2, float("-inf"))
        b_top, b_sum, b_shrink, b_term = merge_logits(b_logit, b_top, b_sum, BOUNDED)
        if VALUE:
            if not BOUNDED:
                b_mean = b_mean * b_shrink[:, None]
            if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
                b_key = load_rows(p_keys, o_key, b_key_label >= 0, o_out, WIDTH)
            if p_key_inverse is not None:
                b_term = b_term * b_inverse[None, :]
            b_mean = value_product(b_term, b_key, b_mean)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    b_lse = (tl.log2(b_sum) + finite_or_zero(b_top)) * LN2
    m_row = o_anchor < n_anchors
    if tl.program_id(1) == 0:
        tl.store(p_lse + o_anchor, b_lse, mask=m_row)
    if VALUE:
        b_mean = b_mean * (mean_scale / tl.where(b_sum == 0.0, 1.0, b_sum))[:, None]
        m_out = m_row[:, None] & (o_out < WIDTH)[None, :]
        tl.store(p_grad + o_anchor.to(tl.int64)[:, None] * WIDTH + o_out[None, :], b_mean, mask=m_out)


@triton.jit(do_not_specialize=SIZES)
def positive_kernel(
    p_anchors, p_keys,  # [N, D], [M, D]
    p_anchor_labels, p_key_labels, p_anchor_groups, p_key_groups, p_exclude,  # [N], [M], [N], [M], [N]
    p_key_inverse,  # [M]: factor of each key, or None
    p_anchor_order, p_key_order, p_key_rank,  # [N], [M], [M]: rows by rank, ranks of the keys in order; or None
    p_loss, p_lse, p_pull, p_count,  # [N] each
    p_grad,  # [N, D]: comes as the softmax mean of the keys unless KNOWN, leaves as d loss_i / d a_i
    n_anchors, n_keys, positive_start, negative_stop, scale2, scale,
    WIDTH: tl.constexpr, NEGATIVES: tl.constexpr, SELF: tl.constexpr, VALUE: tl.constexpr,
    KNOWN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Second pass, over tiles that hold a positive: loss, pull, count and the anchor gradient.

    Rows that lie class by class, or are visited by rank, have their positives in few tiles.
    """
    o_anchor = load_order(p_anchor_order, tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), n_anchors)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m_row = o_anchor < n_anchors
    b_label, b_group = load_side(p_anchor_labels, p_anchor_groups, o_anchor, n_anchors)
    b_exclude = load_exclude(p_exclude, o_anchor, n_anchors)
    b_anchor = load_rows(p_anchors, o_anchor, b_label >= 0, tl.arange(0, BLOCK_D), WIDTH)
    b_lse = tl.load(p_lse + o_anchor, mask=m_row, other=0.0) / LN2
    b_loss = tl.zeros([BLOCK_N], tl.float32)
    b_pull = tl.zeros([BLOCK_N], tl.float32)
    b_count = tl.zeros([BLOCK_N], tl.int32)
    b_near = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    lowest, highest = rank_span(b_label, b_group, p_anchor_groups is not None)
    if p_key_order is None:
        first, stop = (positive_start // BLOCK_M) * BLOCK_M, n_keys
    else:
        first = ranks_below(p_key_rank, n_keys, lowest, SAME=False)
        stop = ranks_below(p_key_rank, n_keys, highest, SAME=True)
    for start in range(first, stop, BLOCK_M):
        o_key = load_order(p_key_order, start + tl.arange(0, BLOCK_M), n_keys)
        b_key_label, b_key_group = load_side(p_key_labels, p_key_groups, o_key, n_keys)
        near = start < stop
        if p_key_order is None:  # cheaper than to look at every pair
            least, largest = rank_span(b_key_label, b_key_group, p_anchor_groups is not None)
            near = (least <= highest) & (largest >= lowest)
        if near:
            m_positive, _ = pair_masks(
                o_anchor[:, None], b_label[:, None], b_group[:, None], b_exclude[:, None],
                o_key[None, :], b_key_label[None, :], b_key_group[None, :], positive_start, negative_stop,
                SELF, p_anchor_groups is not None, p_exclude is not None,
            )  # fmt: skip
            b_found = tl.sum(m_positive.to(tl.int32), 1)
            if tl.sum(b_found, 0) > 0:
                b_count += b_found
                b_dot, b_key = dot_rows(
                    b_anchor, p_anchors, o_anchor, b_label >= 0, p_keys, o_key, b_key_label >= 0, WIDTH, BLOCK_D
                )
                if p_key_inverse is not None:
                    b_inverse = load_factor(p_key_inverse, o_key, n_keys)
                    b_dot = b_dot * b_inverse[None, :]
                b_gap = b_lse[:, None] - b_dot * scale2
                b_loss += tl.sum(tl.where(m_positive, softplus2(b_gap) if NEGATIVES else b_gap * LN2, 0.0), 1)
                b_weight = tl.where(m_positive, sigmoid2(b_gap) if NEGATIVES else 1.0, 0.0)
                b_pull += tl.sum(b_weight, 1)
                if VALUE:
                    if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
                        b_key = load_rows(p_keys, o_key, b_key_label >= 0, o_out, WIDTH)
                    if p_key_inverse is not None:
                        b_weight = b_weight * b_inverse[None, :]
                    b_near = value_product(b_weight, b_key, b_near)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    b_divisor = tl.maximum(b_count, 1).to(tl.float32)
    b_pull = b_pull / b_divisor
    if tl.program_id(1) == 0:
        tl.store(p_loss + o_anchor, b_loss / b_divisor, mask=m_row)
        tl.store(p_pull + o_anchor, b_pull, mask=m_row)
        tl.store(p_count + o_anchor, b_count, mask=m_row)
    if VALUE:
        p_out = p_grad + o_anchor.to(tl.int64)[:, None] * WIDTH + o_out[None, :]
        m_out = m_row[:, None] & (o_out < WIDTH)[None, :]
        b_grad = -scale * (b_near / b_divisor[:, None])
        if not KNOWN:  # a known log-sum-exp is held constant
            b_grad += (scale * b_pull)[:, None] * tl.load(p_out, mask=m_out, other=0.0)
        tl.store(p_out, tl.where((b_count > 0)[:, None], b_grad, 0.0), mask=m_out)


@triton.jit(do_not_specialize=("n_rows", "n_columns", "positive_start", "negative_stop"))
def gradient_kernel(
    p_rows, p_columns,  # [R, D], [C, D]: keys and anchors, anchors and keys, or the same rows twice
    p_row_labels, p_column_labels, p_row_groups, p_column_groups, p_exclude,  # [R], [C], [R], [C], [anchors]
    p_weight, p_push, p_draw, p_lse,  # [anchors] each, the first of any stride
    p_grad,  # [R, D]
    n_rows, n_columns, positive_start, negative_stop, weight_stride, scale2, scale,
    WIDTH: tl.constexpr, NEGATIVES: tl.constexpr, SELF: tl.constexpr,
    ROWS_ARE_ANCHORS: tl.constexpr, ROWS_ARE_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Gradient of sum_i weight_i loss_i with respect to the rows, in whichever roles they play."""
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    b_label, b_group = load_side(p_row_labels, p_row_groups, o_row, n_rows)
    b_row = load_rows(p_rows, o_row, b_label >= 0, tl.arange(0, BLOCK_D), WIDTH)
    if ROWS_ARE_ANCHORS:
        b_exclude = load_exclude(p_exclude, o_row, n_rows)
        b_lse, b_push, b_attract, m_counted = load_anchor_state(
            p_weight, weight_stride, p_push, p_draw, p_lse, o_row, n_rows, scale
        )
        b_anchor_label = tl.where(m_counted, b_label, -1)
    b_seen = tl.zeros([BLOCK_M], tl.int32)
    b_grad = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    for start in range(0, n_columns, BLOCK_M):
        o_column = start + tl.arange(0, BLOCK_M)
        b_other_label, b_other_group = load_side(p_column_labels, p_column_groups, o_column, n_columns)
        if ROWS_ARE_KEYS:
            b_other_lse, b_other_push, b_other_attract, m_other = load_anchor_state(
                p_weight, weight_stride, p_push, p_draw, p_lse, o_column, n_columns, scale
            )
            b_seen = b_seen | m_other.to(tl.int32)
            b_valid_label = tl.where(m_other, b_other_label, -1)
            if not ROWS_ARE_ANCHORS:  # an anchor that does not count is not read: no NaN of its row reaches a key
                b_other_label = b_valid_label
        b_dot, b_column = dot_rows(
            b_row, p_rows, o_row, b_label >= 0, p_columns, o_column, b_other_label >= 0, WIDTH, BLOCK_D
        )
        b_logit = b_dot * scale2
        b_weight = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        if ROWS_ARE_ANCHORS:
            m_positive, m_negative = pair_masks(
                o_row[:, None], b_anchor_label[:, None], b_group[:, None], b_exclude[:, None],
                o_column[None, :], b_other_label[None, :], b_other_group[None, :], positive_start, negative_stop,
                SELF, p_row_groups is not None, p_exclude is not None,
            )  # fmt: skip
            b_weight += pair_coefficients(
                b_logit, m_positive, m_negative, b_lse[:, None], b_push[:, None], b_attract[:, None], NEGATIVES
            )
        if ROWS_ARE_KEYS:
            b_other_exclude = load_exclude(p_exclude, o_column, n_columns)
            m_positive, m_negative = pair_masks(
                o_column[None, :], b_valid_label[None, :], b_other_group[None, :], b_other_exclude[None, :],
                o_row[:, None], b_label[:, None], b_group[:, None], positive_start, negative_stop,
                SELF, p_row_groups is not None, p_exclude is not None,
            )  # fmt: skip
            b_weight += pair_coefficients(
                b_logit, m_positive, m_negative,
                b_other_lse[None, :], b_other_push[None, :], b_other_attract[None, :], NEGATIVES,
            )  # fmt: skip
        if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
            b_column = load_rows(p_columns, o_column, b_other_label >= 0, o_out, WIDTH)
        b_grad = value_product(b_weight, b_column, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    if ROWS_ARE_KEYS:  # without an anchor that counts the gradient is 0, also where a row is NaN
        b_grad = tl.where(tl.max(b_seen, 0) > 0, b_grad, 0.0)
    else:
        b_grad = tl.where(m_counted[:, None], b_grad, 0.0)
    m_out = (o_row < n_rows)[:, None] & (o_out < WIDTH)[None, :]
    tl.store(p_grad + o_row.to(tl.int64)[:, None] * WIDTH + o_out[None, :], b_grad, mask=m_out)
