# SPDX-License-Identifier: Apache-2.0
"""The arranging kernel: rows copied into the order and the shape that the contrast kernels stream."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.primitives import LOG2E


@triton.jit
def arrange_state(p_upstream, upstream_stride, p_push, p_draw, p_lse, o_row, m_row, scale):
    """Base-2 log-sum-exp, push and draw times their anchor's factor, push / 2^lse, and whether the anchor counts.

    One upstream number for all anchors is read through a stride of 0.
    """
    b_push = tl.load(p_push + o_row, mask=m_row, other=0.0)
    b_draw = tl.load(p_draw + o_row, mask=m_row, other=0.0)
    m_counted = (b_push != 0.0) | (b_draw != 0.0)
    b_upstream = tl.load(p_upstream + o_row.to(tl.int64) * upstream_stride, mask=m_row, other=0.0).to(tl.float32)
    b_lse = tl.load(p_lse + o_row, mask=m_row, other=0.0) * LOG2E
    b_push, b_draw = b_push * (scale * b_upstream), b_draw * (scale * b_upstream)
    b_rate = tl.where(b_push == 0.0, 0.0, b_push * tl.exp2(-b_lse))  # an empty denominator pushes nobody
    return b_lse, b_push, b_draw, b_rate, m_counted


@triton.jit(do_not_specialize=("n_rows", "places"))
def arrange_kernel(
    p_rows, p_labels, p_order, p_factor,  # [n, D] of any stride, [n], [n], [n]: of each row, or None
    p_copies,  # [n'], or None: how often the row at each place counts in the sum of its tile
    p_out, p_sums,  # [n', WIDTH], [tiles, WIDTH]: sum of each tile, or None
    p_upstream, p_push, p_draw, p_lse,  # [n] each, the first of any stride; None: no backward pass
    p_state, p_live,  # [4, n'], [tiles]; or None
    n_rows, places, row_stride, column_stride, upstream_stride, scale,
    OUT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows by their order, an ignored one as zeros; on the way the sum of each tile and what a gradient needs."""
    o_place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_place = o_place < n_rows
    o_row = tl.load(p_order + o_place, mask=m_place, other=0)
    m_row = m_place & (tl.load(p_labels + o_row, mask=m_place, other=-1) >= 0)
    p_row = p_rows + o_row.to(tl.int64)[:, None] * row_stride + o_column.to(tl.int64)[None, :] * column_stride
    b_row = tl.load(p_row, mask=m_row[:, None] & (o_column < OUT)[None, :], other=0.0)
    if p_factor is not None:
        b_factor = tl.load(p_factor + o_row, mask=m_row, other=0.0)
        b_row = (b_row.to(tl.float32) * b_factor[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + o_place.to(tl.int64)[:, None] * WIDTH + o_column[None, :], b_row)
    if p_sums is not None:
        b_part = b_row.to(tl.float32)
        if p_copies is not None:
            b_part = b_part * tl.load(p_copies + o_place)[:, None]
        tl.store(p_sums + tl.program_id(0).to(tl.int64) * WIDTH + o_column, tl.sum(b_part, 0))
    if p_push is None:
        return
    b_lse, b_push, b_draw, b_rate, m_counted = arrange_state(
        p_upstream, upstream_stride, p_push, p_draw, p_lse, o_row, m_row, scale
    )
    if tl.program_id(1) == 0:
        tl.store(p_state + o_place, b_lse)
        tl.store(p_state + places + o_place, b_push)
        tl.store(p_state + 2 * places + o_place, b_draw)
        tl.store(p_state + 3 * places + o_place, b_rate)
        tl.store(p_live + tl.program_id(0), tl.max(m_counted.to(tl.int32), 0))
