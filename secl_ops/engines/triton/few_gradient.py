# SPDX-License-Identifier: Apache-2.0
"""The gradients of few rows: those of one side in the roles that they play, and beside them the reduced loss."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.few import (
    COUNT,
    LOSS,
    LSE,
    PULL,
    few_dots,
    load_chunk,
    load_gone,
    load_names,
    pairs_of,
    real,
)
from secl_ops.engines.triton.gradient import pair_weights
from secl_ops.engines.triton.plan import share
from secl_ops.engines.triton.primitives import tile_pointers, value_product


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
    p_value, p_grad,  # [] or None, [R, WIDTH]; in several parts [parts, R, WIDTH]
    n_rows, n_others, scale, scale2,
    WIDTH: tl.constexpr, SELF: tl.constexpr, NEGATIVES: tl.constexpr, CLEAN: tl.constexpr, MEAN: tl.constexpr,
    ROWS_ARE_ANCHORS: tl.constexpr, ROWS_ARE_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Gradient of the reduced loss with respect to the rows; the first program also writes that loss."""
    n_anchors = n_rows if ROWS_ARE_ANCHORS else n_others
    value, total, live = reduced(p_state, p_weights, n_anchors, MEAN, SUM)
    part = tl.program_id(2)
    if p_value is not None and tl.program_id(0) + tl.program_id(1) + part == 0:
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
    first, stop = share(tl.cdiv(n_others, BLOCK_M), part, tl.num_programs(2))
    for start in range(first * BLOCK_M, stop * BLOCK_M, BLOCK_M):
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
    p_out = tile_pointers(p_grad, (part * n_rows + o_row).to(tl.int64), o_out, WIDTH)
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
