# SPDX-License-Identifier: Apache-2.0
"""The gradient kernel: rows that are keys, anchors, or both stay; the other side streams past."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.plan import (
    comparable,
    count_far,
    count_near,
    far_tile,
    inside,
    load_run,
    load_zone,
    near_tile,
    plan_tiles,
    share,
)
from secl_ops.engines.triton.primitives import dot_rows, load_order, row_offset, sigmoid2, tile_pointers, value_product


@triton.jit
def load_state(p_state, o_place, stride, NUMBER: tl.constexpr):
    """One of the numbers of the backward pass [4, n']: log-sum-exp (base 2), push, draw, push / 2^log-sum-exp."""
    return tl.load(p_state + NUMBER * stride + o_place)


@triton.jit
def attraction(b_gap, NEGATIVES: tl.constexpr):
    """How strongly a positive pulls: as far as it lies below its negatives, or alike."""
    b_pull = sigmoid2(b_gap) if NEGATIVES else tl.full(b_gap.shape, 1.0, tl.float32)
    return b_pull


@triton.jit
def pair_weights(b_dot, scale2, row, column, m_inside, m_positive,
                 NEGATIVES: tl.constexpr, ROWS_ARE_ANCHORS: tl.constexpr, ROWS_ARE_KEYS: tl.constexpr,
                 BOUNDED: tl.constexpr):  # fmt: skip
    """`d loss / d s` of each pair; in self-contrast the one of both its anchors.

    Without masks every pair is in the denominator and none is positive. With BOUNDED both roles share an exponential.
    """
    b_logit = b_dot * scale2
    row_lse, row_push, row_draw, row_rate = row
    column_lse, column_push, column_draw, column_rate = column
    if BOUNDED:
        b_term = tl.exp2(b_logit)
        if ROWS_ARE_ANCHORS and ROWS_ARE_KEYS:
            b_weight = b_term * (row_rate[:, None] + column_rate[None, :])
        elif ROWS_ARE_ANCHORS:
            b_weight = b_term * row_rate[:, None]
        else:
            b_weight = b_term * column_rate[None, :]
    else:
        b_weight = tl.zeros(b_dot.shape, tl.float32)
        if ROWS_ARE_ANCHORS:
            b_weight += row_push[:, None] * tl.exp2(b_logit - row_lse[:, None])
        if ROWS_ARE_KEYS:
            b_weight += column_push[None, :] * tl.exp2(b_logit - column_lse[None, :])
    if m_inside is not None:
        b_weight = tl.where(m_inside, b_weight, 0.0)
    if m_positive is not None:
        b_pull = tl.zeros(b_dot.shape, tl.float32)
        if ROWS_ARE_ANCHORS:
            b_pull += row_draw[:, None] * attraction(row_lse[:, None] - b_logit, NEGATIVES)
        if ROWS_ARE_KEYS:
            b_pull += column_draw[None, :] * attraction(column_lse[None, :] - b_logit, NEGATIVES)
        b_weight -= tl.where(m_positive, b_pull, 0.0)
    return b_weight


@triton.jit
def load_roles(p_state, o_place, stride, ROLE: tl.constexpr, BOUNDED: tl.constexpr, NEAR: tl.constexpr):
    """What `pair_weights` must know of a side that are anchors: only what it will use is read."""
    b_lse = tl.zeros(o_place.shape, tl.float32)
    b_push = b_lse
    b_draw = b_lse
    b_rate = b_lse
    if ROLE:
        if BOUNDED:
            b_rate = load_state(p_state, o_place, stride, 3)
        else:
            b_push = load_state(p_state, o_place, stride, 1)
        if NEAR:
            b_draw = load_state(p_state, o_place, stride, 2)
        if NEAR or not BOUNDED:
            b_lse = load_state(p_state, o_place, stride, 0)
    return b_lse, b_push, b_draw, b_rate


@triton.jit
def any_live(p_live, count, BATCH: tl.constexpr):
    """Whether any of these tiles holds an anchor that counts."""
    b_live = tl.zeros([BATCH], tl.int32)
    for start in range(0, count, BATCH):
        o_tile = start + tl.arange(0, BATCH)
        b_live = tl.maximum(b_live, tl.load(p_live + o_tile, mask=o_tile < count, other=0))
    return tl.max(b_live, 0) > 0


@triton.jit(do_not_specialize=("n_rows", "n_columns", "state_stride", "tiles"))
def gradient_kernel(
    p_rows, p_columns,  # [R', WIDTH], [C', WIDTH]: keys and anchors, anchors and keys, or the same rows twice
    p_state, p_live,  # [4, n'] of the anchors, [tiles] whether any of them counts
    p_run, p_own, p_exclude,  # [2, R] each, the last or None: places met, those of the own class, zone of exclusion
    p_excluded,  # [C] of streamed anchors, or None: the row that each must not see
    p_order, p_grad,  # [R], [R, OUT]; in several parts None, [parts, R, OUT]
    n_rows, n_columns, state_stride, tiles, scale2,
    WIDTH: tl.constexpr, OUT: tl.constexpr, SELF: tl.constexpr, BOUNDED: tl.constexpr, NEGATIVES: tl.constexpr,
    POSITIVE: tl.constexpr, ROWS_ARE_ANCHORS: tl.constexpr, ROWS_ARE_KEYS: tl.constexpr, BATCH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Gradient of sum_i weight_i loss_i with respect to the rows, in whichever roles they play."""
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part, parts = tl.program_id(2), tl.num_programs(2)
    run, zone = load_run(p_run, o_row, n_rows), load_zone(p_exclude, o_row, n_rows, SELF)
    b_grad = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    own = load_run(p_own, o_row, n_rows)
    near, far = plan_tiles(run, own, zone, BLOCK_M, POSITIVE)
    o_chunk, o_tile = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    p_row = tile_pointers(p_rows + row_offset(tl.program_id(0) * BLOCK_N, WIDTH), tl.arange(0, BLOCK_N), o_chunk, WIDTH)
    p_other, p_value = tile_pointers(p_columns, o_tile, o_chunk, WIDTH), tile_pointers(p_columns, o_tile, o_out, WIDTH)
    b_row = tl.load(p_row)
    row = load_roles(p_state, o_row, state_stride, ROWS_ARE_ANCHORS, BOUNDED, True)
    start, stop = share(count_far(far), part, parts)
    for place in range(start, stop):
        first = far_tile(far, place) * BLOCK_M
        skip = row_offset(first, WIDTH)
        b_dot, b_column = dot_rows(b_row, p_row, p_other + skip, WIDTH, BLOCK_D)
        column = load_roles(p_state, first + o_tile, state_stride, ROWS_ARE_KEYS, BOUNDED, False)
        b_weight = pair_weights(
            b_dot, scale2, row, column, None, None, NEGATIVES, ROWS_ARE_ANCHORS, ROWS_ARE_KEYS, BOUNDED
        )
        if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
            b_column = tl.load(p_value + skip)
        b_grad = value_product(b_weight, b_column, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    start, stop = share(count_near(near), part, parts)
    for place in range(start, stop):
        first = near_tile(near, place) * BLOCK_M
        o_column = first + o_tile
        skip = row_offset(first, WIDTH)
        m_pair = comparable(o_row, o_column, run, zone, p_excluded, n_columns)
        m_own = inside(o_column, own[0], own[1])
        m_positive = m_pair & m_own if POSITIVE else None
        m_inside = m_pair & ~m_own if NEGATIVES or not POSITIVE else m_pair
        b_dot, b_column = dot_rows(b_row, p_row, p_other + skip, WIDTH, BLOCK_D)
        column = load_roles(p_state, o_column, state_stride, ROWS_ARE_KEYS, BOUNDED, True)
        b_weight = pair_weights(
            b_dot, scale2, row, column, m_inside, m_positive, NEGATIVES, ROWS_ARE_ANCHORS, ROWS_ARE_KEYS, BOUNDED
        )
        if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
            b_column = tl.load(p_value + skip)
        b_grad = value_product(b_weight, b_column, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    m_row, m_live = o_row < n_rows, run[0] < run[1]
    if SELF:  # without an anchor that counts the gradient is 0, also where a row is NaN
        m_live = m_live & any_live(p_live, tiles, BATCH)
    elif ROWS_ARE_ANCHORS:
        m_counted = load_state(p_state, o_row, state_stride, 1) != 0.0
        m_live = m_live & (m_counted | (load_state(p_state, o_row, state_stride, 2) != 0.0))
    o_place = part.to(tl.int64) * n_rows + load_order(p_order, o_row, m_row)
    m_out = m_row[:, None] & (o_out < OUT)[None, :]
    tl.store(p_grad + o_place[:, None] * OUT + o_out[None, :], tl.where(m_live[:, None], b_grad, 0.0), mask=m_out)


@triton.jit(do_not_specialize=("n_rows", "parts"))
def sum_parts_kernel(
    p_parts, p_order, p_grad,  # [parts, R, OUT], [R], [R, OUT]
    n_rows, parts,
    OUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The parts of a gradient, added in their order, each row where it belongs."""
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_row = o_row < n_rows
    m_out = m_row[:, None] & (o_out < OUT)[None, :]
    b_grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for part in range(0, parts):
        o_place = n_rows.to(tl.int64) * part + o_row
        b_grad += tl.load(p_parts + o_place[:, None] * OUT + o_out[None, :], mask=m_out, other=0.0)
    o_place = load_order(p_order, o_row, m_row).to(tl.int64)
    tl.store(p_grad + o_place[:, None] * OUT + o_out[None, :], b_grad, mask=m_out)
