// SPDX-License-Identifier: Apache-2.0
// The pairs of blocks behind self-contrast.
#include "self_sweep.h"

namespace secl::cpu {
namespace {

// One packed block: its rows as they are multiplied with, and transposed for the similarities.
struct Packed {
  Buffer values, tiles;
};

// A worker's memory for one pair of blocks.
struct PairWorkspace {
  Packed row_block;
  Buffer column_block, coefficients, row;
  PairWorkspace(const Problem& p, int64_t size)
      : row_block{Buffer(p.slab(size)), Buffer(p.depth * size)},
        column_block(p.slab(size)),
        coefficients(kPanel * kBlock),
        row(p.slab(1)) {}
};

// Every pair of blocks once, and each with itself first. Pairs are listed in rounds, by the circle method: in
// each a block stands once at most, so that no task of a round waits for another.
TurnList list_pairs(const BlockPairs& pairs, const SortedSide& side, bool same_label) {
  TurnList turns(pairs.blocks);
  const auto add = [&](int64_t a, int64_t b) {
    if (a > b) std::swap(a, b);
    if (b >= pairs.blocks) return;  // an odd number of blocks leaves one without a partner
    const int64_t last = std::min(side.count, (a + 1) * pairs.size) - 1;
    const Range met = side.meeting(side.key[a * pairs.size], side.key[last], same_label);
    if (met.last > b * pairs.size) turns.add(a, b, a, b);
  };
  for (int64_t a = 0; a < pairs.blocks; ++a) add(a, a);
  const int64_t places = round_up(pairs.blocks, 2), ring = places - 1;
  for (int64_t round = 0; round < ring; ++round) {
    add(ring, round);
    for (int64_t k = 1; k < places / 2; ++k) add((round + k) % ring, (round - k + ring) % ring);
  }
  return turns;
}

// The sweep of one pair of blocks.
struct PairTask {
  const Problem& p;
  const Role& rows;
  const BlockPairs& pairs;
  Operation operation;
  Sums& sums;

  int64_t packed_rows(int64_t block) const {
    return round_up(std::min(pairs.size, rows.side.count - block * pairs.size), kPanel);
  }

  Slab pack(int64_t block, const Buffer& to, PairWorkspace& w) const {
    const int64_t lanes = p.kernel.lanes;
    const Slab slab{to.get(), pairs.size * lanes};
    pack_slab(p.kernel, rows.reader, rows.side, block * pairs.size, packed_rows(block), slab, w.row.get());
    return slab;
  }

  // Rows `row`.. of a block's outputs.
  Slab output(int64_t block, int64_t row) const {
    if (!sums.has_output) return {};
    float* first = sums.output.get() + block * p.slab(pairs.size);
    return {first + row * p.kernel.lanes, pairs.size * p.kernel.lanes};
  }

  void run(Sweep s, int64_t row_block, int64_t column_block, PairWorkspace& w) const {
    const int64_t lanes = p.kernel.lanes, tile = p.kernel.tile, height = packed_rows(row_block);
    const Slab rows_packed = pack(row_block, w.row_block.values, w);
    pack_tiles(p.kernel, rows_packed, p.depth, height / tile, w.row_block.tiles.get());
    const bool same = row_block == column_block;
    const Slab columns_packed = same ? rows_packed : pack(column_block, w.column_block, w);
    s.coefficients = w.coefficients.get();
    for (int64_t row = 0; row < height; row += kBlock) {
      const int64_t column = same ? row : 0;  // earlier columns hold no ascending pair
      s.first_row = row_block * pairs.size + row;
      s.row_tiles = round_up(std::min({kBlock, height - row, rows.side.count - s.first_row}), tile) / tile;
      s.first_column = column_block * pairs.size + column;
      s.column_tiles =
          round_up(std::min(pairs.size - column, rows.side.count - s.first_column), p.kernel.columns) /
          p.kernel.columns;
      s.tiles = w.row_block.tiles.get() + row * p.depth;
      s.row_values = {rows_packed.data + row * lanes, rows_packed.step};
      s.values = {columns_packed.data + column * lanes, columns_packed.step};
      s.output = output(row_block, row);
      s.column_output = output(column_block, column);
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
    if (operation == Operation::kSigmoid) return p.kernel.self_sigmoid(s);
    p.kernel.self_gradient(s);
  }
};

}  // namespace

Sums BlockPairs::make_sums(const Problem& p, bool output) const {
  const int64_t rows = blocks * size, numbers = output ? blocks * p.slab(size) : 0;
  Sums sums{std::vector<double>(rows, 0), std::vector<double>(rows, 0), Buffer(numbers), output};
  std::fill(sums.output.get(), sums.output.get() + numbers, 0.0f);
  return sums;
}

void sweep_self(const Problem& p, const Role& rows, const BlockPairs& pairs, Operation operation,
                Sums& sums) {
  const TurnList turns = list_pairs(pairs, rows.side, operation == Operation::kPositives);
  const std::vector<Span> row_spans = make_spans(rows.side, p.kernel.tile);
  const std::vector<Span> column_spans = make_spans(rows.side, p.kernel.columns);
  const Sweep shared = shared_sweep(p, rows.side, rows.side, row_spans, column_spans);
  const PairTask task{p, rows, pairs, operation, sums};
  std::vector<PairWorkspace> workspaces;
  const int64_t workers = worker_count(product_work(rows.side.count, rows.side.count / 2, p.depth));
  for (int64_t worker = 0; worker < workers; ++worker) workspaces.emplace_back(p, pairs.size);
  turns.run(workers, [&](int64_t worker, const Turn& turn) {
    task.run(shared, turn.row, turn.column, workspaces[worker]);
  });
}

}  // namespace secl::cpu
