# SPDX-License-Identifier: Apache-2.0
"""Pixel kernels: rows gathered from a feature map of any layout, and their gradients put back in a fixed order."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pixel_offset(o_pixel, size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x):
    """Offset in memory of channel 0 of each pixel, numbered over [B, Z, Y, X]."""
    o_x = o_pixel % size_x
    o_y = o_pixel // size_x % size_y
    o_z = o_pixel // size_x // size_y % size_z
    o_image = o_pixel // size_x // size_y // size_z
    return o_image * stride_b + o_z * stride_z + o_y * stride_y + o_x * stride_x


@triton.jit(do_not_specialize=("n_rows", "n_pixels", "size_z", "size_y", "size_x"))
def gather_kernel(
    p_map, p_index, p_rows,  # [B, D, Z, Y, X] of any stride, [n], [n, D]
    n_rows, n_pixels, size_z, size_y, size_x, stride_b, stride_d, stride_z, stride_y, stride_x,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row of each pixel; an index outside the map, such as -1, gives zeros and is not read."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_channel = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    m_row = o_row < n_rows
    b_index = tl.load(p_index + o_row, mask=m_row, other=-1)
    m_pixel = (b_index >= 0) & (b_index < n_pixels)
    m_channel = (o_channel < WIDTH)[None, :]
    o_pixel = pixel_offset(
        tl.where(m_pixel, b_index, 0), size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x
    )
    p_pixel = p_map + o_pixel[:, None] + o_channel[None, :] * stride_d
    b_rows = tl.load(p_pixel, mask=m_pixel[:, None] & m_channel, other=0.0)
    tl.store(p_rows + o_row[:, None] * WIDTH + o_channel[None, :], b_rows, mask=m_row[:, None] & m_channel)


@triton.jit(do_not_specialize=("n_rows", "n_pixels", "size_z", "size_y", "size_x"))
def gather_backward_kernel(
    p_grad, p_index, p_order, p_map,  # [n, D], [n] sorted, [n] row of each, [B, D, Z, Y, X] of any stride
    n_rows, n_pixels, size_z, size_y, size_x, stride_b, stride_d, stride_z, stride_y, stride_x,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Each run of equal indices is summed by its first place alone, in the order of the rows: no atomics."""
    o_place = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_channel = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    b_index = tl.load(p_index + o_place, mask=o_place < n_rows, other=-1)
    b_before = tl.load(p_index + o_place - 1, mask=(o_place > 0) & (o_place < n_rows), other=-1)
    m_first = (b_index >= 0) & (b_index < n_pixels) & (b_index != b_before)
    m_channel = (o_channel < WIDTH)[None, :]
    b_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    o_next = o_place
    m_run = m_first
    while tl.max(m_run.to(tl.int32), 0) > 0:
        b_row = tl.load(p_order + o_next, mask=m_run, other=0)
        p_row = p_grad + b_row[:, None] * WIDTH + o_channel[None, :]
        b_sum += tl.load(p_row, mask=m_run[:, None] & m_channel, other=0.0).to(tl.float32)
        o_next += 1
        m_run = m_run & (tl.load(p_index + o_next, mask=m_run & (o_next < n_rows), other=-1) == b_index)
    o_pixel = pixel_offset(
        tl.where(m_first, b_index, 0), size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x
    )
    p_pixel = p_map + o_pixel[:, None] + o_channel[None, :] * stride_d
    tl.store(p_pixel, b_sum.to(p_map.dtype.element_ty), mask=m_first[:, None] & m_channel)
