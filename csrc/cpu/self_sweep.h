// SPDX-License-Identifier: Apache-2.0
// One side swept past itself: each unordered pair of rows is visited once and serves both of its rows, which
// halves the similarities. Blocks meet as in a tournament, so that many tasks run at a time.
#pragma once

#include "blocks.h"

namespace secl::cpu {

// The blocks of a tournament: several of `kBlock` rows, packed together.
struct Tournament {
  int64_t size, players;

  explicit Tournament(int64_t rows)
      : size((rows < 2048    ? 1
              : rows < 12288 ? 2
                             : 3) *
             kBlock),
        players(round_up(rows, size) / size) {}
  // Sums by position; with an output one slab of `size` rows for each player.
  Sums make_sums(const Problem& p, bool output) const;
};

void sweep_self(const Problem& p, const Role& rows, const Tournament& tournament, Operation operation,
                Sums& sums);

}  // namespace secl::cpu
