// SPDX-License-Identifier: Apache-2.0
// The tournament of blocks behind self-contrast.
#include "self_sweep.h"

namespace secl::cpu {
namespace {

// One packed player: its rows as they are multiplied with, and transposed for the similarities.
struct Packed {
  Buffer values, tiles;
};

// A worker's memory for one match.
struct Corner {
  Packed home;
  Buffer guest, coefficients, row;
  Corner(const Problem& p, int64_t size)
      : home{Buffer(p.slab(size)), Buffer(p.depth * size)},
        guest(p.slab(size)),
        coefficients(kPanel * kBlock),
        row(p.slab(1)) {}
};

// Every pair of players once, and each with itself first; in each round a player has one match at most.
TurnList matches(const Tournament& tournament, const SortedSide& side, bool same_label) {
  TurnList turns(tournament.players);
  const auto add = [&](int64_t a, int64_t b) {
    if (a > b) std::swap(a, b);
    if (b >= tournament.players) return;  // an odd number of players leaves one without a match
    const int64_t last = std::min(side.count, (a + 1) * tournament.size) - 1;
    const Range met = side.meeting(side.key[a * tournament.size], side.key[last], same_label);
    if (met.last > b * tournament.size) turns.add(a, b, a, b);
  };
  for (int64_t a = 0; a < tournament.players; ++a) add(a, a);
  const int64_t seats = round_up(tournament.players, 2), ring = seats - 1;
  for (int64_t round = 0; round < ring; ++round) {
    add(ring, round);
    for (int64_t k = 1; k < seats / 2; ++k) add((round + k) % ring, (round - k + ring) % ring);
  }
  return turns;
}

struct Match {
  const Problem& p;
  const Role& rows;
  const Tournament& tournament;
  Operation operation;
  Sums& sums;

  int64_t packed_rows(int64_t player) const {
    return round_up(std::min(tournament.size, rows.side.count - player * tournament.size), kPanel);
  }

  Slab pack(int64_t player, const Buffer& to, Corner& corner) const {
    const int64_t lanes = p.kernel.lanes;
    const Slab slab{to.get(), tournament.size * lanes};
    pack_slab(p.kernel, rows.reader, rows.side, player * tournament.size, packed_rows(player), slab,
              corner.row.get());
    return slab;
  }

  // Rows `row`.. of a player's outputs.
  Slab output(int64_t player, int64_t row) const {
    if (!sums.has_output) return {};
    float* first = sums.output.get() + player * p.slab(tournament.size);
    return {first + row * p.kernel.lanes, tournament.size * p.kernel.lanes};
  }

  void run(Sweep s, int64_t home, int64_t guest, Corner& corner) const {
    const int64_t lanes = p.kernel.lanes, tile = p.kernel.tile, height = packed_rows(home);
    const Slab block = pack(home, corner.home.values, corner);
    pack_tiles(p.kernel, block, p.depth, height / tile, corner.home.tiles.get());
    const Slab columns = home == guest ? block : pack(guest, corner.guest, corner);
    s.coefficients = corner.coefficients.get();
    for (int64_t row = 0; row < height; row += kBlock) {
      const int64_t column = home == guest ? row : 0;  // earlier columns hold no ascending pair
      s.first_row = home * tournament.size + row;
      s.row_tiles = round_up(std::min({kBlock, height - row, rows.side.count - s.first_row}), tile) / tile;
      s.first_column = guest * tournament.size + column;
      s.column_tiles =
          round_up(std::min(tournament.size - column, rows.side.count - s.first_column), p.kernel.columns) /
          p.kernel.columns;
      s.tiles = corner.home.tiles.get() + row * p.depth;
      s.row_values = {block.data + row * lanes, block.step};
      s.values = {columns.data + column * lanes, columns.step};
      s.output = output(home, row);
      s.column_output = output(guest, column);
      s.total = sums.total.data() + s.first_row;
      s.other = sums.other.data() + s.first_row;
      s.column_total = sums.total.data() + s.first_column;
      s.column_other = sums.other.data() + s.first_column;
      if (s.row_tiles > 0) sweep(s);
    }
  }

  void sweep(const Sweep& s) const {
    if (operation == Operation::kLogSumExp) return p.kernel.self_log_sum_exp(s);
    if (operation == Operation::kPositives) return p.kernel.self_positives(s);
    p.kernel.self_gradient(s);
  }
};

}  // namespace

Sums Tournament::make_sums(const Problem& p, bool output) const {
  const int64_t rows = players * size, numbers = output ? players * p.slab(size) : 0;
  Sums sums{std::vector<double>(rows, 0), std::vector<double>(rows, 0), Buffer(numbers), output};
  std::fill(sums.output.get(), sums.output.get() + numbers, 0.0f);
  return sums;
}

void sweep_self(const Problem& p, const Role& rows, const Tournament& tournament, Operation operation,
                Sums& sums) {
  const TurnList turns = matches(tournament, rows.side, operation == Operation::kPositives);
  const std::vector<Span> row_spans = make_spans(rows.side, p.kernel.tile);
  const std::vector<Span> column_spans = make_spans(rows.side, p.kernel.columns);
  const Sweep shared = shared_sweep(p, rows.side, rows.side, row_spans, column_spans);
  const Match match{p, rows, tournament, operation, sums};
  std::vector<Corner> corners;
  const int64_t workers = worker_count(product_work(rows.side.count, rows.side.count / 2, p.depth));
  for (int64_t worker = 0; worker < workers; ++worker) corners.emplace_back(p, tournament.size);
  turns.run(workers, [&](int64_t worker, const Turn& turn) {
    match.run(shared, turn.row, turn.column, corners[worker]);
  });
}

}  // namespace secl::cpu
