// SPDX-License-Identifier: Apache-2.0
// One side swept past itself: each unordered pair of rows is visited once and serves both of its rows, which
// halves the similarities. The pairs of blocks are the tasks, in such an order that many run at a time.
#pragma once

#include "blocks.h"

namespace secl::cpu {

// How a side is cut for its pairs of blocks: each of several times `kBlock` rows, packed together.
struct BlockPairs {
  int64_t size, blocks;  // rows of a block, blocks of the side

  explicit BlockPairs(int64_t rows)
      : size((rows < 2048    ? 1
              : rows < 12288 ? 2
                             : 3) *
             kBlock),
        blocks(round_up(rows, size) / size) {}
  // Sums by position; with an output one slab of `size` rows for each block.
  Sums make_sums(const Problem& p, bool output) const;
};

void sweep_self(const Problem& p, const Role& rows, const BlockPairs& pairs, Operation operation, Sums& sums);

}  // namespace secl::cpu
