// SPDX-License-Identifier: Apache-2.0
// Sorts one call's rows, and streams one side past the other.
#include "blocks.h"

#include "../checks.h"
#include "../contrast_math.h"

namespace secl::cpu {
namespace {

// In base-2 exponents: float32 holds 2^-126, and the norms of low-precision rows exceed 1 a little.
constexpr double kBoundedRange = 120;
constexpr int64_t kChunk = 16 * kPanel;  // columns that stay in the cache while every block of rows passes
constexpr int64_t kBand = 3;
constexpr int64_t kEnoughChains = 8;
// More tasks of a small problem would be packed and joined for longer than they run.
constexpr int64_t kEnoughTasks = 4;

// A worker's memory for the tile products.
struct Workspace {
  Buffer block, tiles, panel, coefficients, row;
  Workspace(const Problem& p, const Chains& chains)
      : block(p.slab(chains.size)),
        tiles(chains.band * p.depth * chains.size),
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
    const int64_t height = chains.band * chains.size;
    const int64_t low = rows.side.key[band * height];
    const int64_t high = rows.side.key[std::min(rows.side.count, (band + 1) * height) - 1];
    const Range met = columns.side.meeting(low, high, operation == Operation::kPositives);
    return {std::max(met.first, chunk * chains.chunk), std::min(met.last, (chunk + 1) * chains.chunk)};
  }

  void run(const Sweep& shared, int64_t band, int64_t split, Range met, Workspace& w) const {
    const int64_t lanes = p.kernel.lanes, size = chains.size, begin = band * chains.band;
    std::vector<Sweep> sweeps;
    for (int64_t block = begin; block < std::min(chains.blocks, begin + chains.band); ++block) {
      Sweep s = shared;
      float* tiles = w.tiles.get() + (block - begin) * p.depth * size;
      s.first_row = block * size;
      s.row_tiles = round_up(std::min(size, rows.side.count - s.first_row), p.kernel.tile) / p.kernel.tile;
      const Slab packed{w.block.get(), size * lanes};
      pack_slab(p.kernel, rows.reader, rows.side, s.first_row, s.row_tiles * p.kernel.tile, packed,
                w.row.get());
      pack_tiles(p.kernel, packed, p.depth, s.row_tiles, tiles);
      const int64_t chain = block * chains.splits + split;
      s.tiles = tiles;
      s.coefficients = w.coefficients.get();
      s.values = {w.panel.get(), kPanel * lanes};
      s.total = sums.total.data() + chain * size;
      s.other = sums.other.data() + chain * size;
      if (sums.has_output) s.output = chains.slab(p, sums, chain);
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
    if (operation == Operation::kSigmoid) return p.kernel.sigmoid(s);
    if (operation == Operation::kSigmoidKeys) return p.kernel.sigmoid_keys(s);
    p.kernel.gradient(s, operation == Operation::kAnchorGradient);
  }
};

// A register tile of pairs, padded to whole chunks, is no larger than one of floats from this width on.
constexpr int64_t kLeastHalves = 16;

}  // namespace

const Kernels& kernels_for(const ContrastCall& call) {
  const bool halves = call.anchors.scalar_type() == ScalarType::BFloat16 &&
                      call.keys.scalar_type() == ScalarType::BFloat16 && call.anchors.size(1) >= kLeastHalves;
  return halves ? half_kernels() : kernels();
}

Problem make_problem(const ContrastCall& call, const RowReader& anchors, const RowReader& keys,
                     const std::vector<bool>& skipped) {
  const PairRule rule{call.exclude, call.positive_start, call.negative_stop, call.keys.size(0),
                      call.has(kSelf)};
  Problem p{.kernel = kernels_for(call),
            .rule = rule,
            .scale = call.scale,
            .flags = call.flags,
            .depth = anchors.depth()};
  p.anchors = sort_side(call.anchor_labels, call.grouped() ? call.anchor_groups : Maybe(), skipped);
  if (!rule.self) p.separate_keys = sort_side(call.key_labels, call.grouped() ? call.key_groups : Maybe());
  relate(p.anchors, p.keys(), rule);
  double norms = 1;
  if (!call.has(kUnit)) {
    norms = largest_norm(anchors, p.anchors);
    norms *= rule.self ? norms : largest_norm(keys, p.separate_keys);
  }
  p.maximum = static_cast<float>(call.scale * M_LOG2E * norms);  // as the kernels subtract it
  double range = 2 * p.maximum;
  if (call.key_weights.has_value()) {
    weigh(p.separate_keys, call.key_weights->const_data_ptr<float>());
    const std::vector<float>& copies = p.separate_keys.copies;  // those of the padding are 1
    const auto [least, most] = std::minmax_element(copies.begin(), copies.end());
    range += std::max(std::abs(std::log2(*least)), std::abs(std::log2(*most)));
  }
  p.bounded = range < kBoundedRange;
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
          .bias2 = static_cast<float>(p.bias * M_LOG2E),
          .negatives_only = (p.flags & kNegatives) != 0};
}

Chains::Chains(int64_t rows, int64_t columns) : size(kBlock), band(kBand), chunk(kChunk), splits(1) {
  const auto pieces = [](int64_t count, int64_t each) { return round_up(count, each) / each; };
  const auto few = [&] { return pieces(rows, size * band) * pieces(columns, chunk) < kEnoughTasks; };
  if (few()) band = 1;
  if (few()) size = kPanel;
  while (few() && chunk > 2 * kPanel) chunk /= 2;
  blocks = pieces(rows, size);
  bands = pieces(blocks, band);
  chunks = pieces(columns, chunk);
  if (bands > 0 && bands < kEnoughChains)
    splits = std::clamp<int64_t>(pieces(kEnoughChains, bands), 1, std::max<int64_t>(chunks, 1));
}

Sums Chains::make_sums(const Problem& p, bool output, double other) const {
  const int64_t rows = blocks * splits * size, numbers = output ? p.slab(rows) : 0;
  Sums sums{std::vector<double>(rows, 0), std::vector<double>(rows, other), Buffer(numbers), output};
  std::fill(sums.output.get(), sums.output.get() + numbers, 0.0f);
  return sums;
}

void Chains::join(const Problem& p, Sums& sums, bool peaks) const {
  if (splits == 1) return;
  const auto exp2 = [](double x) { return std::exp2(x); };
  const int64_t work = sums.has_output ? p.slab(blocks * splits * size) : 0;
  for_each(blocks, worker_count(work), [&](int64_t, int64_t block) {
    for (int64_t chain = block * splits + 1; chain < (block + 1) * splits; ++chain) {
      for (int64_t r = 0; r < size; ++r) {
        const int64_t to = block * splits * size + r, from = chain * size + r;
        Running<double> sum{sums.other[to] + sums.other[from], sums.total[to] + sums.total[from]};
        if (peaks) {
          sum = merge(Running<double>{sums.other[to], sums.total[to]},
                      Running<double>{sums.other[from], sums.total[from]}, exp2);
        }
        sums.other[to] = sum.peak;
        sums.total[to] = sum.sum;
      }
      if (!sums.has_output) continue;
      float* to = slab(p, sums, block * splits).data;
      const float* from = slab(p, sums, chain).data;
      for (int64_t k = 0; k < p.slab(size); ++k) to[k] += from[k];
    }
  });
}

void sweep_sides(const Problem& p, const Role& rows, const Role& columns, const Chains& chains,
                 Operation operation, Sums& sums) {
  const Task task{p, rows, columns, chains, operation, sums};
  TurnList turns(chains.bands * chains.splits);
  for (int64_t chunk = 0; chunk < chains.chunks; ++chunk) {
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
  const int64_t workers = worker_count(product_work(rows.side.count, columns.side.count, p.depth));
  for (int64_t worker = 0; worker < workers; ++worker) workspaces.emplace_back(p, chains);
  turns.run(workers, [&](int64_t worker, const Turn& turn) {
    task.run(shared, turn.row, turn.column % chains.splits, task.columns_met(turn.row, turn.column),
             workspaces[worker]);
  });
}

void unpack(const Problem& p, const SortedSide& side, Slab slab, int64_t first, int64_t rows, float* out) {
  for (int64_t r = 0; r < std::min(rows, side.count - first); ++r) {
    add_row(p, slab, r, out + side.index[first + r] * p.depth);
  }
}

void add_gradient(const Problem& p, const Role& rows, const Role& columns, Operation operation, float* out) {
  const Chains chains(rows.side.count, columns.side.count);
  Sums sums = chains.make_sums(p, true);
  sweep_sides(p, rows, columns, chains, operation, sums);
  chains.join(p, sums, false);
  for_each(chains.blocks, worker_count(rows.side.count * p.depth), [&](int64_t, int64_t block) {
    const Slab slab = chains.slab(p, sums, block * chains.splits);
    unpack(p, rows.side, slab, block * chains.size, chains.size, out);
  });
}

}  // namespace secl::cpu
