# SPDX-License-Identifier: Apache-2.0
"""The ordering kernel: where each row lies by group and label, and where it finds the other side, all by counting.

A launch in place of the thirty that sorting and searching take; its work is one comparison for each pair of rows.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

LAST = tl.constexpr(2**63 - 1)  # the rank of an ignored row


@triton.jit
def load_rank(p_labels, p_groups, o_row, count):
    """Label, and what rows are ordered by: an ignored row is behind all others."""
    m_row = o_row < count
    b_label = tl.load(p_labels + o_row, mask=m_row, other=-1)
    if p_groups is None:
        b_rank = b_label.to(tl.uint32, bitcast=True)
    else:
        b_group = tl.load(p_groups + o_row, mask=m_row, other=0).to(tl.int64)
        b_rank = tl.where(b_label < 0, LAST, (b_group << 32) + b_label)
    return b_label, b_rank


@triton.jit
def count_places(p_labels, p_groups, count, b_rank, o_row, BLOCK: tl.constexpr):
    """How many rows of a side come before each of these ranks; equal ones before a row of a lower number."""
    b_place = tl.zeros(b_rank.shape, tl.int32)
    for start in range(0, count, BLOCK):
        o_other = start + tl.arange(0, BLOCK)
        _, b_other = load_rank(p_labels, p_groups, o_other, count)
        m_equal = (b_other[None, :] == b_rank[:, None]) & (o_other[None, :] < o_row[:, None])
        b_place += tl.sum(((b_other[None, :] < b_rank[:, None]) | m_equal).to(tl.int32), 1)
    return b_place


@triton.jit
def count_runs(p_labels, p_groups, count, b_rank, BLOCK: tl.constexpr):
    """First place and stop of the rows of the same group, and of those of the same rank."""
    b_first = tl.zeros(b_rank.shape, tl.int32)
    b_stop = tl.zeros(b_rank.shape, tl.int32)
    b_own_first = tl.zeros(b_rank.shape, tl.int32)
    b_own_stop = tl.zeros(b_rank.shape, tl.int32)
    for start in range(0, count, BLOCK):
        o_other = start + tl.arange(0, BLOCK)
        b_label, b_other = load_rank(p_labels, p_groups, o_other, count)
        m_valid = (b_label >= 0)[None, :]
        if p_groups is None:
            b_stop += tl.sum((b_label >= 0).to(tl.int32), 0)
        else:
            b_group, b_other_group = (b_rank >> 32)[:, None], (b_other >> 32)[None, :]
            b_first += tl.sum((m_valid & (b_other_group < b_group)).to(tl.int32), 1)
            b_stop += tl.sum((m_valid & (b_other_group <= b_group)).to(tl.int32), 1)
        b_own_first += tl.sum((m_valid & (b_other[None, :] < b_rank[:, None])).to(tl.int32), 1)
        b_own_stop += tl.sum((m_valid & (b_other[None, :] <= b_rank[:, None])).to(tl.int32), 1)
    return b_first, b_stop, b_own_first, b_own_stop


@triton.jit
def count_excluded(p_exclude, o_row, m_row, p_labels, p_groups, count, BLOCK: tl.constexpr):
    """Place on the other side of the row that each of these excludes, and whether there is one."""
    b_wanted = tl.load(p_exclude + o_row, mask=m_row, other=-1)
    m_exists = (b_wanted >= 0) & (b_wanted < count)
    o_wanted = tl.where(m_exists, b_wanted, 0).to(tl.int32)
    _, b_rank = load_rank(p_labels, p_groups, o_wanted, count)
    return count_places(p_labels, p_groups, count, b_rank, o_wanted, BLOCK), m_exists


@triton.jit
def count_excluding(p_exclude, o_row, p_labels, p_groups, count, BLOCK: tl.constexpr):
    """Between which places those lie that exclude each of these rows: of several, anywhere."""
    b_number = tl.zeros(o_row.shape, tl.int32)
    b_last = tl.zeros(o_row.shape, tl.int32)
    for start in range(0, count, BLOCK):
        o_other = start + tl.arange(0, BLOCK)
        b_wanted = tl.load(p_exclude + o_other, mask=o_other < count, other=-1)
        m_excludes = b_wanted[None, :] == o_row[:, None]
        b_number += tl.sum(m_excludes.to(tl.int32), 1)
        b_last = tl.maximum(b_last, tl.max(tl.where(m_excludes, o_other[None, :], 0), 1))
    _, b_rank = load_rank(p_labels, p_groups, b_last, count)
    b_place = count_places(p_labels, p_groups, count, b_rank, b_last, BLOCK)
    b_first = tl.where(b_number == 1, b_place, 0)
    return b_first, tl.where(b_number == 1, b_place + 1, tl.where(b_number > 1, count, 0))


@triton.jit(do_not_specialize=("n_rows", "n_others"))
def order_kernel(
    p_labels, p_groups, p_exclude,  # [n] each: of the rows, the last two or None
    p_other_labels, p_other_groups, p_other_exclude,  # [m] each: of the other side
    p_row, p_other_row,  # [n], [m]: the row at each place; the latter None: the other side is this one
    p_runs, p_zone, p_excluded,  # [4, n], [2, n], [m], by place: runs of group and class, zone, excluded row; or None
    n_rows, n_others,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Order of both sides; the first programs take the rows, those behind them the other side."""
    blocks = (n_rows + BLOCK_N - 1) // BLOCK_N
    if tl.program_id(0) >= blocks:
        o_other = (tl.program_id(0) - blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_other = o_other < n_others
        _, b_rank = load_rank(p_other_labels, p_other_groups, o_other, n_others)
        b_place = count_places(p_other_labels, p_other_groups, n_others, b_rank, o_other, BLOCK_M)
        tl.store(p_other_row + b_place, o_other, mask=m_other)
        if p_other_exclude is not None:
            b_gone, m_gone = count_excluded(p_other_exclude, o_other, m_other, p_labels, p_groups, n_rows, BLOCK_M)
            tl.store(p_excluded + b_place, tl.where(m_gone, b_gone, -1), mask=m_other)
        return
    o_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < n_rows
    b_label, b_rank = load_rank(p_labels, p_groups, o_row, n_rows)
    b_place = count_places(p_labels, p_groups, n_rows, b_rank, o_row, BLOCK_M)
    tl.store(p_row + b_place, o_row, mask=m_row)
    b_first, b_stop, b_own_first, b_own_stop = count_runs(p_other_labels, p_other_groups, n_others, b_rank, BLOCK_M)
    m_valid = b_label >= 0
    tl.store(p_runs + b_place, tl.where(m_valid, b_first, 0), mask=m_row)
    tl.store(p_runs + n_rows + b_place, tl.where(m_valid, b_stop, 0), mask=m_row)
    tl.store(p_runs + 2 * n_rows + b_place, tl.where(m_valid, b_own_first, 0), mask=m_row)
    tl.store(p_runs + 3 * n_rows + b_place, tl.where(m_valid, b_own_stop, 0), mask=m_row)
    if p_exclude is not None:
        b_gone, m_gone = count_excluded(p_exclude, o_row, m_row, p_other_labels, p_other_groups, n_others, BLOCK_M)
        tl.store(p_zone + b_place, tl.where(m_gone, b_gone, 0), mask=m_row)
        tl.store(p_zone + n_rows + b_place, tl.where(m_gone, b_gone + 1, 0), mask=m_row)
    if p_other_exclude is not None:
        b_first, b_stop = count_excluding(p_other_exclude, o_row, p_other_labels, p_other_groups, n_others, BLOCK_M)
        tl.store(p_zone + b_place, b_first, mask=m_row)
        tl.store(p_zone + n_rows + b_place, b_stop, mask=m_row)
