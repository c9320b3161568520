// SPDX-License-Identifier: Apache-2.0
// The pairs of a tile, and the sweep of columns past a block of rows.

#pragma once

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

// Pairs of the anchors in the rows from i on with the key in column j.
SECL_INLINE PairMask<Int> anchor_mask(const Sweep& s, int64_t i, int64_t j) {
  const int32_t position = static_cast<int32_t>(j);
  const Int comparable = (load(s.rows.group + i) == s.columns.group[j]) &
                         (load(s.rows.skip_a + i) != position) & (load(s.rows.skip_b + i) != position);
  const Int same = load(s.rows.label + i) == s.columns.label[j];
  return pair_mask(comparable, same, splat(s.columns.attract[j]), splat(s.columns.repel[j]));
}

// Pairs of the keys in the rows from i on with the anchor in column j.
SECL_INLINE PairMask<Int> key_mask(const Sweep& s, int64_t i, int64_t j) {
  const Int position = iota() + static_cast<int32_t>(i);
  const Int comparable = (load(s.rows.group + i) == s.columns.group[j]) & (position != s.columns.skip_a[j]) &
                         (position != s.columns.skip_b[j]);
  const Int same = load(s.rows.label + i) == s.columns.label[j];
  return pair_mask(comparable, same, load(s.rows.attract + i), load(s.rows.repel + i));
}

// Pairs of one side with itself, each once.
SECL_INLINE PairMask<Int> self_mask(const Sweep& s, int64_t i, int64_t j) {
  const Int all = splat(j < s.columns.count ? -1 : 0);
  const Int ascending = iota() + static_cast<int32_t>(i) < static_cast<int32_t>(j);
  const Int comparable = (load(s.rows.group + i) == s.columns.group[j]) & ascending & all;
  return pair_mask(comparable, load(s.rows.label + i) == s.columns.label[j], all, all);
}

enum class Visit { kNone, kMasked, kOpen };

// How the classes and positions of a tile's rows and columns meet.
struct Meeting {
  bool groups, one_group, labels, one_label, skips, none_ascend, all_ascend;
  Meeting(const Sweep& s, const Span& rows, const Span& columns, int64_t row, int64_t column) {
    const int64_t row_low = rows.low >> 32, row_high = rows.high >> 32;
    const int64_t column_low = columns.low >> 32, column_high = columns.high >> 32;
    groups = row_low <= column_high && column_low <= row_high;
    one_group = row_low == row_high && column_low == column_high && row_low == column_low;
    labels = rows.low <= columns.high && columns.low <= rows.high;
    one_label = rows.low == rows.high && columns.low == columns.high && rows.low == columns.low;
    skips = (rows.skip_low < column + kColumns && rows.skip_high >= column) ||
            (columns.skip_low < row + kTile && columns.skip_high >= row);
    none_ascend = column + kColumns <= row + 1;
    all_ascend = row + kTile <= column && column + kColumns <= s.columns.count;
  }
};

SECL_INLINE void clear(float* tile /* [kColumns, kBlock] */) {
  for (int c = 0; c < kColumns; ++c) {
    for (int v = 0; v < kVectors; ++v) store(tile + c * kBlock + v * kLanes, Float{});
  }
}

// Calls body(c, v, place, i, j) for each vector of a tile: the pairs of rows i .. i + kLanes with column j.
template <class Body>
SECL_INLINE void for_vectors(const Sweep& s, float* tile /* [kColumns, kBlock] */, int64_t row,
                             int64_t column, const Body& body) {
#pragma GCC unroll 1
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      body(c, v, tile + c * kBlock + v * kLanes, s.first_row + row + v * kLanes, column + c);
    }
  }
}

// Streams the columns past the block; `tile` turns similarities into what it sums and what multiplies the
// values.
template <class Tile>
inline void sweep(const Sweep& s, Tile& tile) {
  [[maybe_unused]] const Registers registers;
  const bool multiplied = s.output.data || s.column_output.data;
  for (int64_t begin = 0; begin < s.column_tiles; begin += kPanel / kColumns) {
    const int64_t limit = begin + kPanel / kColumns;
    const int64_t end = limit < s.column_tiles ? limit : s.column_tiles;
    Box box;
    for (int64_t t = 0; t < s.row_tiles; ++t) {
      const int64_t row = s.first_row + t * kTile;
      const Span& row_span = s.row_spans[row / kTile];
      for (int64_t c = begin; c < end; ++c) {
        const int64_t column = s.first_column + c * kColumns, in_panel = (c - begin) * kColumns;
        const Span& column_span = s.column_spans[column / kColumns];
        const Meeting meeting(s, row_span, column_span, row, column);
        const Visit visit = tile.visit(meeting, row_span, column_span);
        float* coefficients = s.coefficients + in_panel * kBlock + t * kTile;
        if (visit == Visit::kNone) {
          if (multiplied) clear(coefficients);
          continue;
        }
        dot(s.tiles + t * s.depth * kTile, offset(s.values, c * kColumns), s.depth, coefficients);
        tile(visit == Visit::kOpen, coefficients, t * kTile, column, in_panel);
        box.add(t * kTile, in_panel);
      }
    }
    tile.flush(begin * kColumns);
    if (multiplied && !box.empty()) multiply(s, box, begin * kColumns);
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
