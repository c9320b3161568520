# SPDX-License-Identifier: Apache-2.0
"""The mathematics of the Triton kernels, stated once: row tiles, products, pair rules, log-sum-exp, coefficients.

Logits are in base 2 here: `scale2 = scale * log2(e)`, so that `exp(s) = exp2(scale2 * <a, k>)`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
LAST_RANK = tl.constexpr(2**63 - 1)


@triton.jit
def load_rows(p_rows, o_row, m_row, o_column, WIDTH: tl.constexpr):
    """Tile of a contiguous [n, WIDTH] matrix; rows outside the mask are not read and come as zeros."""
    m_tile = m_row[:, None] & (o_column < WIDTH)[None, :]
    return tl.load(p_rows + o_row.to(tl.int64)[:, None] * WIDTH + o_column[None, :], mask=m_tile, other=0.0)


INTERPRETED = tl.constexpr(isinstance(load_rows, InterpretedFunction))


@triton.jit
def product(b_left, b_right, b_sum):
    """`b_sum + b_left @ b_right` in fp32: bf16 and fp16 on tensor cores, fp32 exactly."""
    if INTERPRETED:  # the interpreter multiplies the bits of bf16 numbers
        b_left = b_left.to(tl.float32)
        b_right = b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@triton.jit
def value_product(b_weight, b_rows, b_sum):
    """`b_sum + b_weight @ b_rows`, the weights rounded as far as the rows are.

    fp16 cannot hold probabilities (they underflow at temperatures below 0.1): tf32 holds fp16 rows exactly and
    the weights with fp16's precision and fp32's range.
    """
    if b_rows.dtype == tl.float16:
        b_sum = tl.dot(b_weight, b_rows.to(tl.float32), b_sum, input_precision="tf32")
    else:
        b_sum = product(b_weight.to(b_rows.dtype), b_rows, b_sum)
    return b_sum


@triton.jit
def dot_rows(b_row, p_row, o_row, m_row, p_column, o_column, m_column,
             WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """`<row, column>` of every pair [BN, BM], and the column tile [BM, BLOCK_D]: the last chunk of several."""
    b_dot = tl.zeros([o_row.shape[0], o_column.shape[0]], tl.float32)
    o_chunk = tl.arange(0, BLOCK_D)
    if BLOCK_D >= WIDTH:
        b_column = load_rows(p_column, o_column, m_column, o_chunk, WIDTH)
        b_dot = product(b_row, tl.trans(b_column), b_dot)  # [BN, D] @ [D, BM] -> [BN, BM]
    else:
        b_column = tl.zeros([o_column.shape[0], BLOCK_D], p_column.dtype.element_ty)
        for start in range(0, WIDTH, BLOCK_D):
            b_part = load_rows(p_row, o_row, m_row, start + o_chunk, WIDTH)
            b_column = load_rows(p_column, o_column, m_column, start + o_chunk, WIDTH)
            b_dot = product(b_part, tl.trans(b_column), b_dot)  # [BN, BD] @ [BD, BM] -> [BN, BM]
    return b_dot, b_column


@triton.jit
def load_side(p_labels, p_groups, o_row, length):
    """Label and group of each row; past the end the label is -1: ignored."""
    m_row = o_row < length
    b_label = tl.load(p_labels + o_row, mask=m_row, other=-1)
    b_group = b_label if p_groups is None else tl.load(p_groups + o_row, mask=m_row, other=0)
    return b_label, b_group


@triton.jit
def load_order(p_order, o_place, length):
    """The row at each place of an order, the place itself without one; past the end a row past the end."""
    if p_order is None:
        o_row = o_place
    else:
        o_row = tl.load(p_order + o_place, mask=o_place < length, other=2147483647).to(tl.int32)
    return o_row


@triton.jit
def rank_span(b_label, b_group, GROUPS: tl.constexpr):
    """Least and largest rank, group * 2^32 + label, of the rows that count; of none the least is above the largest."""
    b_rank = b_label.to(tl.int64)
    if GROUPS:
        b_rank += b_group.to(tl.int64) << 32
    m_row = b_label >= 0
    return tl.min(tl.where(m_row, b_rank, LAST_RANK), 0), tl.max(tl.where(m_row, b_rank, -LAST_RANK), 0)


@triton.jit
def ranks_below(p_rank, length, rank, SAME: tl.constexpr):
    """How many of the ascending ranks are below this one, or the same where SAME."""
    low, high = length * 0, length
    while low < high:
        middle = low + (high - low) // 2
        found = tl.load(p_rank + middle).to(tl.int64)
        below = found < rank
        if SAME:
            below = found <= rank
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def load_exclude(p_exclude, o_anchor, length):
    """The key each anchor must not see, -1 for none."""
    if p_exclude is None:
        b_exclude = tl.full(o_anchor.shape, -1, tl.int32)
    else:
        b_wide = tl.load(p_exclude + o_anchor, mask=o_anchor < length, other=-1)
        b_exclude = tl.where((b_wide < 0) | (b_wide > 2147483647), -1, b_wide).to(tl.int32)
    return b_exclude


@triton.jit
def load_factor(p_factor, o_row, length):
    """The number that each row is multiplied by."""
    return tl.load(p_factor + o_row, mask=o_row < length, other=0.0)


@triton.jit
def pair_masks(o_anchor, b_anchor_label, b_anchor_group, b_exclude, o_key, b_key_label, b_key_group,
               positive_start, negative_stop,
               SELF: tl.constexpr, GROUPS: tl.constexpr, EXCLUDE: tl.constexpr):  # fmt: skip
    """Positive and negative pairs; the caller's axes decide which side lies along the rows."""
    m_pair = (b_anchor_label >= 0) & (b_key_label >= 0)
    if SELF:
        m_pair = m_pair & (o_anchor != o_key)
    if EXCLUDE:
        m_pair = m_pair & (b_exclude != o_key)
    if GROUPS:
        m_pair = m_pair & (b_anchor_group == b_key_group)
    m_same = b_anchor_label == b_key_label
    m_positive = m_pair & m_same & (o_key >= positive_start)
    m_negative = m_pair & (b_anchor_label != b_key_label) & (o_key < negative_stop)
    return m_positive, m_negative


@triton.jit
def finite_or_zero(b_top):
    """A maximum that can be subtracted: an empty or an infinite row keeps its logits as they are."""
    return tl.where(tl.abs(b_top) == float("inf"), 0.0, b_top)


@triton.jit
def merge_logits(b_logit, b_top, b_sum, BOUNDED: tl.constexpr):
    """One tile into a running log-sum-exp: the new maximum and sum, the factor on what was summed, the tile's terms.

    With BOUNDED the maximum is a bound known beforehand and stays.
    """
    if BOUNDED:
        b_term = tl.exp2(b_logit - b_top[:, None])
        b_shrink = tl.full(b_top.shape, 1.0, tl.float32)
        b_next = b_top
    else:
        b_next = tl.maximum(b_top, tl.max(b_logit, 1))
        b_shift = finite_or_zero(b_next)
        b_term = tl.exp2(b_logit - b_shift[:, None])
        b_shrink = tl.exp2(tl.where(b_top == float("-inf"), b_top, finite_or_zero(b_top) - b_shift))
    return b_next, b_sum * b_shrink + tl.sum(b_term, 1), b_shrink, b_term


@triton.jit
def sigmoid2(b_logit):
    """`1 / (1 + 2^-x)`."""
    return 1.0 / (1.0 + tl.exp2(-b_logit))


@triton.jit
def softplus2(b_logit):
    """`ln(1 + 2^x)`, relative precision kept where it is small."""
    b_tail = tl.exp2(-tl.abs(b_logit))
    b_series = b_tail * (1.0 - b_tail * (1.0 / 2 - b_tail * (1.0 / 3 - b_tail * (1.0 / 4 - b_tail * (1.0 / 5)))))
    b_log = tl.where(b_tail < 0.03125, b_series, tl.log2(1.0 + b_tail) * LN2)
    return tl.where(b_logit != b_logit, b_logit, tl.maximum(b_logit, 0.0) * LN2 + b_log)


@triton.jit
def pair_coefficients(b_logit, m_positive, m_negative, b_lse, b_push, b_attract, NEGATIVES: tl.constexpr):
    """`d loss / d s` of each pair; push and attract are the anchor's push and draw times its factor."""
    b_gap = b_logit - b_lse
    if NEGATIVES:
        m_inside = m_negative
        b_pulled = b_attract * sigmoid2(-b_gap)
    else:
        m_inside = m_positive | m_negative
        b_pulled = tl.broadcast_to(b_attract, b_logit.shape)
    return tl.where(m_inside, b_push * tl.exp2(b_gap), 0.0) - tl.where(m_positive, b_pulled, 0.0)


@triton.jit
def load_anchor_state(p_weight, weight_stride, p_push, p_draw, p_lse, o_anchor, length, scale):
    """Base-2 log-sum-exp, push and attract of `pair_coefficients`, and whether the anchor counts.

    One upstream number for all anchors is read through a stride of 0.
    """
    m_row = o_anchor < length
    b_push = tl.load(p_push + o_anchor, mask=m_row, other=0.0)
    b_draw = tl.load(p_draw + o_anchor, mask=m_row, other=0.0)
    m_counted = (b_push != 0.0) | (b_draw != 0.0)
    b_factor = scale * tl.load(p_weight + o_anchor.to(tl.int64) * weight_stride, mask=m_row, other=0.0).to(tl.float32)
    b_lse = tl.load(p_lse + o_anchor, mask=m_row, other=0.0) * LOG2E
    return b_lse, b_factor * b_push, b_factor * b_draw, m_counted


@triton.jit
def inverse_norm(p_row, m_read, column_stride, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """`1 / |x|` of the rows [n, WIDTH] that start at these pointers; 0 for a zero row and for one not read."""
    o_column = tl.arange(0, BLOCK_D)
    b_top = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_read[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_row[:, None] + o_part[None, :] * column_stride
        b_top = tl.maximum(b_top, tl.max(tl.abs(tl.load(p_part, mask=m_part, other=0.0).to(tl.float32)), 1))
    m_zero = b_top == 0.0
    b_top = tl.where(m_zero, 1.0, b_top)
    b_square = tl.zeros([BLOCK_N], tl.float32)  # of the row over its largest number: no square overflows or vanishes
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_read[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_row[:, None] + o_part[None, :] * column_stride
        b_part = tl.load(p_part, mask=m_part, other=0.0).to(tl.float32) / b_top[:, None]
        b_square += tl.sum(b_part * b_part, 1)
    b_inverse = tl.div_rn(tl.full([BLOCK_N], 1.0, tl.float32), tl.sqrt_rn(tl.where(m_zero, 1.0, b_square)) * b_top)
    return tl.where(m_zero, 0.0, tl.where(b_inverse == float("inf"), LARGEST, b_inverse))


@triton.jit
def copy_unit(p_row, m_read, column_stride, b_inverse, p_unit, m_row,
              WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Rows times their inverse norm into a dense matrix whose rows start at `p_unit`."""
    o_column = tl.arange(0, BLOCK_D)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_column = (o_part < WIDTH)[None, :]
        p_part = p_row[:, None] + o_part[None, :] * column_stride
        b_part = tl.load(p_part, mask=m_read[:, None] & m_column, other=0.0).to(tl.float32) * b_inverse[:, None]
        tl.store(p_unit[:, None] + o_part[None, :], b_part.to(p_unit.dtype.element_ty), mask=m_row[:, None] & m_column)


@triton.jit
def load_scale(p_factor, p_upstream, upstream_stride, o_row, m_row):
    """Factor of each row times the upstream number, which may be one for all; 1 without them."""
    if p_factor is None:
        b_scale = tl.full(o_row.shape, 1.0, tl.float32)
    else:
        b_upstream = tl.load(p_upstream + o_row * upstream_stride, mask=m_row, other=0.0).to(tl.float32)
        b_scale = tl.load(p_factor + o_row, mask=m_row, other=0.0) * b_upstream
    return b_scale


@triton.jit
def radial_part(p_grad, grad_stride, p_unit, m_row, b_scale,
                WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """`<u, g>` of each row of the scaled gradient, and whether any of it is not 0."""
    o_column = tl.arange(0, BLOCK_D)
    b_radial = tl.zeros([BLOCK_N], tl.float32)
    b_live = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_row[:, None] & (o_part < WIDTH)[None, :]
        b_grad = tl.load(p_grad[:, None] + o_part[None, :] * grad_stride, mask=m_part, other=0.0).to(tl.float32)
        b_unit = tl.load(p_unit[:, None] + o_part[None, :], mask=m_part, other=0.0).to(tl.float32)
        b_radial += tl.sum(b_unit * b_grad * b_scale[:, None], 1)
        b_live = tl.maximum(b_live, tl.max((b_grad != 0.0).to(tl.int32), 1))
    return b_radial, b_live > 0
