# SPDX-License-Identifier: Apache-2.0
"""Pixel kernels: labels brought to a map's size, rows gathered from it, their gradients put back in a fixed order."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.primitives import copy_unit, inverse_norm, load_scale, radial_part

SIZES = ("n_rows", "n_pixels", "size_z", "size_y", "size_x")


@triton.jit
def pixel_offset(o_pixel, size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x):
    """Offset in memory of channel 0 of each pixel, numbered over [B, Z, Y, X]."""
    o_x = o_pixel % size_x
    o_y = o_pixel // size_x % size_y
    o_z = o_pixel // size_x // size_y % size_z
    o_image = o_pixel // size_x // size_y // size_z
    return o_image * stride_b + o_z * stride_z + o_y * stride_y + o_x * stride_x


@triton.jit
def nearest(o_new, old, new):
    """The old coordinate at the centre of each new one."""
    return (2 * o_new + 1) * old // (2 * new)


@triton.jit(do_not_specialize=("n_pixels", "old_z", "old_y", "old_x", "size_z", "size_y", "size_x"))
def nearest_kernel(
    p_labels, p_eligible, p_scores,  # [B, old Z, old Y, old X] each, the last two or None
    p_new_labels, p_new_eligible, p_new_scores,  # [B, Z, Y, X]
    n_pixels, old_z, old_y, old_x, size_z, size_y, size_x,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What stands beside a feature map, brought to its size: the value at the centre of each new pixel."""
    o_pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < n_pixels
    o_x = nearest(o_pixel % size_x, old_x, size_x)
    o_y = nearest(o_pixel // size_x % size_y, old_y, size_y)
    o_z = nearest(o_pixel // size_x // size_y % size_z, old_z, size_z)
    o_old = ((o_pixel // size_x // size_y // size_z * old_z + o_z) * old_y + o_y) * old_x + o_x
    tl.store(p_new_labels + o_pixel, tl.load(p_labels + o_old, mask=m_pixel, other=0), mask=m_pixel)
    if p_eligible is not None:
        tl.store(p_new_eligible + o_pixel, tl.load(p_eligible + o_old, mask=m_pixel, other=0), mask=m_pixel)
    if p_scores is not None:
        tl.store(p_new_scores + o_pixel, tl.load(p_scores + o_old, mask=m_pixel, other=0.0), mask=m_pixel)


@triton.jit(do_not_specialize=SIZES)
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
    b_rows = tl.load(p_pixel, mask=m_pixel[:, None] & m_channel, other=0.0).to(p_rows.dtype.element_ty)
    tl.store(p_rows + o_row[:, None] * WIDTH + o_channel[None, :], b_rows, mask=m_row[:, None] & m_channel)


@triton.jit(do_not_specialize=SIZES)
def gather_unit_kernel(
    p_map, p_index, p_unit, p_inverse,  # [B, D, Z, Y, X] of any stride, [n], [n, D], [n]
    n_rows, n_pixels, size_z, size_y, size_x, stride_b, stride_d, stride_z, stride_y, stride_x,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row of each pixel over its norm, and 1 / norm; an index outside the map gives zeros and is not read."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_row = o_row < n_rows
    b_index = tl.load(p_index + o_row, mask=m_row, other=-1)
    m_pixel = (b_index >= 0) & (b_index < n_pixels)
    p_row = p_map + pixel_offset(
        tl.where(m_pixel, b_index, 0), size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x
    )
    b_inverse = inverse_norm(p_row, m_pixel, stride_d, WIDTH, BLOCK_N, BLOCK_D)
    tl.store(p_inverse + o_row, b_inverse, mask=m_row)
    copy_unit(p_row, m_pixel, stride_d, b_inverse, p_unit + o_row * WIDTH, m_row, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=("p_upstream",))
def scatter_kernel(
    p_grad, p_factor, p_upstream, p_unit, p_inverse, p_index,  # [n, D], [n], [n] of any stride, [n, D], [n], [n] unique
    p_map,  # [B, D, Z, Y, X] of any stride
    upstream_stride,
    n_rows, n_pixels, size_z, size_y, size_x, stride_b, stride_d, stride_z, stride_y, stride_x,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The scaled gradient of each pixel's row, through its norm where there is one: each pixel has one owner."""
    o_row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_row = o_row < n_rows
    b_index = tl.load(p_index + o_row, mask=m_row, other=-1)
    m_pixel = (b_index >= 0) & (b_index < n_pixels)
    p_pixel = p_map + pixel_offset(
        tl.where(m_pixel, b_index, 0), size_z, size_y, size_x, stride_b, stride_z, stride_y, stride_x
    )
    b_scale = load_scale(p_factor, p_upstream, upstream_stride, o_row, m_pixel)
    p_row = p_grad + o_row * WIDTH
    if p_unit is not None:
        p_dense = p_unit + o_row * WIDTH
        b_inverse = tl.load(p_inverse + o_row, mask=m_pixel, other=0.0)
        b_radial, m_live = radial_part(p_row, 1, p_dense, m_pixel, b_scale, WIDTH, BLOCK_N, BLOCK_D)
    for start in range(0, WIDTH, BLOCK_D):
        o_part = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        m_part = m_pixel[:, None] & (o_part < WIDTH)[None, :]
        b_grad = tl.load(p_row[:, None] + o_part[None, :], mask=m_part, other=0.0).to(tl.float32)
        b_result = tl.where(b_grad == 0.0, 0.0, b_grad * b_scale[:, None])
        if p_unit is not None:
            b_unit = tl.load(p_dense[:, None] + o_part[None, :], mask=m_part, other=0.0).to(tl.float32)
            b_tangent = (b_result - b_unit * b_radial[:, None]) * b_inverse[:, None]
            b_result = tl.where(m_live[:, None], b_tangent, 0.0)
        p_part = p_pixel[:, None] + o_part[None, :] * stride_d
        tl.store(p_part, b_result.to(p_map.dtype.element_ty), mask=m_part)


@triton.jit(do_not_specialize=SIZES)
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
