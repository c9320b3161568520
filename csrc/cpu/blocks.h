// SPDX-License-Identifier: Apache-2.0
// One call of the loss cut into blocks: rows stay, all columns stream past, and one worker owns each block,
// so that the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "sides.h"

namespace secl::cpu {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Everything that the blocks of one call share.
struct Problem {
  const Kernels& kernel = kernels();
  PairRule rule;
  double scale;
  int64_t flags, depth;
  int64_t stride = 0;    // depth, padded to whole vectors
  bool bounded = false;  // see Sweep
  SortedSide anchors = {}, separate_keys = {};

  SortedSide& keys() { return rule.self ? anchors : separate_keys; }
};

// Columns packed twice: strips for the similarity, rows for the value product.
struct Columns {
  std::vector<Span> spans;
  int64_t rows;  // padded to whole strips
  Buffer strips, values;
};

Problem make_problem(const Tensor& anchors,        // [N, D]
                     const Tensor& keys,           // [M, D]
                     const Tensor& anchor_labels,  // [N] int32
                     const Tensor& key_labels,     // [M] int32
                     const Maybe& anchor_groups,   // [N] int32
                     const Maybe& key_groups,      // [M] int32
                     const PairRule& rule, double scale, int64_t flags);

Columns pack_columns(const Problem& problem, const RowReader& reader, const SortedSide& side, bool values);

// One worker's memory: a block of rows, a panel of coefficients, sums of values, and the block's results.
struct Workspace {
  Buffer block, panel, output, attraction, row;
  std::vector<double> total, other, lse, loss, pull, positive_sum;
  std::vector<double> class_sum;  // [D] of the positive keys of class `summed`
  std::optional<int64_t> summed;

  explicit Workspace(const Problem& p)
      : block(p.kernel.max_tiles * p.kernel.rows * p.depth),
        panel(p.kernel.max_tiles * p.kernel.rows * p.kernel.panel),
        output(p.kernel.max_tiles * p.kernel.rows * p.stride),
        attraction(p.kernel.max_tiles * p.kernel.rows * p.stride),
        row(p.stride),
        total(p.kernel.max_tiles * p.kernel.rows),
        other(total.size()),
        lse(total.size()),
        loss(total.size()),
        pull(total.size()),
        positive_sum(p.depth),
        class_sum(p.depth) {}
};

// Streams `columns` past every block of `rows`; body(workspace, sweep) does the work of one block.
template <class Body>
void for_blocks(Problem& p, const RowReader& reader, SortedSide& rows, SortedSide& column_side,
                const Columns& columns, const Body& body) {
  const std::vector<Span> spans = make_spans(rows, p.kernel.rows);
  const int64_t tiles = static_cast<int64_t>(spans.size());
  const int64_t workers = worker_count();
  // Few rows: smaller blocks keep every worker busy, and every row's arithmetic is the same in any block.
  const int64_t per_block = std::clamp<int64_t>(tiles / (4 * workers), 1, p.kernel.max_tiles);
  std::vector<Workspace> workspaces;
  for (int64_t worker = 0; worker < workers; ++worker) workspaces.emplace_back(p);
  Sweep shared{.rows = rows.view(),
               .columns = column_side.view(),
               .row_spans = spans.data(),
               .column_spans = columns.spans.data(),
               .strips = columns.strips.get(),
               .values = columns.values.get(),
               .depth = p.depth,
               .stride = p.stride,
               .values_rows = columns.rows,
               .to_log2 = static_cast<float>(p.scale * M_LOG2E),
               .maximum = static_cast<float>(p.scale * M_LOG2E),
               .bounded = p.bounded,
               .negatives_only = (p.flags & kNegatives) != 0};
  for_each((tiles + per_block - 1) / per_block, workers, [&](int64_t worker, int64_t block) {
    Workspace& w = workspaces[worker];
    Sweep sweep = shared;
    sweep.first = block * per_block * p.kernel.rows;
    sweep.tiles = std::min(per_block, tiles - block * per_block);
    sweep.block = w.block.get();
    sweep.panel = w.panel.get();
    pack_tiles(reader, rows, sweep.first, sweep.tiles, p.kernel.rows, w.block.get(), w.row.get());
    body(w, sweep);
  });
}

}  // namespace secl::cpu
