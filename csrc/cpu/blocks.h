// SPDX-License-Identifier: Apache-2.0
// One call of the loss cut into blocks of rows and panels of columns, and the sweep of one side past another.
// No matrix of pairs and no packed copy of a side exists: a worker packs what it is about to read.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../params.h"
#include "sides.h"
#include "turns.h"

namespace secl::cpu {

// Everything that the blocks of one call share.
struct Problem {
  const Kernels& kernel;
  PairRule rule;
  double scale;
  int64_t flags, depth;
  bool bounded = false;  // see Sweep
  double maximum = 0;    // likewise
  double bias = 0;       // of a logit
  SortedSide anchors = {}, separate_keys = {};

  // Whether pair (i, j) counts where (j, i) does.
  bool is_symmetric() const {
    return rule.self && !rule.exclude && rule.positive_start == 0 && rule.negative_stop >= rule.key_rows;
  }
  SortedSide& keys() { return rule.self ? anchors : separate_keys; }
  int64_t chunks() const { return round_up(depth, kernel.chunk) / kernel.lanes; }
  // Numbers in a slab of this many rows.
  int64_t slab(int64_t rows) const { return chunks() * rows * kernel.lanes; }
};

// Of this dtype and width.
const Kernels& kernels_for(const ContrastCall& call);

// Of a checked call; an anchor that `skipped` marks is read in no role.
Problem make_problem(const ContrastCall& call, const RowReader& anchors, const RowReader& keys,
                     const std::vector<bool>& skipped = {});  // [N], or empty

// One side in the role of the rows that stay or of the columns that stream.
struct Role {
  RowReader reader;
  SortedSide& side;
};

// Sums that one chain of tasks adds to, block after block; [chains, rows of a block] each.
struct Sums {
  std::vector<double> total, other;
  Buffer output;  // [chains] slabs of a block
  bool has_output = false;
};

// How a sweep is cut into tasks: a band of blocks, which share each packed panel, against a chunk of columns.
// Large cuts pack least; few rows and columns are cut finer, for no thread to be idle. Few bands have several
// chains each, over their share of the chunks. All of it follows from the shape, and so do the sums' bits.
struct Chains {
  int64_t size, band, chunk;  // rows of a block, blocks of a band, columns of a chunk
  int64_t blocks, bands, chunks, splits;

  Chains(int64_t rows, int64_t columns);
  // Where the sums of a position stand.
  int64_t place(int64_t position) const { return position / size * splits * size + position % size; }
  // The slab of a chain.
  Slab slab(const Problem& p, const Sums& sums, int64_t chain) const {
    return {sums.output.get() + chain * p.slab(size), size * p.kernel.lanes};
  }
  Sums make_sums(const Problem& p, bool output, double other = 0) const;
  // Adds up the chains of each block, in order: its sums are then those of its first chain.
  void join(const Problem& p, Sums& sums, bool peaks) const;
};

enum class Operation {
  kLogSumExp,
  kPositives,
  kAnchorGradient,
  kKeyGradient,
  kSelfGradient,
  kSigmoid,
  kSigmoidKeys
};

// Sums over all pairs of a row and a column that the operation concerns.
void sweep_sides(const Problem& p, const Role& rows, const Role& columns, const Chains& chains,
                 Operation operation, Sums& sums);

// The fields of a sweep that are the same for all blocks.
Sweep shared_sweep(const Problem& p, const SortedSide& rows, const SortedSide& columns,
                   const std::vector<Span>& row_spans, const std::vector<Span>& column_spans);

// Adds the gradient of each row that is not ignored to [n, D].
void add_gradient(const Problem& p, const Role& rows, const Role& columns, Operation operation, float* out);

// Adds the sums of positions first .. first + rows to the rows that they belong to, [n, D].
void unpack(const Problem& p, const SortedSide& side, Slab slab, int64_t first, int64_t rows, float* out);

// Adds one row of a slab to a row of numbers.
inline void add_row(const Problem& p, Slab slab, int64_t row, float* to /* [D] */) {
  const float* from = slab.data + row * p.kernel.lanes;
  for (int64_t d = 0; d < p.depth; d += p.kernel.lanes, from += slab.step) {
    const int64_t size = std::min(p.kernel.lanes, p.depth - d);
    for (int64_t lane = 0; lane < size; ++lane) to[d + lane] += from[lane];
  }
}

}  // namespace secl::cpu
