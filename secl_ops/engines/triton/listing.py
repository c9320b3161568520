# SPDX-License-Identifier: Apache-2.0
"""Two passes over chunks of images that list the few pixels which a draw may take, whatever their class.

The first pass counts, in each chunk, the members of each class at each level of their keys: a level halves the chance
of the one before it. The second adds the counts up, so that it knows for each class the deepest level that holds all
draws, and for each chunk its place in the list.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.chances import BITS, GOLDEN, SIZES, cell_share, load_keys, load_seed, mix
from secl_ops.engines.triton.primitives import count_bins, values_at

MANTISSA = tl.constexpr(23)  # bits of a float32 behind its leading one; so many of a key decide its level, and that one
EXPONENT = tl.constexpr(127 + 23)  # of 2^23, as float32 stores it
AT, BELOW = tl.constexpr(1), tl.constexpr(2)  # levels of a score: equal to the aim, better than it
LEVEL_BITS = tl.constexpr(4)  # of the number of levels, or fewer


@triton.jit
def cell_box(cell, size_z, size_y, size_x, CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr):
    """Lowest coordinates and sizes of one cell of the grid: coordinates x with floor(x cells / size) = cell."""
    c_x, c_y, c_z = cell % CELLS_X, cell // CELLS_X % CELLS_Y, cell // CELLS_X // CELLS_Y
    low_x, high_x = (c_x * size_x + CELLS_X - 1) // CELLS_X, ((c_x + 1) * size_x + CELLS_X - 1) // CELLS_X
    low_y, high_y = (c_y * size_y + CELLS_Y - 1) // CELLS_Y, ((c_y + 1) * size_y + CELLS_Y - 1) // CELLS_Y
    low_z, high_z = (c_z * size_z + CELLS_Z - 1) // CELLS_Z, ((c_z + 1) * size_z + CELLS_Z - 1) // CELLS_Z
    return low_z, low_y, low_x, high_z - low_z, high_y - low_y, high_x - low_x


@triton.jit
def box_pixels(box, o_box, size_y, size_x, CELLS_X: tl.constexpr):
    """Numbers in the image of pixels that are numbered through a box."""
    if CELLS_X == 1:
        return o_box
    low_z, low_y, low_x, _, box_y, box_x = box
    o_line = o_box // tl.maximum(box_x, 1)
    o_plane = o_line // tl.maximum(box_y, 1)
    o_y, o_x = o_line - o_plane * box_y, o_box - o_line * box_x
    return ((low_z + o_plane) * size_y + low_y + o_y) * size_x + low_x + o_x


@triton.jit
def pixels_before(box, size_y, size_x):
    """Pixels of all cells before this one."""
    low_z, low_y, low_x, box_z, box_y, _ = box
    return low_z * size_y * size_x + box_z * (low_y * size_x + box_y * low_x)


@triton.jit
def chunk_of(box, chunk, n_chunks):
    """First and last place of a chunk in its box, the last one excluded."""
    _, _, _, box_z, box_y, box_x = box
    length = box_z * box_y * box_x
    share = tl.cdiv(length, n_chunks)
    return tl.minimum(chunk * share, length), tl.minimum((chunk + 1) * share, length)


@triton.jit
def chance_level(b_key, LEVELS: tl.constexpr):
    """Leading zeros of a key, by way of an exponent; the last level holds all that have more."""
    b_exponent = (b_key >> (BITS - MANTISSA - 1)).to(tl.int32).to(tl.float32).to(tl.int32, bitcast=True) >> MANTISSA
    return tl.minimum(-b_exponent + EXPONENT, LEVELS - 1)


@triton.jit
def load_levels(p_labels, p_eligible, p_scores, p_aim, o_pixel, m_pixel, image, group, ignore_index, hashed, by_score,
                HARD: tl.constexpr, LEVELS: tl.constexpr, CLASSES: tl.constexpr):  # fmt: skip
    """Classes of pixels, counted from the group's first, their levels, and which of them are of the group."""
    number, first = image
    first_class, n_classes = group
    b_label = tl.load(p_labels + first + o_pixel, mask=m_pixel, other=0).to(tl.int64)
    m_member = m_pixel & (b_label >= first_class) & (b_label < tl.minimum(first_class + CLASSES, n_classes))
    m_member = m_member & (b_label != ignore_index)
    if p_eligible is not None:
        m_member = m_member & (tl.load(p_eligible + first + o_pixel, mask=m_pixel, other=0) != 0)
    b_class = tl.where(m_member, b_label - first_class, 0).to(tl.int32)
    b_level = b_class * 0
    if LEVELS > 1:
        if HARD:
            if by_score:
                b_key = load_keys(p_scores + first, o_pixel, m_member, hashed, True)
                b_aim = tl.load(p_aim + number * n_classes + first_class + b_class, mask=m_member, other=0)
                b_level = (b_key <= b_aim).to(tl.int32) + (b_key < b_aim).to(tl.int32)
            else:
                b_level = chance_level(load_keys(p_scores, o_pixel, m_member, hashed, False), LEVELS)
        else:
            b_level = chance_level(load_keys(p_scores, o_pixel, m_member, hashed, False), LEVELS)
    return b_class, b_level, m_member


@triton.jit(do_not_specialize=("low", "high", "ignore_index", "n_classes", "n_chunks", *SIZES))
def count_kernel(
    p_labels, p_eligible, p_scores, p_seed, p_aim,  # [B, Z, Y, X] each but the last two, [1], [B, C]
    p_counts,  # [2 where hard, B, C, LEVELS, cells * chunks]
    low, high, ignore_index, n_classes, n_chunks, size_z, size_y, size_x,
    HARD: tl.constexpr, LEVELS: tl.constexpr, CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many members of each class one chunk of one cell of one image holds, at each level or deeper."""
    n_units = n_chunks * (CELLS_Z * CELLS_Y * CELLS_X)
    image, unit = (tl.program_id(0) // n_units).to(tl.int64), tl.program_id(0) % n_units
    by_score = tl.program_id(1) > 0
    first = image * size_z * size_y * size_x
    box = cell_box(unit // n_chunks, size_z, size_y, size_x, CELLS_Z, CELLS_Y, CELLS_X)
    begin, end = chunk_of(box, unit % n_chunks, n_chunks)
    hashed = mix(load_seed(p_seed, low, high)) + first * GOLDEN  # so that pixels are numbered through the batch
    p_counts += (tl.program_id(1) * (tl.num_programs(0) // n_units) + image) * n_classes * LEVELS * n_units + unit
    for first_class in range(0, n_classes, CLASSES):
        b_bins = tl.zeros([CLASSES * LEVELS], tl.int32)
        for start in range(begin, end, BLOCK):
            o_box = start + tl.arange(0, BLOCK)
            o_pixel = box_pixels(box, o_box, size_y, size_x, CELLS_X)
            b_class, b_level, m_member = load_levels(
                p_labels, p_eligible, p_scores, p_aim, o_pixel, o_box < end, (image, first), (first_class, n_classes),
                ignore_index, hashed, by_score, HARD, LEVELS, CLASSES,
            )  # fmt: skip
            b_bins += count_bins(b_class * LEVELS + b_level, m_member, CLASSES * LEVELS)
        b_table = tl.reshape(b_bins, [CLASSES, LEVELS])
        b_deeper = tl.sum(b_table, 1)[:, None] - tl.cumsum(b_table, 1) + b_table
        o_class = first_class + tl.arange(0, CLASSES)
        o_count = (o_class[:, None] * LEVELS + tl.arange(0, LEVELS)[None, :]) * n_units
        tl.store(p_counts + o_count, b_deeper, mask=(o_class < n_classes)[:, None] & (b_deeper >= 0))


@triton.jit
def counts_at(p_counts, o_class, m_class, b_level, n_chunks, n_units, LEVELS: tl.constexpr, UNITS: tl.constexpr):
    """Members [CLASSES, UNITS] of each class in each chunk of a cell, at a level of that class or deeper."""
    o_chunk = tl.arange(0, UNITS)
    o_count = ((o_class * LEVELS + b_level) * n_units)[:, None] + o_chunk[None, :]
    return tl.load(p_counts + o_count, mask=m_class[:, None] & (o_chunk < n_chunks)[None, :], other=0)


@triton.jit
def find_levels(p_counts, o_class, m_class, b_need, n_chunks, n_units, LEVELS: tl.constexpr, UNITS: tl.constexpr):
    """Deepest level [CLASSES] at which a class still has the members of the cell that are needed; else the first."""
    b_level = b_need * 0
    for bit in tl.static_range(LEVEL_BITS):
        if LEVELS >> bit > 1:
            b_try = b_level + (LEVELS >> bit) // 2
            b_found = tl.sum(counts_at(p_counts, o_class, m_class, b_try, n_chunks, n_units, LEVELS, UNITS), 1)
            b_level = tl.where(b_found >= b_need, b_try, b_level)
    return b_level


@triton.jit
def chunk_levels(p_counts, o_class, m_class, b_need, by_score, n_chunks, n_units, HARD: tl.constexpr,
                 LEVELS: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Levels [CLASSES, UNITS] from which each chunk lists, and how many pixels it lists.

    Of equal scores the first in the image are taken: a chunk with as many before it leaves its own out.
    """
    b_level = find_levels(p_counts, o_class, m_class, b_need, n_chunks, n_units, LEVELS, UNITS)
    b_count = counts_at(p_counts, o_class, m_class, b_level, n_chunks, n_units, LEVELS, UNITS)
    b_from = b_level[:, None] + tl.zeros([1, UNITS], tl.int32)
    if HARD:
        b_better = counts_at(p_counts, o_class, m_class, b_level * 0 + BELOW, n_chunks, n_units, LEVELS, UNITS)
        b_tied = b_count - b_better
        m_late = by_score & (b_level == AT)[:, None] & (tl.cumsum(b_tied, 1) - b_tied >= b_need[:, None])
        b_count, b_from = tl.where(m_late, b_better, b_count), tl.where(m_late, BELOW, b_from)
    return b_from, b_count


@triton.jit(do_not_specialize=("low", "high", "per_class", "ignore_index", "n_classes", "n_chunks", *SIZES))
def list_kernel(
    p_labels, p_eligible, p_scores, p_seed, p_aim, p_counts,  # as in count_kernel
    p_list,  # [2 where hard, B, Z * Y * X] pixels of an image, by cell and group of classes
    p_span,  # [2 where hard, B, groups, cells, 2] first place in the list, and number
    low, high, per_class, ignore_index, n_classes, n_chunks, size_z, size_y, size_x,
    HARD: tl.constexpr, LEVELS: tl.constexpr, CELLS_Z: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr,
    CLASSES: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """List the pixels of one chunk that are as deep as the deepest level that holds all draws of their class."""
    n_cells = CELLS_Z * CELLS_Y * CELLS_X
    n_units, n_groups = n_chunks * n_cells, tl.cdiv(n_classes, CLASSES)
    n_images = tl.num_programs(0) // n_units
    image, unit = (tl.program_id(0) // n_units).to(tl.int64), tl.program_id(0) % n_units
    cell, chunk = unit // n_chunks, unit % n_chunks
    slot, by_score = tl.program_id(1) * n_images + image, tl.program_id(1) > 0
    first = image * size_z * size_y * size_x
    box = cell_box(cell, size_z, size_y, size_x, CELLS_Z, CELLS_Y, CELLS_X)
    begin, end = chunk_of(box, chunk, n_chunks)
    seed = load_seed(p_seed, low, high)
    hashed = mix(seed) + first * GOLDEN
    p_counts += slot * n_classes * LEVELS * n_units
    p_list += slot * size_z * size_y * size_x
    listed = pixels_before(box, size_y, size_x)
    for group in range(0, n_groups):
        o_class = group * CLASSES + tl.arange(0, CLASSES)
        m_class = o_class < n_classes
        if CELLS_X > 1:
            o_row, o_part = o_class * LEVELS * n_units, o_class * n_images + image
            _, b_need = cell_share(p_counts, o_row, m_class, o_part, seed, cell, n_chunks, n_units, per_class, UNITS)
        else:
            b_need = tl.full([CLASSES], 0, tl.int32) + tl.where(by_score, per_class // 2, per_class)
        b_from, b_count = chunk_levels(
            p_counts + cell * n_chunks, o_class, m_class, b_need, by_score, n_chunks, n_units, HARD, LEVELS, UNITS
        )
        o_chunk = tl.arange(0, UNITS)[None, :]
        b_level = tl.sum(tl.where(o_chunk == chunk, b_from, 0), 1)
        total = tl.sum(tl.sum(b_count, 1), 0)
        p_to = p_list + listed + tl.sum(tl.sum(tl.where(o_chunk < chunk, b_count, 0), 1), 0)
        if chunk == 0:
            p_own = p_span + ((slot * n_groups + group) * n_cells + cell) * 2
            tl.store(p_own, listed)
            tl.store(p_own + 1, total)
        for start in range(begin, end, BLOCK):
            o_box = start + tl.arange(0, BLOCK)
            o_pixel = box_pixels(box, o_box, size_y, size_x, CELLS_X)
            b_class, b_found, m_member = load_levels(
                p_labels, p_eligible, p_scores, p_aim, o_pixel, o_box < end, (image, first),
                (group * CLASSES, n_classes), ignore_index, hashed, by_score, HARD, LEVELS, CLASSES,
            )  # fmt: skip
            m_listed = m_member & (b_found >= values_at(b_level, b_class))
            b_listed = m_listed.to(tl.int32)
            tl.store(p_to + tl.cumsum(b_listed, 0) - 1, o_pixel, mask=m_listed)
            p_to += tl.sum(b_listed, 0)
        listed += total
