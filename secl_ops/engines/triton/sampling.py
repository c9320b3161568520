# SPDX-License-Identifier: Apache-2.0
"""The sampling kernel: each program draws from one class of one image, or of one cell of its grid, by radix selection.

The k smallest of 35-bit keys are found from the top digit down: the counts of a digit say in which bin the k-th lies.
A program reads a small image itself; of a large one it reads what `listing` has left.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.chances import BITS, cell_share, load_keys, load_seed, mix
from secl_ops.engines.triton.primitives import count_bins

DIGIT, DIGITS = tl.constexpr(7), tl.constexpr(5)  # bits of a digit, and how many of them hold a key
BINS = tl.constexpr(1 << 7)  # of one digit; a warp counts bins / 32 in each thread
TIE = tl.constexpr(1 << 16)  # counts of a block's ties stand above those of its others in one number
IMAGE, LIST, SPOTS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # sources of pixels


@triton.jit
def load_members(p_labels, p_eligible, source, start, wanted, FROM: tl.constexpr, BLOCK: tl.constexpr):
    """Pixels [BLOCK] of the batch, and which of them are of the wanted class.

    They are those of an image, those of a list, or one at random out of each of as many parts as `length` says.
    """
    length, first, pixels, more = source
    o_source = start + tl.arange(0, BLOCK)
    m_member = o_source < length
    if FROM == LIST:
        o_place = first + tl.load(more + o_source, mask=m_member, other=0)
    elif FROM == SPOTS:
        b_inside = (mix(more + o_source) & 0xFFFFFF) * (pixels // length) >> 24
        o_place = first + o_source * (pixels // length) + b_inside
    else:
        o_place = first + o_source
    m_member = m_member & (tl.load(p_labels + o_place, mask=m_member, other=0).to(tl.int64) == wanted)
    if p_eligible is not None and FROM != LIST:  # a list holds eligible pixels alone
        m_member = m_member & (tl.load(p_eligible + o_place, mask=m_member, other=0) != 0)
    return o_place, m_member


@triton.jit
def load_free(p_labels, p_eligible, p_scores, source, start, wanted, gone, FROM: tl.constexpr,
              AFTER_SCORES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Members, less those that the scores have taken already: all below the prefix in `gone`, and its first ties."""
    o_place, m_member = load_members(p_labels, p_eligible, source, start, wanted, FROM, BLOCK)
    if AFTER_SCORES:
        prefix, shift, last = gone
        b_high = load_keys(p_scores, o_place, m_member, prefix, True) >> shift
        m_member = m_member & ~((b_high < prefix) | ((b_high == prefix) & (o_place <= last)))
    return o_place, m_member


@triton.jit
def smallest(p_labels, p_eligible, p_scores, source, wanted, hashed, need, gone, FROM: tl.constexpr,
             BY_SCORE: tl.constexpr, AFTER_SCORES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Where the `need` smallest keys end: prefix, the bits below it, and how many keys at the prefix belong to them.

    A list leaves out higher scores, of which the same prefix must not say that they were taken: it is a whole key then.
    """
    prefix = hashed * 0
    shift = (hashed * 0 + BITS).to(tl.int32)
    found = shift * 0 + 2147483647  # keys at the prefix
    o_bin = tl.arange(0, BINS)
    EXACT: tl.constexpr = BY_SCORE and FROM == LIST
    for level in range(DIGITS):
        low = BITS - DIGIT - DIGIT * level
        if (need > 0) & ((found > need) | EXACT):
            b_bins = tl.zeros([BINS], tl.int32)
            for start in range(0, source[0], BLOCK):
                o_place, m_free = load_free(
                    p_labels, p_eligible, p_scores, source, start, wanted, gone, FROM, AFTER_SCORES, BLOCK
                )
                b_key = load_keys(p_scores, o_place, m_free, hashed, BY_SCORE)
                m_at = m_free & ((b_key >> shift) == prefix)
                b_bins += count_bins(((b_key >> low) & (BINS - 1)).to(tl.int32), m_at, BINS)
            b_below = tl.cumsum(b_bins, 0)
            need = tl.minimum(need, tl.sum(b_bins, 0))
            place = tl.sum((b_below < need).to(tl.int32), 0)
            found = tl.sum(tl.where(o_bin == place, b_bins, 0), 0)
            need = need - tl.max(tl.where(b_below < need, b_below, 0), 0)
            prefix = (prefix << DIGIT) | place
            shift = shift * 0 + low
    return prefix, shift, need


@triton.jit
def write_taken(p_labels, p_eligible, p_scores, p_index, source, wanted, hashed, chosen, gone, FROM: tl.constexpr,
                BY_SCORE: tl.constexpr, AFTER_SCORES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The chosen pixels in ascending order from this pointer on, their number, and the last one at the prefix."""
    prefix, shift, need = chosen
    below, ties, last = need * 0, need * 0, prefix * 0 - 1
    for start in range(0, source[0], BLOCK):
        o_place, m_free = load_free(
            p_labels, p_eligible, p_scores, source, start, wanted, gone, FROM, AFTER_SCORES, BLOCK
        )
        b_high = load_keys(p_scores, o_place, m_free, hashed, BY_SCORE) >> shift
        m_below, m_tie = m_free & (b_high < prefix), m_free & (b_high == prefix)
        b_kind = m_below.to(tl.int32) + m_tie.to(tl.int32) * TIE
        b_counts = tl.cumsum(b_kind, 0)
        b_ties = ties + b_counts // TIE
        m_first = m_tie & (b_ties <= need)
        b_written = below + b_counts % TIE + tl.minimum(b_ties, need)
        tl.store(p_index + b_written - 1, o_place, mask=m_below | m_first)
        total = tl.sum(b_kind, 0)
        below, ties = below + total % TIE, ties + total // TIE
        last = tl.maximum(last, tl.max(tl.where(m_first, o_place, -1), 0))
    return below + tl.minimum(ties, need), last


@triton.jit
def listed(p_list, p_span, slot, group, n_groups, cell, first, pixels, CELLS: tl.constexpr):
    """The part of the list that holds the pixels of one cell and group of classes."""
    p_own = p_span + ((slot * n_groups + group) * CELLS + cell) * 2
    return tl.load(p_own + 1), first, pixels, p_list + slot * pixels + tl.load(p_own)


@triton.jit(do_not_specialize=("low", "high", "ignore_index", "n_images", "need", "pixels"))
def aim_kernel(
    p_labels, p_eligible, p_scores, p_seed,  # [B, pixels] each but the last, [1] or None
    p_aim,  # [B, C]
    low, high, ignore_index, n_images, need, pixels, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The key of the `need`-th lowest score among some pixels of one class of one image."""
    image, wanted = tl.program_id(0).to(tl.int64) % n_images, tl.program_id(0).to(tl.int64) // n_images
    hashed = mix(mix(load_seed(p_seed, low, high)) + tl.program_id(0))
    source = (tl.where(wanted == ignore_index, 0, LENGTH), image * pixels, pixels, hashed)
    nothing = (hashed, need, hashed)
    prefix, shift, _ = smallest(
        p_labels, p_eligible, p_scores, source, wanted, hashed, need, nothing, SPOTS, True, False, BLOCK
    )
    n_classes = tl.num_programs(0) // n_images
    tl.store(p_aim + image * n_classes + wanted, ((prefix + 1) << shift) - 1)


@triton.jit(do_not_specialize=("low", "high", "per_class", "ignore_index", "n_images", "n_chunks", "pixels"))
def sample_kernel(
    p_labels, p_eligible, p_scores, p_seed,  # [B, pixels] each but the last, [1] or None
    p_counts, p_list, p_span,  # of listing; None where the image itself is read
    p_index, p_label,  # [C, B, K] each: positives of a class lie in one run
    low, high, per_class, ignore_index, n_images, n_chunks, pixels,
    HARD: tl.constexpr, LEVELS: tl.constexpr, CELLS: tl.constexpr, CLASSES: tl.constexpr, UNITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of one class of one image, in ascending order, of one cell of its grid where it has cells."""
    part, cell, zero = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(0) * 0
    image, wanted = part % n_images, part // n_images
    n_classes = tl.num_programs(0) // n_images
    seed = load_seed(p_seed, low, high)
    hashed = mix(seed)
    begin, need = part * 0, zero + per_class
    FROM: tl.constexpr = IMAGE if p_list is None else LIST
    if FROM == LIST:
        group, n_groups, first = wanted // CLASSES, tl.cdiv(n_classes, CLASSES), image * pixels
        chances = listed(p_list, p_span, image, group, n_groups, cell, first, pixels, CELLS)
        scored = chances
        if HARD:
            scored = listed(p_list, p_span, n_images + image, group, n_groups, cell, first, pixels, CELLS)
        if CELLS > 1:
            n_units, o_one = n_chunks * CELLS, tl.arange(0, 1)
            p_row = p_counts + (image * n_classes + wanted) * LEVELS * n_units
            b_begin, b_need = cell_share(
                p_row, o_one, o_one == 0, part + o_one, seed, cell, n_chunks, n_units, per_class, UNITS
            )
            begin, need = tl.sum(b_begin, 0), tl.sum(b_need, 0)
    else:
        chances = (tl.where(wanted == ignore_index, 0, pixels), image * pixels, pixels, image)
        scored = chances
    p_out = p_index + part * per_class + begin
    gone = (begin, need, begin)
    if HARD:
        chosen = smallest(
            p_labels, p_eligible, p_scores, scored, wanted, hashed, need // 2, gone, FROM, True, False, BLOCK
        )
        written, last = write_taken(
            p_labels, p_eligible, p_scores, p_out, scored, wanted, hashed, chosen, gone, FROM, True, False, BLOCK
        )
        gone = (chosen[0], chosen[1], last)
        p_out, need, begin = p_out + written, need - written, begin + written
    chosen = smallest(p_labels, p_eligible, p_scores, chances, wanted, hashed, need, gone, FROM, False, HARD, BLOCK)
    written, _ = write_taken(
        p_labels, p_eligible, p_scores, p_out, chances, wanted, hashed, chosen, gone, FROM, False, HARD, BLOCK
    )
    begin += written
    if cell == CELLS - 1:
        for start in range(0, per_class, BLOCK):
            o_draw = start + tl.arange(0, BLOCK)
            m_draw = o_draw < per_class
            m_free = o_draw >= begin
            tl.store(p_index + part * per_class + o_draw, tl.full([BLOCK], -1, tl.int64), mask=m_draw & m_free)
            b_label = tl.where(m_free, -1, wanted).to(tl.int32)
            tl.store(p_label + part * per_class + o_draw, b_label, mask=m_draw)
