# SPDX-License-Identifier: Apache-2.0
"""Row normalisation kernels: unit rows, and the gradient through the norm."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit(do_not_specialize=("n_rows",))
def unit_rows_kernel(
    p_rows, p_labels, p_unit, p_inverse,  # [n, D] of any stride, [n], [n, D] or None: norms alone, [n]
    n_rows, row_stride, column_stride,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`u = x / |x|` and `1 / |x|`; an ignored row is not read, it and a zero row give zeros."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_column = tl.arange(0, BLOCK_D)
    m_row = o_row < n_rows
    m_read = tl.load(p_labels + o_row, mask=m_row, other=-1) >= 0
    b_top = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_read[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_rows + o_row[:, None] * row_stride + o_part[None, :] * column_stride
        b_top = tl.maximum(b_top, tl.max(tl.abs(tl.load(p_part, mask=m_part, other=0.0).to(tl.float32)), 1))
    m_zero = b_top == 0.0
    b_top = tl.where(m_zero, 1.0, b_top)
    b_square = tl.zeros([BLOCK_N], tl.float32)  # of the row over its largest number: no square overflows or vanishes
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_read[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_rows + o_row[:, None] * row_stride + o_part[None, :] * column_stride
        b_part = tl.load(p_part, mask=m_part, other=0.0).to(tl.float32) / b_top[:, None]
        b_square += tl.sum(b_part * b_part, 1)
    b_inverse = tl.div_rn(tl.full([BLOCK_N], 1.0, tl.float32), tl.sqrt_rn(tl.where(m_zero, 1.0, b_square)) * b_top)
    b_inverse = tl.where(m_zero, 0.0, tl.where(b_inverse == float("inf"), LARGEST, b_inverse))
    tl.store(p_inverse + o_row, b_inverse, mask=m_row)
    if p_unit is None:
        return
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_column = (o_part < WIDTH)[None, :]
        p_part = p_rows + o_row[:, None] * row_stride + o_part[None, :] * column_stride
        b_part = tl.load(p_part, mask=m_read[:, None] & m_column, other=0.0).to(tl.float32) * b_inverse[:, None]
        p_out = p_unit + o_row[:, None] * WIDTH + o_part[None, :]
        tl.store(p_out, b_part.to(p_unit.dtype.element_ty), mask=m_row[:, None] & m_column)


@triton.jit(do_not_specialize=("n_rows",))
def unit_rows_backward_kernel(
    p_grad, p_unit, p_inverse, p_out,  # [n, D] of any stride, [n, D], [n], [n, D]
    n_rows, row_stride, column_stride,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`(g - u <u, g>) / norm`."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_column = tl.arange(0, BLOCK_D)
    m_row = o_row < n_rows
    b_inverse = tl.load(p_inverse + o_row, mask=m_row, other=0.0)
    b_radial = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_row[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_grad + o_row[:, None] * row_stride + o_part[None, :] * column_stride
        b_grad = tl.load(p_part, mask=m_part, other=0.0).to(tl.float32)
        b_unit = tl.load(p_unit + o_row[:, None] * WIDTH + o_part[None, :], mask=m_part, other=0.0).to(tl.float32)
        b_radial += tl.sum(b_unit * b_grad, 1)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + o_column).to(tl.int64)
        m_part = m_row[:, None] & (o_part < WIDTH)[None, :]
        p_part = p_grad + o_row[:, None] * row_stride + o_part[None, :] * column_stride
        o_dense = o_row[:, None] * WIDTH + o_part[None, :]
        b_grad = tl.load(p_part, mask=m_part, other=0.0).to(tl.float32)
        b_unit = tl.load(p_unit + o_dense, mask=m_part, other=0.0).to(tl.float32)
        b_result = (b_grad - b_unit * b_radial[:, None]) * b_inverse[:, None]
        tl.store(p_out + o_dense, b_result.to(p_out.dtype.element_ty), mask=m_part)
