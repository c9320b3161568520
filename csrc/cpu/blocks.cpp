// SPDX-License-Identifier: Apache-2.0
// Checks one call's tensors, sorts its rows, and streams one side past the other.
#include "blocks.h"

#include "../checks.h"
#include "../contrast_math.h"

namespace secl::cpu {
namespace {

// In base-2 exponents: float32 holds 2^-126, and the norms of low-precision rows exceed 1 a little.
constexpr double kBoundedRange = 120;
constexpr int64_t kChunk = 16 * kPanel;  // columns that stay in the cache while every block of rows passes
constexpr int64_t kEnoughChains = 8;

// A worker's memory for the tile products.
struct Workspace {
  Buffer block, tiles, panel, coefficients, row;
  explicit Workspace(const Problem& p)
      : block(p.slab(kBlock)),
        tiles(p.depth * kBlock),
        panel(p.slab(kPanel)),
        coefficients(kPanel * kBlock),
        row(p.slab(1)) {}
};

// The sweep of one task: a block of rows against the columns of one chunk that it can meet.
struct Task {
  const Problem& p;
  const Role &rows, &columns;
  Operation operation;

  Range columns_met(int64_t block, int64_t chunk) const {
    const int64_t low = rows.side.key[block * kBlock];
    const int64_t high = rows.side.key[std::min(rows.side.count, (block + 1) * kBlock) - 1];
    const Range met = columns.side.meeting(low, high, operation == Operation::kPositives);
    return {std::max(met.first, chunk * kChunk), std::min(met.last, (chunk + 1) * kChunk)};
  }

  void run(Sweep& s, Range met, Workspace& w) const {
    const int64_t lanes = p.kernel.lanes, left = rows.side.count - s.first_row;
    const Slab block{w.block.get(), kBlock * lanes};
    s.row_tiles = round_up(std::min(kBlock, left), p.kernel.tile) / p.kernel.tile;
    pack_slab(rows.reader, rows.side, s.first_row, s.row_tiles * p.kernel.tile, lanes, block, w.row.get());
    pack_tiles(block, lanes, p.depth, s.row_tiles, p.kernel.tile, w.tiles.get());
    s.tiles = w.tiles.get();
    s.coefficients = w.coefficients.get();
    s.values = {w.panel.get(), kPanel * lanes};
    for (int64_t first = met.first / kPanel * kPanel; first < met.last; first += kPanel) {
      s.first_column = first;
      s.column_tiles = round_up(std::min(kPanel, columns.side.count - first), p.kernel.columns) / p.kernel.columns;
      pack_slab(columns.reader, columns.side, first, s.column_tiles * p.kernel.columns, lanes, s.values,
                w.row.get());
      sweep(s);
    }
  }

  void sweep(const Sweep& s) const {
    if (operation == Operation::kLogSumExp) return p.kernel.log_sum_exp(s);
    if (operation == Operation::kPositives) return p.kernel.positives(s);
    p.kernel.gradient(s, operation == Operation::kAnchorGradient);
  }
};

}  // namespace

Problem make_problem(const Tensor& anchors, const Tensor& keys, const Tensor& anchor_labels,
                     const Tensor& key_labels, const Maybe& anchor_groups, const Maybe& key_groups,
                     const PairRule& rule, double scale, int64_t flags, const std::vector<bool>& skipped) {
  check_rows("anchors", anchors);
  check_rows("keys", keys);
  const int64_t n = anchors.size(0), m = keys.size(0);
  STD_TORCH_CHECK(anchors.size(1) == keys.size(1), "anchors and keys must have the same width");
  STD_TORCH_CHECK(!rule.self || n == m, "under SELF the keys are the anchors");
  check_vector("anchor_labels", anchor_labels, n, ScalarType::Int);
  check_vector("key_labels", key_labels, m, ScalarType::Int);
  const bool grouped = anchor_groups.has_value() && key_groups.has_value();
  if (grouped) {
    check_vector("anchor_groups", anchor_groups, n, ScalarType::Int);
    check_vector("key_groups", key_groups, m, ScalarType::Int);
  }
  check_vector("exclude", rule.exclude, n, ScalarType::Long);
  Problem p{.rule = rule, .scale = scale, .flags = flags, .depth = anchors.size(1)};
  p.anchors = sort_side(anchor_labels, grouped ? anchor_groups : Maybe(), skipped);
  if (!rule.self) p.separate_keys = sort_side(key_labels, grouped ? key_groups : Maybe());
  relate(p.anchors, p.keys(), rule);
  double norms = 1;
  if (!(flags & kUnit)) {
    norms = largest_norm(RowReader(anchors), p.anchors);
    norms *= rule.self ? norms : largest_norm(RowReader(keys), p.separate_keys);
  }
  p.maximum = scale * M_LOG2E * norms;
  p.bounded = 2 * p.maximum < kBoundedRange;
  return p;
}

Sweep shared_sweep(const Problem& p, const SortedSide& rows, const SortedSide& columns,
                   const std::vector<Span>& row_spans, const std::vector<Span>& column_spans) {
  return {.rows = rows.view(),
          .columns = columns.view(),
          .row_spans = row_spans.data(),
          .column_spans = column_spans.data(),
          .depth = p.depth,
          .chunks = p.chunks(),
          .to_log2 = static_cast<float>(p.scale * M_LOG2E),
          .maximum = static_cast<float>(p.maximum),
          .bounded = p.bounded,
          .negatives_only = (p.flags & kNegatives) != 0};
}

Chains::Chains(int64_t rows, int64_t columns) : blocks(round_up(rows, kBlock) / kBlock), splits(1) {
  const int64_t chunks = std::max<int64_t>(1, round_up(columns, kChunk) / kChunk);
  if (blocks > 0 && blocks < kEnoughChains) splits = std::min(chunks, round_up(kEnoughChains, blocks) / blocks);
}

Sums Chains::make_sums(const Problem& p, bool output, double other) const {
  const int64_t chains = blocks * splits;
  Sums sums{std::vector<double>(chains * kBlock, 0), std::vector<double>(chains * kBlock, other),
            Buffer(output ? chains * p.slab(kBlock) : 0), output};
  if (output) std::fill(sums.output.get(), sums.output.get() + chains * p.slab(kBlock), 0.0f);
  return sums;
}

void Chains::join(const Problem& p, Sums& sums, bool peaks) const {
  const int64_t size = p.slab(kBlock);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t chain = block * splits + 1; chain < (block + 1) * splits; ++chain) {
      for (int64_t r = 0; r < kBlock; ++r) {
        const int64_t to = block * splits * kBlock + r, from = chain * kBlock + r;
        const auto exp2 = [](double x) { return std::exp2(x); };
        Running<double> sum{sums.other[to] + sums.other[from], sums.total[to] + sums.total[from]};
        if (peaks) {
          sum = merge(Running<double>{sums.other[to], sums.total[to]},
                      Running<double>{sums.other[from], sums.total[from]}, exp2);
        }
        sums.other[to] = sum.peak;
        sums.total[to] = sum.sum;
      }
      if (!sums.has_output) continue;
      float* to = sums.output.get() + block * splits * size;
      const float* from = sums.output.get() + chain * size;
      for (int64_t k = 0; k < size; ++k) to[k] += from[k];
    }
  }
}

void sweep_sides(const Problem& p, const Role& rows, const Role& columns, const Chains& chains,
                 Operation operation, Sums& sums) {
  const Task task{p, rows, columns, operation};
  const int64_t chunks = round_up(columns.side.count, kChunk) / kChunk;
  TurnList turns(chains.blocks * chains.splits);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t block = 0; block < chains.blocks; ++block) {
      const Range met = task.columns_met(block, chunk);
      if (met.first < met.last) turns.add(block, chunk, chains.of(block, chunk), chains.of(block, chunk));
    }
  }
  const std::vector<Span> row_spans = make_spans(rows.side, p.kernel.tile);
  const std::vector<Span> column_spans = make_spans(columns.side, p.kernel.columns);
  const Sweep shared = shared_sweep(p, rows.side, columns.side, row_spans, column_spans);
  std::vector<Workspace> workspaces;
  for (int64_t worker = 0; worker < worker_count(); ++worker) workspaces.emplace_back(p);
  turns.run(worker_count(), [&](int64_t worker, const Turn& turn) {
    const int64_t chain = turn.owners[0];
    Sweep sweep = shared;
    sweep.first_row = turn.row * kBlock;
    sweep.total = sums.total.data() + chain * kBlock;
    sweep.other = sums.other.data() + chain * kBlock;
    if (sums.has_output) sweep.output = {sums.output.get() + chain * p.slab(kBlock), kBlock * p.kernel.lanes};
    task.run(sweep, task.columns_met(turn.row, turn.column), workspaces[worker]);
  });
}

}  // namespace secl::cpu
