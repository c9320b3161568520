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

from secl_ops import tiles
from secl_ops.library import release

FP32 = tl.constexpr("ieee" if tiles.EXACT_FP32 else "tf32x3")
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
FARTHEST = tl.constexpr(2**30)  # above every place of a row
UNROLLED = tl.constexpr(tiles.MOST_UNROLLED)
BEFORE_3_4 = tl.constexpr(release(triton.__version__) < (3, 4))  # whose histogram has no mask, its gather few layouts


@triton.jit
def minimum_of(b_value, m_value):
    """The least of the values under the mask, a number above every place without one."""
    return tl.min(tl.where(m_value, b_value, FARTHEST), 0)


INTERPRETED = tl.constexpr(isinstance(minimum_of, InterpretedFunction))


@triton.jit
def maximum_of(b_value, m_value):
    """The largest of the values under the mask, 0 without one."""
    return tl.max(tl.where(m_value, b_value, 0), 0)


@triton.jit
def count_bins(b_bin, m_counted, BINS: tl.constexpr):
    """How many of the numbers under the mask are 0, 1, ... BINS - 1."""
    if BEFORE_3_4:
        b_first = tl.where(tl.arange(0, BINS) == 0, tl.sum(tl.where(m_counted, 0, 1), 0), 0)
        b_count = tl.histogram(tl.where(m_counted, b_bin, 0), BINS) - b_first
    else:
        b_count = tl.histogram(b_bin, BINS, mask=m_counted)
    if INTERPRETED:  # before Triton 3.6 it counts in 64 bits and calls them 32
        b_count = b_count.to(tl.int64).to(tl.int32)
    return b_count


@triton.jit
def values_at(b_value, o_value):
    """The value [n] at each of these places [m] of a block: [m]."""
    if BEFORE_3_4:
        m_place = o_value[:, None] == tl.arange(0, b_value.shape[0])[None, :]
        b_found = tl.sum(tl.where(m_place, b_value[None, :], 0), 1)
    else:
        b_found = tl.gather(b_value, o_value, 0)
    return b_found


@triton.jit
def product(b_left, b_right, b_sum):
    """`b_sum + b_left @ b_right` in fp32; rows of fp32 by three products of tf32, unless they are wanted exactly."""
    if INTERPRETED:  # the interpreter multiplies the bits of bf16 numbers
        b_left = b_left.to(tl.float32)
        b_right = b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision=FP32)


@triton.jit
def rounded_tf32(b_value):
    """The nearest numbers of 11 binary digits; NaN and infinity stay."""
    if INTERPRETED:
        b_bits = b_value.to(tl.int32, bitcast=True)
        b_near = ((b_bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        b_near = tl.where(b_value - b_value == 0.0, b_near, b_value)
    else:
        b_near = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,f", [b_value], dtype=tl.int32, is_pure=True, pack=1
        ).to(tl.float32, bitcast=True)
    return b_near


@triton.jit
def value_product(b_weight, b_rows, b_sum):
    """`b_sum + b_weight @ b_rows`, the weights rounded as far as the rows are.

    fp16 cannot hold probabilities (they underflow at temperatures below 0.1): tf32 holds fp16 rows exactly and
    the weights with fp16's precision and fp32's range, rounded, since a tensor core cuts off what tf32 does not hold.
    """
    if b_rows.dtype == tl.float16:
        b_sum = tl.dot(rounded_tf32(b_weight), b_rows.to(tl.float32), b_sum, input_precision="tf32")
    else:
        b_sum = product(b_weight.to(b_rows.dtype), b_rows, b_sum)
    return b_sum


@triton.jit
def row_offset(place, WIDTH: tl.constexpr):
    """How far the row at this place of a matrix [n, WIDTH] lies from the first one, in 64 bits."""
    return (tl.full([], 0, tl.int64) + place) * WIDTH


@triton.jit
def tile_pointers(p_rows, o_row, o_column, WIDTH: tl.constexpr):
    """Pointers [n, columns] into arranged rows [n', WIDTH]."""
    return p_rows + o_row[:, None] * WIDTH + o_column[None, :]


@triton.jit
def dot_rows(b_row, p_row, p_other, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """`<row, other>` of every pair [BN, BM], and the other side's tile [BM, BLOCK_D]: the last chunk of several.

    `p_row` and `p_other` point at the first chunk of each row of the two tiles.
    """
    b_other = tl.load(p_other)
    b_dot = product(b_row, tl.trans(b_other), tl.zeros([b_row.shape[0], b_other.shape[0]], tl.float32))
    if WIDTH <= UNROLLED * BLOCK_D:  # the row's chunks stay in shared memory, the other side's are copied a tile ahead
        for start in tl.static_range(BLOCK_D, WIDTH, BLOCK_D):
            b_other = tl.load(p_other + start)
            b_dot = product(tl.load(p_row + start), tl.trans(b_other), b_dot)  # [BN, BD] @ [BD, BM] -> [BN, BM]
    else:
        for start in range(BLOCK_D, WIDTH, BLOCK_D):
            b_other = tl.load(p_other + start)
            b_dot = product(tl.load(p_row + start), tl.trans(b_other), b_dot)  # [BN, BD] @ [BD, BM] -> [BN, BM]
    return b_dot, b_other


@triton.jit
def load_order(p_order, o_place, m_place):
    """The row that stands at each place, the place itself without an order."""
    o_row = o_place if p_order is None else tl.load(p_order + o_place, mask=m_place, other=0)
    return o_row


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
def reciprocal(b_value):
    """`1 / x` to the last digit but one, of numbers that are neither large nor small."""
    if INTERPRETED:
        b_inverse = 1.0 / b_value
    else:
        b_inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b_value], dtype=tl.float32, is_pure=True, pack=1
        )
    return b_inverse


@triton.jit
def softplus2(b_logit):
    """`ln(1 + 2^x)`, relative precision kept where it is small, and its slope `1 / (1 + 2^-x)`."""
    b_tail = tl.exp2(-tl.abs(b_logit))
    b_whole = tl.log2(1.0 + b_tail)
    b_rest = tl.exp2(-b_whole)
    b_series = b_tail * (1.0 - b_tail * (1.0 / 2 - b_tail * (1.0 / 3 - b_tail * (1.0 / 4 - b_tail * (1.0 / 5)))))
    b_log = tl.where(b_tail < 0.03125, b_series, b_whole * LN2)
    return tl.maximum(b_logit, 0.0) * LN2 + b_log, tl.where(b_logit >= 0.0, b_rest, b_tail * b_rest)


@triton.jit
def softplus_pair2(b_logit):
    """The same in half the instructions and more registers: tiles that were chosen for `softplus2` spill with it.

    With t = 2^-|x| and z = t / (2 + t) the logarithm is 2 artanh z, as csrc/contrast_math.h has it.
    """
    b_tail = tl.exp2(-tl.abs(b_logit))
    b_inverse = reciprocal((1.0 + b_tail) * (2.0 + b_tail))
    b_z = b_tail * ((1.0 + b_tail) * b_inverse)
    b_rest = (2.0 + b_tail) * b_inverse
    b_square = b_z * b_z
    b_series = ((b_square * 0.28179991245 + 0.27960199118) * b_square + 0.40024942160) * b_square + 0.66666311026
    b_log = b_z * (b_series * b_square + 2.0)
    return tl.maximum(b_logit, 0.0) * LN2 + b_log, tl.where(b_logit >= 0.0, b_rest, b_tail * b_rest)


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
    """Factor of each row, if it has one, times the upstream number, which may be one for all; 1 without that."""
    if p_upstream is None:
        b_scale = tl.full(o_row.shape, 1.0, tl.float32)
    else:
        b_scale = tl.load(p_upstream + o_row * upstream_stride, mask=m_row, other=0.0).to(tl.float32)
        if p_factor is not None:
            b_scale = tl.load(p_factor + o_row, mask=m_row, other=0.0) * b_scale
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
