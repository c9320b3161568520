# SPDX-License-Identifier: Apache-2.0
"""Row normalisation kernels: unit rows, and the gradient through the norm."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.primitives import copy_unit, inverse_norm, load_scale, radial_part


@triton.jit(do_not_specialize=("n_rows",))
def unit_rows_kernel(
    p_rows, p_labels, p_unit, p_inverse,  # [n, D] of any stride, [n], [n, D] or None: norms alone, [n]
    n_rows, row_stride, column_stride,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`u = x / |x|` and `1 / |x|`; an ignored row is not read, it and a zero row give zeros."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_row = o_row < n_rows
    m_read = m_row & (tl.load(p_labels + o_row, mask=m_row, other=0) >= 0)  # -1 is no byte
    p_row = p_rows + o_row * row_stride
    b_inverse = inverse_norm(p_row, m_read, column_stride, WIDTH, BLOCK_N, BLOCK_D)
    tl.store(p_inverse + o_row, b_inverse, mask=m_row)
    if p_unit is None:
        return
    copy_unit(p_row, m_read, column_stride, b_inverse, p_unit + o_row * WIDTH, m_row, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=("n_rows",), do_not_specialize_on_alignment=("p_upstream",))
def unit_rows_backward_kernel(
    p_grad, p_factor, p_upstream, p_unit, p_inverse, p_out,  # [n, D] and [n] of any stride, [n, D], [n], [n, D]
    n_rows, row_stride, column_stride, upstream_stride,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`(g - u <u, g>) / norm` of the scaled gradient; a zero gradient stays zero, whatever stands in the row."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_column = tl.arange(0, BLOCK_D)
    m_row = o_row < n_rows
    b_inverse = tl.load(p_inverse + o_row, mask=m_row, other=0.0)
    b_scale = load_scale(p_factor, p_upstream, upstream_stride, o_row, m_row)
    p_row, p_dense = p_grad + o_row * row_stride, p_unit + o_row * WIDTH
    b_radial, m_live = radial_part(p_row, column_stride, p_dense, m_row, b_scale, WIDTH, BLOCK_N, BLOCK_D)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_row[:, None] & (o_part < WIDTH)[None, :]
        b_grad = tl.load(p_row[:, None] + o_part[None, :] * column_stride, mask=m_part, other=0.0).to(tl.float32)
        b_unit = tl.load(p_dense[:, None] + o_part[None, :], mask=m_part, other=0.0).to(tl.float32)
        b_result = (b_grad * b_scale[:, None] - b_unit * b_radial[:, None]) * b_inverse[:, None]
        p_part = p_out + o_row[:, None] * WIDTH + o_part[None, :]
        tl.store(p_part, tl.where(m_live[:, None], b_result, 0.0).to(p_out.dtype.element_ty), mask=m_part)


@triton.jit
def load_factor(p_count, p_weights, o_row, m_row):
    """Number of positives, or the sum of their weights, and the weight of an anchor that has one."""
    b_count = tl.load(p_count + o_row, mask=m_row, other=0)
    if p_weights is None:
        b_weight = tl.full(o_row.shape, 1.0, tl.float32)
    else:
        b_weight = tl.load(p_weights + o_row, mask=m_row, other=0.0).to(tl.float32)
    return b_count, tl.where(b_count > 0, b_weight, 0.0)


@triton.jit(do_not_specialize=("n_rows",))
def reduce_kernel(
    p_loss, p_pull, p_count, p_weights,  # [n] each
    p_value, p_factor, p_push, p_draw,  # [] or [n], [n] each
    n_rows,
    MEAN: tl.constexpr, NONE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The reduced loss, and what it makes of each anchor: one program, so that the sum has one order."""
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, n_rows, BLOCK_N):
        o_row = start + tl.arange(0, BLOCK_N)
        m_row = o_row < n_rows
        _, b_factor = load_factor(p_count, p_weights, o_row, m_row)
        b_loss = tl.load(p_loss + o_row, mask=m_row, other=0.0) * b_factor
        if NONE:
            tl.store(p_value + o_row, b_loss, mask=m_row)
        b_sum += b_loss
        b_total += b_factor
    total = 1.0
    if MEAN:
        total = tl.sum(b_total, 0)
        total = tl.where(total > 0.0, total, 1.0)
    if not NONE:
        tl.store(p_value, tl.sum(b_sum, 0) / total)
    for start in range(0, n_rows, BLOCK_N):
        o_row = start + tl.arange(0, BLOCK_N)
        m_row = o_row < n_rows
        b_count, b_factor = load_factor(p_count, p_weights, o_row, m_row)
        b_factor = b_factor / total
        tl.store(p_factor + o_row, b_factor, mask=m_row)
        b_pull = tl.load(p_pull + o_row, mask=m_row, other=0.0)
        tl.store(p_push + o_row, b_pull * b_factor, mask=m_row)
        tl.store(p_draw + o_row, b_factor / tl.where(b_count > 0, b_count, 1).to(tl.float32), mask=m_row)
