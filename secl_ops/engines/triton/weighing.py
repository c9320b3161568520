# SPDX-License-Identifier: Apache-2.0
"""Weighted keys: how much the positives of each anchor weigh together."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's decorator and its block values have no static types.

from __future__ import annotations

import triton
import triton.language as tl

from secl_ops.engines.triton.plan import (
    count_far,
    count_near,
    far_tile,
    load_run,
    load_zone,
    near_tile,
    pair_weights,
    plan_tiles,
)
from secl_ops.engines.triton.primitives import load_order


@triton.jit(do_not_specialize=("n_anchors",))
def weigh_kernel(
    p_run, p_exclude,  # [2, N] each, the second or None: places of the positives, one that is none
    p_copies, p_weight,  # [M'], [tiles]: how often each key counts, and those of a tile of BLOCK_M together
    p_order, p_count,  # [N]: the row of each anchor; [N]: what its positives weigh, by row
    n_anchors,
    SELF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Sum of the weights of each anchor's positives: whole tiles were summed before, the others key by key."""
    o_anchor = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_anchor < n_anchors
    run, zone = load_run(p_run, o_anchor, n_anchors), load_zone(p_exclude, o_anchor, n_anchors, SELF)
    near, far = plan_tiles(run, (run[0], run[0]), zone, BLOCK_M, True)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, count_far(far), BATCH):
        o_place = start + tl.arange(0, BATCH)
        b_sum += tl.sum(tl.load(p_weight + far_tile(far, o_place), mask=o_place < count_far(far), other=0.0), 0)
    for place in range(0, count_near(near)):
        o_key = near_tile(near, place) * BLOCK_M + tl.arange(0, BLOCK_M)
        b_sum += tl.sum(pair_weights(p_copies, o_anchor, o_key, run, zone), 1)
    b_sum = tl.where(run[0] < run[1], b_sum, 0.0)  # of a row without a run the block's tiles are none
    tl.store(p_count + load_order(p_order, o_anchor, m_row), b_sum, mask=m_row)
