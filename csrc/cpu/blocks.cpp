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
constexpr int64_t kBand = 3;             // blocks that share a packed panel
constexpr int64_t kEnoughChains = 8;

// A worker's memory for the tile products.
struct Workspace {
  Buffer block, tiles, panel, coefficients, row;
  explicit Workspace(const Problem& p)
      : block(p.slab(kBlock)),
        tiles(kBand * p.depth * kBlock),
        panel(p.slab(kPanel)),
        coefficients(kPanel * kBlock),
        row(p.slab(1)) {}
};

// The sweep of one task: a band of blocks against the columns of one chunk that it can meet.
struct Task {
  const Problem& p;
  const Role &rows, &columns;
  const Chains& chains;
  Operation operation;
  Sums& sums;

  Range columns_met(int64_t band, int64_t chunk) const {
    const int64_t low = rows.side.key[band * kBand * kBlock];
    const int64_t high = rows.side.key[std::min(rows.side.count, (band + 1) * kBand * kBlock) - 1];
    const Range met = columns.side.meeting(low, high, operation == Operation::kPositives);
    return {std::max(met.first, chunk * kChunk), std::min(met.last, (chunk + 1) * kChunk)};
  }

  void run(const Sweep& shared, int64_t band, int64_t split, Range met, Workspace& w) const {
    const int64_t lanes = p.kernel.lanes, end = std::min(chains.blocks, (band + 1) * kBand);
    std::vector<Sweep> sweeps;
    for (int64_t block = band * kBand; block < end; ++block) {
      Sweep s = shared;
      float* tiles = w.tiles.get() + (block - band * kBand) * p.depth * kBlock;
      s.first_row = block * kBlock;
      s.row_tiles = round_up(std::min(kBlock, rows.side.count - s.first_row), p.kernel.tile) / p.kernel.tile;
      const Slab packed{w.block.get(), kBlock * lanes};
      pack_slab(p.kernel, rows.reader, rows.side, s.first_row, s.row_tiles * p.kernel.tile, packed,
                w.row.get());
      pack_tiles(p.kernel, packed, p.depth, s.row_tiles, tiles);
      const int64_t chain = block * chains.splits + split;
      s.tiles = tiles;
      s.coefficients = w.coefficients.get();
      s.values = {w.panel.get(), kPanel * lanes};
      s.total = sums.total.data() + chain * kBlock;
      s.other = sums.other.data() + chain * kBlock;
      if (sums.has_output) s.output = {sums.output.get() + chain * p.slab(kBlock), kBlock * lanes};
      sweeps.push_back(s);
    }
    for (int64_t first = met.first / kPanel * kPanel; first < met.last; first += kPanel) {
      const int64_t tiles =
          round_up(std::min(kPanel, columns.side.count - first), p.kernel.columns) / p.kernel.columns;
      pack_slab(p.kernel, columns.reader, columns.side, first, tiles * p.kernel.columns,
                {w.panel.get(), kPanel * lanes}, w.row.get());
      for (Sweep& s : sweeps) {
        s.first_column = first;
        s.column_tiles = tiles;
        sweep(s);
      }
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
                     const PairRule& rule, double scale, int64_t flags, const Maybe& key_inverse,
                     const std::vector<bool>& skipped) {
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
  check_vector("key_inverse", key_inverse, m, ScalarType::Float);
  const float* factors = key_inverse.has_value() ? key_inverse->const_data_ptr<float>() : nullptr;
  double norms = 1;
  if (!(flags & kUnit)) {
    norms = largest_norm(RowReader(anchors), p.anchors);
    norms *= rule.self ? norms : largest_norm(RowReader(keys, factors), p.separate_keys);
  }
  p.maximum = static_cast<float>(scale * M_LOG2E * norms);  // as the kernels subtract it
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

Chains::Chains(int64_t rows, int64_t columns)
    : blocks(round_up(rows, kBlock) / kBlock), bands(round_up(blocks, kBand) / kBand), splits(1) {
  const int64_t chunks = std::max<int64_t>(1, round_up(columns, kChunk) / kChunk);
  if (bands > 0 && bands < kEnoughChains) splits = std::min(chunks, round_up(kEnoughChains, bands) / bands);
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
  const Task task{p, rows, columns, chains, operation, sums};
  const int64_t chunks = round_up(columns.side.count, kChunk) / kChunk;
  TurnList turns(chains.bands * chains.splits);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t band = 0; band < chains.bands; ++band) {
      const Range met = task.columns_met(band, chunk);
      const int64_t chain = band * chains.splits + chunk % chains.splits;
      if (met.first < met.last) turns.add(band, chunk, chain, chain);
    }
  }
  const std::vector<Span> row_spans = make_spans(rows.side, p.kernel.tile);
  const std::vector<Span> column_spans = make_spans(columns.side, p.kernel.columns);
  const Sweep shared = shared_sweep(p, rows.side, columns.side, row_spans, column_spans);
  std::vector<Workspace> workspaces;
  for (int64_t worker = 0; worker < worker_count(); ++worker) workspaces.emplace_back(p);
  turns.run(worker_count(), [&](int64_t worker, const Turn& turn) {
    task.run(shared, turn.row, turn.column % chains.splits, task.columns_met(turn.row, turn.column),
             workspaces[worker]);
  });
}

}  // namespace secl::cpu
