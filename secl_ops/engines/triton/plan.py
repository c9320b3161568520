# SPDX-License-Identifier: Apache-2.0
"""Which tiles of the other side a block of rows meets, and which of them need no look at a single pair.

Both sides lie by group and class, so that what a row may be compared with is one run of places, [first, stop), less the
run of its own class where that does not count, [hole first, hole stop). The blocks' own edges fall into few tiles:

    far    every pair of the tile counts, for every row of the block: no mask, no label
    near   some may count: each pair is looked at
    none   never visited
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.primitives import maximum_of, minimum_of


@triton.jit
def load_run(p_run, o_row, n_rows):
    """First place and stop of each row's run [2, n]; past the end an empty one."""
    m_row = o_row < n_rows
    b_first = tl.load(p_run + o_row, mask=m_row, other=0)
    return b_first, tl.load(p_run + n_rows + o_row, mask=m_row, other=0)


@triton.jit
def load_hole(p_hole, o_row, n_rows):
    """The same of the run that is left out; without one it is empty."""
    if p_hole is None:
        b_first = tl.zeros(o_row.shape, tl.int32)
        b_stop = tl.zeros(o_row.shape, tl.int32)
    else:
        b_first, b_stop = load_run(p_hole, o_row, n_rows)
    return b_first, b_stop


@triton.jit
def load_zone(p_zone, o_row, n_rows, SELF: tl.constexpr):
    """Places [first, stop) between which a row's excluded pairs lie: its own one, what the call says, or none."""
    if SELF:
        b_first = o_row
        b_stop = o_row + 1
    else:
        b_first, b_stop = load_hole(p_zone, o_row, n_rows)
    return b_first, b_stop


@triton.jit
def plan_tiles(run, hole, zone, BLOCK: tl.constexpr, POSITIVE: tl.constexpr):
    """Where the near tiles start, the lengths and the gaps of their four ranges, and the far ones likewise.

    With POSITIVE the pairs in the hole count as well, as positives: its tiles are near ones, and none are left out.
    """
    b_first, b_stop = run
    m_row = b_first < b_stop
    b_zone_first, b_zone_stop = zone
    m_zone = m_row & (b_zone_first < b_zone_stop)
    b_hole_first, b_hole_stop = hole
    m_hole = m_row & (b_hole_first < b_hole_stop)
    reach_first = minimum_of(b_first, m_row) // BLOCK
    reach_stop = (maximum_of(b_stop, m_row) + BLOCK - 1) // BLOCK
    far_first = (maximum_of(b_first, m_row) + BLOCK - 1) // BLOCK
    far_stop = tl.maximum(far_first, minimum_of(b_stop, m_row) // BLOCK)
    if reach_first >= reach_stop:  # no row of the block has anything to meet
        reach_first, reach_stop, far_first, far_stop = 0, 0, 0, 0
    edge_first = tl.minimum(minimum_of(b_zone_first, m_zone), minimum_of(b_hole_first, m_hole)) // BLOCK
    edge_stop = (tl.maximum(maximum_of(b_zone_stop, m_zone), maximum_of(b_hole_stop, m_hole)) + BLOCK - 1) // BLOCK
    edge_first = tl.minimum(tl.maximum(edge_first, far_first), far_stop)
    edge_stop = tl.minimum(tl.maximum(edge_stop, edge_first), far_stop)
    core_first = edge_stop
    core_stop = edge_stop
    if not POSITIVE:
        core_first = (maximum_of(b_hole_first, m_row) + BLOCK - 1) // BLOCK
        core_first = tl.minimum(tl.maximum(core_first, edge_first), edge_stop)
        core_stop = tl.minimum(tl.maximum(minimum_of(b_hole_stop, m_row) // BLOCK, core_first), edge_stop)
    near = (
        reach_first,
        far_first - reach_first, edge_first - far_first,
        core_first - edge_first, core_stop - core_first,
        edge_stop - core_stop, far_stop - edge_stop,
        reach_stop - far_stop,
    )  # fmt: skip
    return near, (far_first, edge_first - far_first, edge_stop - edge_first, far_stop - edge_stop)


@triton.jit
def count_near(near):
    """How many near tiles there are."""
    _, head, _, edge, _, rest, _, tail = near
    return head + edge + rest + tail


@triton.jit
def count_far(far):
    """How many far tiles there are."""
    _, before, _, after = far
    return before + after


@triton.jit
def near_tile(near, place):
    """The near tile at this place of their list."""
    first, head, gap, edge, core, rest, last_gap, _ = near
    tile = first + place
    tile += tl.where(place >= head, gap, 0)
    tile += tl.where(place >= head + edge, core, 0)
    return tile + tl.where(place >= head + edge + rest, last_gap, 0)


@triton.jit
def far_tile(far, place):
    """The far tile at this place of their list."""
    first, before, gap, _ = far
    return first + place + tl.where(place >= before, gap, 0)


@triton.jit
def share(count, part, parts):
    """Which of `count` tiles this one of the parts takes, [first, stop)."""
    return count * part // parts, count * (part + 1) // parts


@triton.jit
def inside(b_place, b_first, b_stop):
    """Whether each place [BM] lies in the run of each row [BN]: [BN, BM]."""
    return (b_place[None, :] >= b_first[:, None]) & (b_place[None, :] < b_stop[:, None])


@triton.jit
def comparable(o_row, o_other, run, zone, p_excluded, n_others):
    """Whether each place [BM] of the other side lies in each row's run [BN], and no exclusion parts the two: [BN, BM].

    The excluded place stands with the row, or with each place of the other side: `p_excluded`.
    """
    b_run_first, b_run_stop = run
    m_pair = inside(o_other, b_run_first, b_run_stop)
    if p_excluded is None:
        b_zone_first, b_zone_stop = zone
        m_pair = m_pair & ~inside(o_other, b_zone_first, b_zone_stop)
    else:
        b_gone = tl.load(p_excluded + o_other, mask=o_other < n_others, other=-1)
        m_pair = m_pair & (b_gone[None, :] != o_row[:, None])
    return m_pair


@triton.jit
def places_of(run, zone):
    """How many places each run has, less an excluded one."""
    b_first, b_stop = run
    b_zone_first, b_zone_stop = zone
    m_gone = (b_zone_first < b_zone_stop) & (b_zone_first >= b_first) & (b_zone_first < b_stop)
    return b_stop - b_first - m_gone.to(tl.int32)


@triton.jit
def pair_weights(p_copies, o_row, o_key, run, zone):
    """How often each of these keys [BM] counts as a positive of each row: [BN, BM]."""
    m_positive = comparable(o_row, o_key, run, zone, None, 0)
    if p_copies is None:
        b_weight = m_positive.to(tl.float32)
    else:
        b_weight = tl.where(m_positive, tl.load(p_copies + o_key)[None, :], 0.0)
    return b_weight


@triton.jit
def count_positives(p_copies, p_count, o_row, m_row, run, zone):
    """Number of positives of each row; whether it has one, and what a mean over them divides by, weighed before."""
    b_count = places_of(run, zone)
    m_counted = b_count > 0
    if p_copies is None:
        b_divisor = tl.maximum(b_count, 1).to(tl.float32)
    else:
        b_divisor = tl.where(m_counted, tl.load(p_count + o_row, mask=m_row, other=1.0), 1.0)
    return b_count, m_counted, b_divisor
