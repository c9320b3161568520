# SPDX-License-Identifier: Apache-2.0
"""The kernel of the sigmoid loss: anchors stay and keys stream past, or for the keys' gradient the other way round."""

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
    places_of,
    plan_tiles,
    share,
)
from secl_ops.engines.triton.primitives import (
    LOG2E,
    dot_rows,
    load_order,
    row_offset,
    softplus_pair2,
    tile_pointers,
    value_product,
)


@triton.jit
def load_number(p_number, number):
    """A tensor of one element, or without one the number itself."""
    found = number
    if p_number is not None:
        found = tl.load(p_number).to(tl.float32)
    return found


@triton.jit
def verdicts(b_logit, m_counted, m_positive):
    """Loss and slope of each pair of these logits in base 2; without masks all count, and none is positive."""
    b_gap = b_logit if m_positive is None else tl.where(m_positive, -b_logit, b_logit)
    b_loss, b_slope = softplus_pair2(b_gap)
    if m_positive is not None:
        b_slope = tl.where(m_positive, -b_slope, b_slope)
    if m_counted is not None:
        b_loss = tl.where(m_counted, b_loss, 0.0)
        b_slope = tl.where(m_counted, b_slope, 0.0)
    return b_loss, b_slope


@triton.jit
def sigmoid_tile(b_dot, scale2, bias2, m_counted, m_positive, p_weight, o_column, n_columns, b_loss, b_tilt):
    """One tile of the other side into the sums of each row; what its rows are multiplied by."""
    b_cost, b_slope = verdicts(b_dot * scale2 + bias2, m_counted, m_positive)
    if p_weight is None:
        b_loss += tl.sum(b_cost, 1)
        b_tilt += tl.sum(b_slope, 1)
    else:
        b_slope *= tl.load(p_weight + o_column, mask=o_column < n_columns, other=0.0)[None, :]
    return b_slope, b_loss, b_tilt


@triton.jit(do_not_specialize=("n_rows", "n_columns"))
def sigmoid_kernel(
    p_rows, p_columns,  # [R', WIDTH], [C', WIDTH]: anchors and keys, or keys and anchors
    p_weight,  # [C] of streamed anchors by place; None: the rows are the anchors
    p_run, p_own, p_exclude,  # [2, R] each, the last or None: places met, those of the own class, zone of exclusion
    p_excluded,  # [C] of streamed anchors, or None: the row that each must not see
    p_order,  # [R]: the row at each place
    p_loss, p_tilt, p_count,  # [parts, R], [parts, R], [R] by row; None where the rows are keys
    p_grad,  # [parts, R, OUT]: sum of slope times column, by row
    p_scale, p_bias,  # [1] each, or None
    n_rows, n_columns, scale, bias,
    WIDTH: tl.constexpr, OUT: tl.constexpr, SELF: tl.constexpr, POSITIVE: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Losses and slopes of the rows' pairs with one part of the columns, and the sum of slope times column."""
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part, parts = tl.program_id(2), tl.num_programs(2)
    scale2, bias2 = load_number(p_scale, scale) * LOG2E, load_number(p_bias, bias) * LOG2E
    run, zone = load_run(p_run, o_row, n_rows), load_zone(p_exclude, o_row, n_rows, SELF)
    own = load_run(p_own, o_row, n_rows)
    near, far = plan_tiles(run, own, zone, BLOCK_M, POSITIVE)
    o_chunk, o_tile = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    p_row = tile_pointers(p_rows + row_offset(tl.program_id(0) * BLOCK_N, WIDTH), tl.arange(0, BLOCK_N), o_chunk, WIDTH)
    p_other, p_value = tile_pointers(p_columns, o_tile, o_chunk, WIDTH), tile_pointers(p_columns, o_tile, o_out, WIDTH)
    b_row = tl.load(p_row)
    b_loss = tl.zeros([BLOCK_N], tl.float32)
    b_tilt = tl.zeros([BLOCK_N], tl.float32)
    b_grad = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    start, stop = share(count_far(far), part, parts)
    for place in range(start, stop):
        first = far_tile(far, place) * BLOCK_M
        skip = row_offset(first, WIDTH)
        b_dot, b_column = dot_rows(b_row, p_row, p_other + skip, WIDTH, BLOCK_D)
        b_slope, b_loss, b_tilt = sigmoid_tile(
            b_dot, scale2, bias2, None, None, p_weight, first + o_tile, n_columns, b_loss, b_tilt
        )
        if VALUE:
            if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
                b_column = tl.load(p_value + skip)
            b_grad = value_product(b_slope, b_column, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    start, stop = share(count_near(near), part, parts)
    for place in range(start, stop):
        first = near_tile(near, place) * BLOCK_M
        o_column = first + o_tile
        skip = row_offset(first, WIDTH)
        m_counted, m_own = (
            comparable(o_row, o_column, run, zone, p_excluded, n_columns),
            inside(o_column, own[0], own[1]),
        )
        if not POSITIVE:
            m_counted = m_counted & ~m_own
        b_dot, b_column = dot_rows(b_row, p_row, p_other + skip, WIDTH, BLOCK_D)
        b_slope, b_loss, b_tilt = sigmoid_tile(
            b_dot, scale2, bias2, m_counted, m_own, p_weight, o_column, n_columns, b_loss, b_tilt
        )
        if VALUE:
            if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
                b_column = tl.load(p_value + skip)
            b_grad = value_product(b_slope, b_column, b_grad)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    m_row, m_meets = o_row < n_rows, run[0] < run[1]
    o_place = load_order(p_order, o_row, m_row)
    if p_weight is None:  # noqa: SIM102  # decided when the kernel is compiled, and with it what the stores are
        if tl.program_id(1) == 0:
            tl.store(p_loss + part * n_rows + o_place, tl.where(m_meets, b_loss, 0.0), mask=m_row)
            tl.store(p_tilt + part * n_rows + o_place, tl.where(m_meets, b_tilt, 0.0), mask=m_row)
            if part == 0:
                b_count = places_of(run, zone)
                if not POSITIVE:
                    b_count -= places_of(own, zone)
                tl.store(p_count + o_place, b_count, mask=m_row)
    if VALUE:
        o_to = part.to(tl.int64) * n_rows + o_place
        m_out = m_row[:, None] & (o_out < OUT)[None, :]
        tl.store(p_grad + o_to[:, None] * OUT + o_out[None, :], tl.where(m_meets[:, None], b_grad, 0.0), mask=m_out)
