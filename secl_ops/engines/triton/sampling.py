# SPDX-License-Identifier: Apache-2.0
"""The sampling kernel: each program draws from one class of one image, or of one cell of its grid, by radix selection.

The k smallest of 35-bit keys are found from the top digit down: the counts of a digit say in which bin the k-th lies.
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
BINS = tl.constexpr(512)  # of one digit of 9 bits, four of which hold a key; a warp counts bins / 32 in each thread
SIZES = ("size_z", "size_y", "size_x")


@triton.jit
def mix(b_value):
    """The splitmix64 finaliser on int64: a counter becomes 64 random bits."""
    b_value = (b_value ^ ((b_value >> 30) & 0x3FFFFFFFF)) * MIX_1
    b_value = (b_value ^ ((b_value >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return b_value ^ ((b_value >> 31) & 0x1FFFFFFFF)


@triton.jit
def score_key(b_score):
    """A key in the order of the scores, NaN last."""
    b_bits = (b_score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    b_order = tl.where(b_bits < 0, ~b_bits, b_bits | -2147483648)
    b_order = tl.where(b_score != b_score, -1, b_order)
    return (b_order.to(tl.int64) & 0xFFFFFFFF) << SCORE_SHIFT


@triton.jit
def load_members(p_labels, p_eligible, box, start, wanted, BLOCK: tl.constexpr):
    """Pixels [BLOCK] of the batch, numbered through a box of one image, and which of them are of the wanted class."""
    length, first, low_z, low_y, low_x, box_y, box_x, size_y, size_x = box
    o_box = start + tl.arange(0, BLOCK)
    m_box = o_box < length
    o_line = o_box // box_x
    o_plane = o_line // box_y
    o_y, o_x = o_line - o_plane * box_y, o_box - o_line * box_x
    o_place = first + (((low_z + o_plane) * size_y + low_y + o_y) * size_x + low_x + o_x)
    m_member = m_box & (tl.load(p_labels + o_place, mask=m_box, other=0).to(tl.int64) == wanted)
    if p_eligible is not None:
        m_member = m_member & (tl.load(p_eligible + o_place, mask=m_box, other=0) != 0)
    return o_place, m_member


@triton.jit
def load_keys(p_scores, o_place, m_member, hashed, BY_SCORE: tl.constexpr):
    """Keys of the pixels: by their score, or by chance."""
    if BY_SCORE:
        b_key = score_key(tl.load(p_scores + o_place, mask=m_member, other=0.0).to(tl.float32))
    else:
        b_key = (mix(hashed + o_place * GOLDEN) >> DROPPED) & KEYS
    return b_key


@triton.jit
def take(b_key, m_member, prefix, shift, need, ties):
    """Members below the prefix, and of those at it the first `need` in the order of the pixels."""
    b_high = b_key >> shift
    m_tie = m_member & (b_high == prefix)
    b_rank = ties + tl.cumsum(m_tie.to(tl.int32), 0)
    m_taken = (m_member & (b_high < prefix)) | (m_tie & (b_rank <= need))
    return m_taken, ties + tl.sum(m_tie.to(tl.int32), 0)


@triton.jit
def draws_below(place, available, drawn, start):
    """How many draws of a systematic sample, those at (s available + start) // drawn, fall below a place."""
    return tl.maximum(place * drawn - start + available - 1, 0) // tl.maximum(available, 1)


@triton.jit
def load_free(p_labels, p_eligible, p_scores, box, start, wanted, gone, ties, AFTER_SCORES: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """Members, less those that the scores have taken already: all below the prefix in `gone`, and its first ties."""
    o_place, m_member = load_members(p_labels, p_eligible, box, start, wanted, BLOCK)
    if AFTER_SCORES:
        prefix, shift, need = gone
        b_key = load_keys(p_scores, o_place, m_member, prefix, True)
        m_gone, ties = take(b_key, m_member, prefix, shift, need, ties)
        m_member = m_member & ~m_gone
    return o_place, m_member, ties


@triton.jit
def smallest(p_labels, p_eligible, p_scores, box, wanted, hashed, need, gone,
             BY_SCORE: tl.constexpr, AFTER_SCORES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Where the `need` smallest keys end: prefix, the bits below it, and how many keys at the prefix belong to them."""
    prefix = hashed * 0
    shift = (hashed * 0 + BITS).to(tl.int32)
    found = shift * 0 + 2147483647  # keys at the prefix
    o_bin = tl.arange(0, BINS)
    for level in range(4):
        low = 27 - 9 * level
        if (found > need) & (need > 0):
            b_bins = tl.zeros([BINS], tl.int32)
            ties = need * 0
            for start in range(0, box[0], BLOCK):
                o_place, m_free, ties = load_free(
                    p_labels, p_eligible, p_scores, box, start, wanted, gone, ties, AFTER_SCORES, BLOCK
                )
                b_key = load_keys(p_scores, o_place, m_free, hashed, BY_SCORE)
                m_at = m_free & ((b_key >> shift) == prefix)
                b_bins += tl.histogram(((b_key >> low) & (BINS - 1)).to(tl.int32), BINS, mask=m_at)
            b_below = tl.cumsum(b_bins, 0)
            need = tl.minimum(need, tl.sum(b_bins, 0))
            place = tl.sum((b_below < need).to(tl.int32), 0)
            found = tl.sum(tl.where(o_bin == place, b_bins, 0), 0)
            need = need - tl.max(tl.where(b_below < need, b_below, 0), 0)
            prefix = (prefix << 9) | place
            shift = shift * 0 + low
    return prefix, shift, need


@triton.jit
def write_taken(p_labels, p_eligible, p_scores, p_index, box, wanted, hashed, chosen, gone,
                BY_SCORE: tl.constexpr, AFTER_SCORES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The chosen pixels in ascending order from this pointer on, and their number."""
    prefix, shift, need = chosen
    written, ties, gone_ties = need * 0, need * 0, need * 0
    for start in range(0, box[0], BLOCK):
        o_place, m_free, gone_ties = load_free(
            p_labels, p_eligible, p_scores, box, start, wanted, gone, gone_ties, AFTER_SCORES, BLOCK
        )
        b_key = load_keys(p_scores, o_place, m_free, hashed, BY_SCORE)
        m_taken, ties = take(b_key, m_free, prefix, shift, need, ties)
        b_taken = m_taken.to(tl.int32)
        tl.store(p_index + written + tl.cumsum(b_taken, 0) - 1, o_place, mask=m_taken)
        written += tl.sum(b_taken, 0)
    return written


@triton.jit
def cell_box(box, cell, size_z, CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr):
    """The part of a whole image that is one cell of its grid: coordinates x with floor(x cells / size) = cell."""
    _, first, _, _, _, _, _, size_y, size_x = box
    c_x, c_y, c_z = cell % CELLS_X, cell // CELLS_X % CELLS_Y, cell // CELLS_X // CELLS_Y
    low_x, high_x = (c_x * size_x + CELLS_X - 1) // CELLS_X, ((c_x + 1) * size_x + CELLS_X - 1) // CELLS_X
    low_y, high_y = (c_y * size_y + CELLS_Y - 1) // CELLS_Y, ((c_y + 1) * size_y + CELLS_Y - 1) // CELLS_Y
    low_z, high_z = (c_z * size_z + CELLS_Z - 1) // CELLS_Z, ((c_z + 1) * size_z + CELLS_Z - 1) // CELLS_Z
    box_y, box_x = high_y - low_y, high_x - low_x
    length = (high_z - low_z) * box_y * box_x
    return length, first, low_z, low_y, low_x, tl.maximum(box_y, 1), tl.maximum(box_x, 1), size_y, size_x


@triton.jit
def cell_share(p_labels, p_eligible, box, cell, size_z, wanted, random, per_class,
               CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """First place and number of the draws of one cell, of those a systematic sample of all cells takes."""
    length, first, _, _, _, _, _, size_y, size_x = box
    zero = wanted * 0
    below, at, available = zero, zero, zero
    for start in range(0, length, BLOCK):
        o_place, m_member = load_members(p_labels, p_eligible, box, start, wanted, BLOCK)
        o_pixel = (o_place - first).to(tl.int32)
        o_x, o_y, o_z = o_pixel % size_x, o_pixel // size_x % size_y, o_pixel // size_x // size_y
        b_cell = o_z * CELLS_Z // size_z * CELLS_Y + o_y * CELLS_Y // size_y
        b_cell = b_cell * CELLS_X + o_x * CELLS_X // size_x
        available += tl.sum(m_member.to(tl.int32), 0)
        below += tl.sum((m_member & (b_cell < cell)).to(tl.int32), 0)
        at += tl.sum((m_member & (b_cell == cell)).to(tl.int32), 0)
    drawn = tl.minimum(available, per_class)
    begin = draws_below(below, available, drawn, random * available >> 24)
    return begin, (draws_below(below + at, available, drawn, random * available >> 24) - begin).to(tl.int32)


@triton.jit(do_not_specialize=("per_class", "ignore_index", "stream", "n_images", *SIZES))
def sample_kernel(
    p_labels, p_eligible, p_scores, p_seed,  # [B, Z, Y, X] each but the last, [1]
    p_index, p_label,  # [C, B, K] each: positives of a class lie in one run
    per_class, ignore_index, stream, n_images, size_z, size_y, size_x,
    HARD: tl.constexpr, CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of one class of one image, in ascending order, of one cell of its grid where it has cells."""
    part = tl.program_id(0).to(tl.int64)
    image, wanted = part % n_images, part // n_images
    seed = tl.load(p_seed) ^ stream
    hashed = mix(seed)
    pixels = size_z * size_y * size_x
    length, zero = tl.where(wanted == ignore_index, 0, pixels), tl.program_id(0) * 0
    box = (length, image * pixels, zero, zero, zero, size_y, size_x, size_y, size_x)
    begin, need = part * 0, zero + per_class
    nothing = (begin, need, need)
    if CELLS_X > 1:
        random = (mix(mix(seed ^ GOLDEN) + (wanted * n_images + image) * GOLDEN) >> 24) & 0xFFFFFF
        cell = tl.program_id(1)
        begin, need = cell_share(
            p_labels, p_eligible, box, cell, size_z, wanted, random, per_class, CELLS_Z, CELLS_Y, CELLS_X, BLOCK
        )
        box = cell_box(box, cell, size_z, CELLS_Z, CELLS_Y, CELLS_X)
    p_out = p_index + part * per_class + begin
    if HARD:
        chosen = smallest(p_labels, p_eligible, p_scores, box, wanted, hashed, need // 2, nothing, True, False, BLOCK)
        written = write_taken(
            p_labels, p_eligible, p_scores, p_out, box, wanted, hashed, chosen, nothing, True, False, BLOCK
        )
        gone, p_out, need = chosen, p_out + written, need - written
        begin += written
    else:
        gone = nothing
    chosen = smallest(p_labels, p_eligible, p_scores, box, wanted, hashed, need, gone, False, HARD, BLOCK)
    begin += write_taken(p_labels, p_eligible, p_scores, p_out, box, wanted, hashed, chosen, gone, False, HARD, BLOCK)
    if tl.program_id(1) == tl.num_programs(1) - 1:
        for start in range(0, per_class, BLOCK):
            o_draw = start + tl.arange(0, BLOCK)
            m_draw = o_draw < per_class
            m_free = o_draw >= begin
            tl.store(p_index + part * per_class + o_draw, tl.full([BLOCK], -1, tl.int64), mask=m_draw & m_free)
            b_label = tl.where(m_free, -1, wanted).to(tl.int32)
            tl.store(p_label + part * per_class + o_draw, b_label, mask=m_draw)
