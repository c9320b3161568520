// SPDX-License-Identifier: Apache-2.0
// What crosses the seam between a contrast operation and its CPU kernels: one side's rows, and the job of one
// block of rows against a run of columns. Plain pointers, so that a kernel's translation unit needs no
// library code.
#pragma once

#include <cstdint>

namespace secl {

// The rows that are not ignored, sorted by (group, label, index) so that equal labels lie together. Every
// array is padded far enough for a whole tile to be read; padding is never positive nor negative.
struct SideView {
  int64_t count;
  const int32_t* label;    // [padded]
  const int32_t* group;    // [padded]
  const int32_t* attract;  // [padded] -1 where the row may be a positive key, else 0
  const int32_t* repel;    // [padded] -1 where the row may be a negative key, else 0
  const int32_t* skip_a;   // [padded] position on the other side that this anchor must not see, or -1
  const int32_t* skip_b;   // [padded] a second one
  const float* lse;        // [padded] of the anchor, base 2
  const float* push;       // [padded] factor of exp(s - lse) in the anchor's gradient
  const float* draw;       // [padded] factor of the attraction in the anchor's gradient
  const float* weight;     // [padded] push * 2^(maximum - lse)
  const float* copies;     // [padded] how many keys the row counts as; null: one
};

// What is known of several neighbouring rows of a side at once: decides whether a tile needs masks, or a
// visit.
struct Span {
  int64_t low, high;            // range of (group << 32 | label)
  int32_t skip_low, skip_high;  // range of the positions they must not see; empty: low > high
  bool all_attract, all_repel;  // false where padding is among them
};

// Rows as [depth / lanes, capacity, lanes]: both products of a tile read and write them in order.
struct Slab {
  float* data = nullptr;
  int64_t step = 0;  // from one vector of a row to its next: capacity * lanes
};

// One block of rows, which stay, against the columns first_column .. first_column + column_tiles * columns,
// which stream past. "self": rows and columns are one side, and only pairs of ascending positions count,
// each for both of its rows.
struct Sweep {
  SideView rows, columns;
  const Span* row_spans;     // one per tile of rows
  const Span* column_spans;  // one per tile of columns
  int64_t depth, chunks;     // width of a row, in numbers and in vectors
  float to_log2;             // scale * log2(e)
  float maximum;             // bound of the similarity in base 2, where `bounded`
  bool bounded;              // exp2(s - maximum) can neither overflow nor vanish
  float bias2;               // of the sigmoid loss: added to a logit, in base 2
  bool negatives_only;       // the denominator holds negatives only
  int64_t first_row = 0, row_tiles = 0;
  int64_t first_column = 0, column_tiles = 0;
  const float* tiles = nullptr;    // [row_tiles, depth, tile] the block's rows, transposed
  Slab row_values = {};            // the block's rows; for "self" products alone
  Slab values = {};                // the columns' rows
  float* coefficients = nullptr;   // [panel, block] scratch: the similarity, then what multiplies the values
  Slab output = {};                // sum of coefficient times column, added to; null: not wanted
  Slab column_output = {};         // of "self": the same for the columns
  double* total = nullptr;         // [rows] added to: sum of exp2(s - peak), or sum of softplus
  double* other = nullptr;         // [rows] added to: peak, or sum of sigmoid
  double* column_total = nullptr;  // of "self": the same for the columns
  double* column_other = nullptr;
};

}  // namespace secl
