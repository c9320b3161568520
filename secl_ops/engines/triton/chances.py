# SPDX-License-Identifier: Apache-2.0
"""What the kernels of the sampler share: the keys of pixels, and which draws fall into which cell of a grid.

Keys come from a counter, as in the reference backend, so that nothing but the seed decides.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines import draws

GOLDEN = tl.constexpr(draws.GOLDEN)
MIX_1 = tl.constexpr(draws.MIX_1)
MIX_2 = tl.constexpr(draws.MIX_2)
BITS = tl.constexpr(63 - draws.INDEX_BITS)  # of a key
DROPPED = tl.constexpr(draws.INDEX_BITS + 1)  # low bits of the random number
KEYS = tl.constexpr((1 << 63 - draws.INDEX_BITS) - 1)
SCORE_SHIFT = tl.constexpr(31 - draws.INDEX_BITS)  # brings 32 bits to the length of a key
SIZES = ("size_z", "size_y", "size_x")


@triton.jit
def mix(b_value):
    """The splitmix64 finaliser on int64: a counter becomes 64 random bits."""
    b_value = (b_value ^ ((b_value >> 30) & 0x3FFFFFFFF)) * MIX_1
    b_value = (b_value ^ ((b_value >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return b_value ^ ((b_value >> 31) & 0x1FFFFFFFF)


@triton.jit
def load_seed(p_seed, low, high):
    """The seed of a call: the number that the halves make, with a tensor's bits exchanged where there is one."""
    seed = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    if p_seed is not None:
        seed = seed ^ tl.load(p_seed)
    return seed


@triton.jit
def score_key(b_score):
    """A key in the order of the scores, NaN last."""
    b_bits = (b_score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    b_order = tl.where(b_bits < 0, ~b_bits, b_bits | -2147483648)
    b_order = tl.where(b_score != b_score, -1, b_order)
    return (b_order.to(tl.int64) & 0xFFFFFFFF) << SCORE_SHIFT


@triton.jit
def load_keys(p_scores, o_place, m_member, hashed, BY_SCORE: tl.constexpr):
    """Keys of the pixels: by their score, or by chance."""
    if BY_SCORE:
        b_key = score_key(tl.load(p_scores + o_place, mask=m_member, other=0.0).to(tl.float32))
    else:
        b_key = (mix(hashed + o_place.to(tl.int64) * GOLDEN) >> DROPPED) & KEYS
    return b_key


@triton.jit
def draws_below(b_place, b_available, b_drawn, b_start):
    """How many draws of a systematic sample, those at (s available + start) // drawn, fall below a place."""
    return tl.maximum(b_place * b_drawn - b_start + b_available - 1, 0) // tl.maximum(b_available, 1)


@triton.jit
def cell_share(p_counts, o_row, m_row, o_part, seed, cell, n_chunks, n_units, per_class, UNITS: tl.constexpr):
    """First place and number [n] of the draws of one cell, of those that a systematic sample of all cells takes.

    The members of each chunk of each cell are counted in these rows [n] of the counts.
    """
    o_unit = tl.arange(0, UNITS)
    m_count = m_row[:, None] & (o_unit < n_units)[None, :]
    b_count = tl.load(p_counts + (o_row[:, None] + o_unit[None, :]), mask=m_count, other=0)
    o_cell = (o_unit // n_chunks)[None, :]
    b_below = tl.sum(tl.where(o_cell < cell, b_count, 0), 1).to(tl.int64)
    b_at = tl.sum(tl.where(o_cell == cell, b_count, 0), 1).to(tl.int64)
    b_available = tl.sum(b_count, 1).to(tl.int64)
    b_drawn = tl.minimum(b_available, per_class)
    b_random = (mix(mix(seed ^ GOLDEN) + o_part * GOLDEN) >> 24) & 0xFFFFFF
    b_start = b_random * b_available >> 24
    b_begin = draws_below(b_below, b_available, b_drawn, b_start)
    b_end = draws_below(b_below + b_at, b_available, b_drawn, b_start)
    return b_begin, (b_end - b_begin).to(tl.int32)
