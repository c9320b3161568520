# SPDX-License-Identifier: Apache-2.0
"""The forward kernels: rows stay, the other side streams past; each output row is written once, by one program.

`denominator_kernel`: maximum, sum of exponentials and their mean key over one part of the keys.  `positive_kernel` and
`class_mean_kernel`: what is left, from the positives alone.  `merge_kernel`: nothing but the log-sum-exp is left.

All rows come arranged: by group and class, ignored ones last and zero, padded with zeros to whole tiles and to WIDTH.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.plan import (
    comparable,
    count_far,
    count_near,
    count_positives,
    far_tile,
    inside,
    load_hole,
    load_run,
    load_zone,
    near_tile,
    pair_weights,
    plan_tiles,
    share,
)
from secl_ops.engines.triton.primitives import (
    LN2,
    dot_rows,
    finite_or_zero,
    load_order,
    maximum_of,
    merge_logits,
    minimum_of,
    row_offset,
    softplus2,
    tile_pointers,
    value_product,
)


@triton.jit
def denominator_tile(b_row, p_row, p_other, p_value, m_inside, p_bias, o_key, scale2, b_top, b_sum, b_mean,
                     WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
                     BOUNDED: tl.constexpr, VALUE: tl.constexpr):  # fmt: skip
    """One tile of keys into the running sums; without a mask every pair counts, without a bias once."""
    b_dot, b_key = dot_rows(b_row, p_row, p_other, WIDTH, BLOCK_D)
    b_logit = b_dot * scale2
    if p_bias is not None:
        b_logit = b_logit + tl.load(p_bias + o_key)[None, :]
    if m_inside is not None:
        b_logit = tl.where(m_inside, b_logit, float("-inf"))
    b_top, b_sum, b_shrink, b_term = merge_logits(b_logit, b_top, b_sum, BOUNDED)
    if VALUE:
        if not BOUNDED:
            b_mean = b_mean * b_shrink[:, None]
        if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
            b_key = tl.load(p_value)
        b_mean = value_product(b_term, b_key, b_mean)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    return b_top, b_sum, b_mean


@triton.jit(do_not_specialize=("n_anchors",))
def denominator_kernel(
    p_anchors, p_keys,  # [N', WIDTH], [M', WIDTH]
    p_run, p_hole, p_exclude,  # [2, N] each, or None: the denominator's places, those of them left out, one more
    p_bias,  # [M'], or None: log2 of how often each key counts
    p_order,  # [N]: where each anchor's mean belongs; None: here
    p_top, p_sum, p_mean,  # [parts, N], [parts, N], [parts, N, OUT]
    n_anchors, scale2, bound2,
    WIDTH: tl.constexpr, OUT: tl.constexpr, SELF: tl.constexpr, BOUNDED: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """First pass, over one part of the denominator's keys: maximum, sum of exponentials and their mean key."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part, parts = tl.program_id(2), tl.num_programs(2)
    run, hole = load_run(p_run, o_anchor, n_anchors), load_hole(p_hole, o_anchor, n_anchors)
    zone = load_zone(p_exclude, o_anchor, n_anchors, SELF)
    near, far = plan_tiles(run, hole, zone, BLOCK_M, False)
    o_chunk, o_tile = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    p_row = tile_pointers(
        p_anchors + row_offset(tl.program_id(0) * BLOCK_N, WIDTH), tl.arange(0, BLOCK_N), o_chunk, WIDTH
    )
    p_other, p_value = tile_pointers(p_keys, o_tile, o_chunk, WIDTH), tile_pointers(p_keys, o_tile, o_out, WIDTH)
    b_row = tl.load(p_row)
    b_top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    if BOUNDED:
        b_top = tl.full([BLOCK_N], 0.0, tl.float32) + bound2
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_mean = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    start, stop = share(count_far(far), part, parts)
    for place in range(start, stop):
        first = far_tile(far, place) * BLOCK_M
        skip = row_offset(first, WIDTH)
        b_top, b_sum, b_mean = denominator_tile(
            b_row, p_row, p_other + skip, p_value + skip, None, p_bias, first + o_tile, scale2,
            b_top, b_sum, b_mean,
            WIDTH, BLOCK_D, BLOCK_OUT, BOUNDED, VALUE,
        )  # fmt: skip
    start, stop = share(count_near(near), part, parts)
    for place in range(start, stop):
        first = near_tile(near, place) * BLOCK_M
        o_key = first + o_tile
        skip = row_offset(first, WIDTH)
        m_inside = comparable(o_anchor, o_key, run, zone, None, 0)
        if p_hole is not None:
            m_inside = m_inside & ~inside(o_key, hole[0], hole[1])
        b_top, b_sum, b_mean = denominator_tile(
            b_row, p_row, p_other + skip, p_value + skip, m_inside, p_bias, o_key, scale2,
            b_top, b_sum, b_mean,
            WIDTH, BLOCK_D, BLOCK_OUT, BOUNDED, VALUE,
        )  # fmt: skip
    m_row, m_meets = o_anchor < n_anchors, run[0] < run[1]
    if tl.program_id(1) == 0:
        tl.store(p_top + part * n_anchors + o_anchor, tl.where(m_meets, b_top, float("-inf")), mask=m_row)
        tl.store(p_sum + part * n_anchors + o_anchor, tl.where(m_meets, b_sum, 0.0), mask=m_row)
    if VALUE:
        o_place = part.to(tl.int64) * n_anchors + load_order(p_order, o_anchor, m_row)
        m_out = m_row[:, None] & (o_out < OUT)[None, :]
        b_mean = tl.where(m_meets[:, None], b_mean, 0.0)
        tl.store(p_mean + o_place[:, None] * OUT + o_out[None, :], b_mean, mask=m_out)


@triton.jit
def merged_denominator(p_top, p_sum, o_anchor, n_anchors, parts):
    """Log-sum-exp in base 2 of all parts: the largest maximum, the sum at it."""
    m_row = o_anchor < n_anchors
    b_top = tl.full(o_anchor.shape, float("-inf"), tl.float32)
    for part in range(0, parts):
        b_top = tl.maximum(b_top, tl.load(p_top + part * n_anchors + o_anchor, mask=m_row, other=float("-inf")))
    b_sum = tl.zeros(o_anchor.shape, tl.float32)
    for part in range(0, parts):
        b_part = tl.load(p_top + part * n_anchors + o_anchor, mask=m_row, other=float("-inf"))
        b_sum += tl.load(p_sum + part * n_anchors + o_anchor, mask=m_row, other=0.0) * shrink(b_part, b_top)
    return b_top, b_sum


@triton.jit
def shrink(b_top, b_next):
    """Factor on what was summed at one maximum when another takes its place."""
    return tl.exp2(tl.where(b_top == float("-inf"), b_top, finite_or_zero(b_top) - finite_or_zero(b_next)))


@triton.jit
def add_mean(b_grad, b_factor, p_mean, p_top, o_anchor, o_place, o_out, n_anchors, parts, b_top, b_sum,
             OUT: tl.constexpr):  # fmt: skip
    """Add a factor of each row times the softmax mean of its keys [BN, BO], from the parts' sums in their order."""
    m_row = o_anchor < n_anchors
    m_out = m_row[:, None] & (o_out < OUT)[None, :]
    b_factor = b_factor / tl.where(b_sum == 0.0, 1.0, b_sum)
    for part in range(0, parts):
        b_part = tl.load(p_top + part * n_anchors + o_anchor, mask=m_row, other=float("-inf"))
        p_part = p_mean + (n_anchors.to(tl.int64) * part + o_place)[:, None] * OUT + o_out[None, :]
        b_grad += tl.load(p_part, mask=m_out, other=0.0) * (b_factor * shrink(b_part, b_top))[:, None]
    return b_grad


@triton.jit(do_not_specialize=("n_anchors", "parts"))
def positive_kernel(
    p_anchors, p_keys,  # [N', WIDTH], [M', WIDTH]
    p_run, p_exclude,  # [2, N] each, the second or None: places of the positives, one that is none
    p_copies,  # [M'], or None: how often each key counts
    p_order, p_known,  # [N]: the row of each anchor; log-sum-exp of each row, in place of the parts' own, or None
    p_top, p_sum, p_mean,  # [parts, N], [parts, N], [parts, N, OUT]; None where the log-sum-exp is known
    p_loss, p_lse, p_pull, p_count, p_grad,  # [N] each, [N, OUT]: d loss_i / d a_i; with p_copies the count is given
    n_anchors, parts, scale2, scale,
    WIDTH: tl.constexpr, OUT: tl.constexpr, SELF: tl.constexpr, VALUE: tl.constexpr, PLACED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Second pass under "negatives", over the anchors' own class: loss, pull, count and the anchor gradient."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m_row = o_anchor < n_anchors
    o_row = load_order(p_order, o_anchor, m_row)
    run, zone = load_run(p_run, o_anchor, n_anchors), load_zone(p_exclude, o_anchor, n_anchors, SELF)
    b_top = tl.zeros([BLOCK_N], tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    if p_known is None:
        b_top, b_sum = merged_denominator(p_top, p_sum, o_anchor, n_anchors, parts)
        b_lse = tl.log2(b_sum) + finite_or_zero(b_top)
    else:
        b_lse = tl.load(p_known + o_row, mask=m_row, other=0.0) / LN2
    o_chunk, o_tile = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    p_row = tile_pointers(
        p_anchors + row_offset(tl.program_id(0) * BLOCK_N, WIDTH), tl.arange(0, BLOCK_N), o_chunk, WIDTH
    )
    p_other, p_value = tile_pointers(p_keys, o_tile, o_chunk, WIDTH), tile_pointers(p_keys, o_tile, o_out, WIDTH)
    b_row = tl.load(p_row)
    b_loss = tl.zeros([BLOCK_N], tl.float32)
    b_pull = tl.zeros([BLOCK_N], tl.float32)
    b_near = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    m_meets = run[0] < run[1]
    first, stop = minimum_of(run[0], m_meets) // BLOCK_M * BLOCK_M, maximum_of(run[1], m_meets)
    for start in range(first, stop, BLOCK_M):
        o_key = start + o_tile
        skip = row_offset(start, WIDTH)
        m_positive = comparable(o_anchor, o_key, run, zone, None, 0)
        b_dot, b_key = dot_rows(b_row, p_row, p_other + skip, WIDTH, BLOCK_D)
        b_gap = b_lse[:, None] - b_dot * scale2
        b_soft, b_slope = softplus2(b_gap)
        if p_copies is not None:
            b_copies = tl.load(p_copies + o_key)[None, :]
            b_soft, b_slope = b_soft * b_copies, b_slope * b_copies
        b_loss += tl.sum(tl.where(m_positive, b_soft, 0.0), 1)
        b_weight = tl.where(m_positive, b_slope, 0.0)
        b_pull += tl.sum(b_weight, 1)
        if VALUE:
            if (BLOCK_D < WIDTH) or (BLOCK_OUT < WIDTH):
                b_key = tl.load(p_value + skip)
            b_near = value_product(b_weight, b_key, b_near)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    b_count, m_counted, b_divisor = count_positives(p_copies, p_count, o_row, m_row, run, zone)
    b_pull = b_pull / b_divisor
    if tl.program_id(1) == 0:
        tl.store(p_loss + o_row, b_loss / b_divisor, mask=m_row)
        tl.store(p_lse + o_row, b_lse * LN2, mask=m_row)
        tl.store(p_pull + o_row, b_pull, mask=m_row)
        if p_copies is None:
            tl.store(p_count + o_row, b_count, mask=m_row)
    if VALUE:
        b_grad = -scale * (b_near / b_divisor[:, None])
        if p_known is None:  # a known log-sum-exp is held constant
            o_place = o_row.to(tl.int64) if PLACED else o_anchor.to(tl.int64)
            b_grad = add_mean(
                b_grad, scale * b_pull, p_mean, p_top, o_anchor, o_place, o_out, n_anchors, parts, b_top, b_sum, OUT
            )
        m_out = m_row[:, None] & (o_out < OUT)[None, :]
        p_out = p_grad + o_row.to(tl.int64)[:, None] * OUT + o_out[None, :]
        tl.store(p_out, tl.where(m_counted[:, None], b_grad, 0.0), mask=m_out)


@triton.jit
def whole_sum(p_sums, far, o_out, WIDTH: tl.constexpr, BATCH: tl.constexpr):
    """Sum of the keys [BO] in the tiles that lie in the class of every row: each was summed when it was arranged."""
    count = count_far(far)
    b_sum = tl.zeros([o_out.shape[0]], tl.float32)
    for start in range(0, count, BATCH):
        o_place = start + tl.arange(0, BATCH)
        p_tile = p_sums + far_tile(far, o_place).to(tl.int64)[:, None] * WIDTH + o_out[None, :]
        b_sum += tl.sum(tl.load(p_tile, mask=(o_place < count)[:, None], other=0.0), 0)
    return b_sum


@triton.jit
def edge_sum(p_keys, p_copies, o_row, run, near, zone, o_out,
             BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Sum of each row's positives [BN, BO] in the other tiles, pair by pair."""
    b_sum = tl.zeros([BLOCK_N, o_out.shape[0]], tl.float32)
    for place in range(0, count_near(near)):
        first = near_tile(near, place) * BLOCK_M
        b_weight = pair_weights(p_copies, o_row, first + tl.arange(0, BLOCK_M), run, zone)
        b_key = tl.load(tile_pointers(p_keys + row_offset(first, WIDTH), tl.arange(0, BLOCK_M), o_out, WIDTH))
        b_sum = value_product(b_weight, b_key, b_sum)  # [BN, BM] @ [BM, BO] -> [BN, BO]
    return b_sum


@triton.jit
def edge_dot(b_row, p_row, p_keys, p_copies, o_row, run, near, zone, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
             BLOCK_D: tl.constexpr):  # fmt: skip
    """Sum of each row's similarities to those positives [BN]; a NaN beside them is none of theirs."""
    b_sum = tl.zeros([b_row.shape[0]], tl.float32)
    o_tile, o_chunk = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    for place in range(0, count_near(near)):
        first = near_tile(near, place) * BLOCK_M
        p_other = tile_pointers(p_keys + row_offset(first, WIDTH), o_tile, o_chunk, WIDTH)
        b_dot, _ = dot_rows(b_row, p_row, p_other, WIDTH, BLOCK_D)
        b_dot = tl.where(comparable(o_row, first + o_tile, run, zone, None, 0), b_dot, 0.0)
        if p_copies is not None:
            b_dot = b_dot * tl.load(p_copies + first + o_tile)[None, :]
        b_sum += tl.sum(b_dot, 1)
    return b_sum


@triton.jit(do_not_specialize=("n_anchors", "parts"))
def class_mean_kernel(
    p_anchors, p_keys, p_sums,  # [N', WIDTH], [M', WIDTH], [tiles, WIDTH]: sum of each tile of SUM_ROWS keys
    p_run, p_exclude,  # [2, N] each, the second or None: places of the positives, one that is none
    p_copies,  # [M'], or None: how often each key counts
    p_order, p_known,  # [N]: the row of each anchor; log-sum-exp of each row, in place of the parts' own, or None
    p_top, p_sum, p_mean,  # [parts, N], [parts, N], [parts, N, OUT]; None where the log-sum-exp is known
    p_loss, p_lse, p_pull, p_count, p_grad,  # [N] each, [N, OUT]: d loss_i / d a_i; with p_copies the count is given
    n_anchors, parts, scale,
    WIDTH: tl.constexpr, OUT: tl.constexpr, SELF: tl.constexpr, VALUE: tl.constexpr, PLACED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):  # fmt: skip
    """Second pass under "all": <a, sum of positives> needs no similarity of a pair, only the sum of each class."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_anchor < n_anchors
    o_row = load_order(p_order, o_anchor, m_row)
    run, zone = load_run(p_run, o_anchor, n_anchors), load_zone(p_exclude, o_anchor, n_anchors, SELF)
    b_top = tl.zeros([BLOCK_N], tl.float32)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    if p_known is None:
        b_top, b_sum = merged_denominator(p_top, p_sum, o_anchor, n_anchors, parts)
        b_lse = (tl.log2(b_sum) + finite_or_zero(b_top)) * LN2
    else:
        b_lse = tl.load(p_known + o_row, mask=m_row, other=0.0)
    b_count, m_counted, b_divisor = count_positives(p_copies, p_count, o_row, m_row, run, zone)
    near, far = plan_tiles(run, (run[0], run[0]), zone, SUM_ROWS, True)
    o_block = tl.arange(0, BLOCK_N)
    p_block = p_anchors + row_offset(tl.program_id(0) * BLOCK_N, WIDTH)
    p_row = tile_pointers(p_block, o_block, tl.arange(0, BLOCK_D), WIDTH)
    b_scale = tl.full([BLOCK_N], 0.0, tl.float32) + scale
    b_dot = edge_dot(tl.load(p_row), p_row, p_keys, p_copies, o_anchor, run, near, zone, SUM_ROWS, WIDTH, BLOCK_D)
    for column in range(0, WIDTH, BLOCK_OUT):
        o_out = column + tl.arange(0, BLOCK_OUT)
        b_whole = whole_sum(p_sums, far, o_out, WIDTH, BLOCK_M)
        b_dot += tl.sum(tl.load(tile_pointers(p_block, o_block, o_out, WIDTH)).to(tl.float32) * b_whole[None, :], 1)
        if VALUE:
            b_edge = edge_sum(p_keys, p_copies, o_anchor, run, near, zone, o_out, BLOCK_N, SUM_ROWS, WIDTH)
            b_near = b_whole[None, :] + b_edge
            b_grad = -scale * (b_near / b_divisor[:, None])
            if p_known is None:  # a known log-sum-exp is held constant
                o_place = o_row.to(tl.int64) if PLACED else o_anchor.to(tl.int64)
                b_grad = add_mean(
                    b_grad, b_scale, p_mean, p_top, o_anchor, o_place, o_out, n_anchors, parts, b_top, b_sum, OUT
                )
            m_out = m_row[:, None] & (o_out < OUT)[None, :]
            p_out = p_grad + o_row.to(tl.int64)[:, None] * OUT + o_out[None, :]
            tl.store(p_out, tl.where(m_counted[:, None], b_grad, 0.0), mask=m_out)
    b_loss = b_lse - scale * b_dot / b_divisor
    tl.store(p_loss + o_row, tl.where(m_counted, b_loss, 0.0), mask=m_row)
    tl.store(p_lse + o_row, b_lse, mask=m_row)
    tl.store(p_pull + o_row, m_counted.to(tl.float32), mask=m_row)
    if p_copies is None:
        tl.store(p_count + o_row, b_count, mask=m_row)


@triton.jit(do_not_specialize=("n_anchors", "parts"))
def merge_kernel(
    p_order, p_top, p_sum, p_mean,  # [N], [parts, N], [parts, N], [parts, N, OUT]
    p_lse, p_grad,  # [N], [N, OUT]
    n_anchors, parts, scale,
    OUT: tl.constexpr, VALUE: tl.constexpr, PLACED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of all parts and its gradient, where that is all that is asked for."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m_row = o_anchor < n_anchors
    o_row = load_order(p_order, o_anchor, m_row)
    b_top, b_sum = merged_denominator(p_top, p_sum, o_anchor, n_anchors, parts)
    if tl.program_id(1) == 0:
        tl.store(p_lse + o_row, (tl.log2(b_sum) + finite_or_zero(b_top)) * LN2, mask=m_row)
    if VALUE:
        o_place = o_row.to(tl.int64) if PLACED else o_anchor.to(tl.int64)
        b_grad, b_scale = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32), tl.full([BLOCK_N], 0.0, tl.float32) + scale
        b_grad = add_mean(b_grad, b_scale, p_mean, p_top, o_anchor, o_place, o_out, n_anchors, parts, b_top, b_sum, OUT)
        m_out = m_row[:, None] & (o_out < OUT)[None, :]
        tl.store(p_grad + o_row.to(tl.int64)[:, None] * OUT + o_out[None, :], b_grad, mask=m_out)
