// SPDX-License-Identifier: Apache-2.0
// The register-blocked products, the pairs of a tile, and the sweep of columns past a block of rows.

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

// Similarity tile of kTile rows, along the vectors, and kColumns columns.
SECL_OWN_REGISTERS void dot(const float* rows,   // [depth, kTile]
                            const Slab columns,  // [chunks, .., kLanes]
                            int64_t depth, float* tile /* [kColumns, kBlock] */) {
  Float sum[kColumns][kVectors] = {};
  const float* chunk = columns.data;
  for (int64_t left = depth; left > 0; left -= kLanes, chunk += columns.step) {
    const int64_t size = left < kLanes ? left : kLanes;
    for (int64_t k = 0; k < size; ++k, rows += kTile) {
      Float row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(rows + v * kLanes);
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        const Float column = splat(chunk[c * kLanes + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[c][v] += row[v] * column;
      }
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(tile + c * kBlock + v * kLanes, sum[c][v]);
  }
}

// output += coefficients @ values, kColumns outputs of V vectors. The outputs are rows of the block, or
// with kAcross columns of the panel.
template <int V, bool kAcross>
SECL_OWN_REGISTERS void accumulate(const float* coefficients,  // [panel, kBlock]
                                   const Slab values, int64_t count, const Slab output) {
  constexpr int64_t kNextOutput = kAcross ? kBlock : 1, kNextValue = kAcross ? 1 : kBlock;
  Float sum[kColumns][V] =
      {};  // of this run alone: one long sum would round each term to the size of the whole
  const float* value = values.data;
  for (int64_t j = 0; j < count; ++j, value += kLanes, coefficients += kNextValue) {
    Float column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(value + v * values.step);
#pragma GCC unroll 16
    for (int r = 0; r < kColumns; ++r) {
      const Float row = splat(coefficients[r * kNextOutput]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kColumns; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* place = output.data + r * kLanes + v * output.step;
      store(place, load(place) + sum[r][v]);
    }
  }
}

SECL_INLINE Slab offset(Slab slab, int64_t rows, int64_t vectors = 0) {
  return {slab.data + rows * kLanes + vectors * slab.step, slab.step};
}

// All vectors of `outputs` rows, a multiple of kColumns.
template <bool kAcross>
inline void product(const float* coefficients, Slab values, int64_t count, Slab output, int64_t outputs,
                    int64_t chunks) {
  constexpr int64_t kNextOutput = kAcross ? kBlock : 1;
  for (int64_t r = 0; r < outputs; r += kColumns) {
    const float* first = coefficients + r * kNextOutput;
    int64_t v = 0;
    for (; v + kVectors <= chunks; v += kVectors) {
      accumulate<kVectors, kAcross>(first, offset(values, 0, v), count, offset(output, r, v));
    }
    if (v < chunks) accumulate<1, kAcross>(first, offset(values, 0, v), count, offset(output, r, v));
  }
}

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

// The smallest rectangle around the visited tiles of a panel.
struct Box {
  int64_t row_begin = kBlock, row_end = 0, column_begin = kPanel, column_end = 0;
  void add(int64_t row, int64_t column) {
    row_begin = row < row_begin ? row : row_begin;
    row_end = row + kTile > row_end ? row + kTile : row_end;
    column_begin = column < column_begin ? column : column_begin;
    column_end = column + kColumns > column_end ? column + kColumns : column_end;
  }
  bool empty() const { return row_end == 0; }
};

SECL_INLINE void clear(float* tile /* [kColumns, kBlock] */) {
  for (int c = 0; c < kColumns; ++c) {
    for (int v = 0; v < kVectors; ++v) store(tile + c * kBlock + v * kLanes, Float{});
  }
}

// The value products of one panel: of its columns for the rows, and of the rows for its columns.
inline void multiply(const Sweep& s, const Box& box, int64_t column) {
  const int64_t row = box.row_begin / kColumns * kColumns;  // whole outputs; what is outside the box is zero
  const int64_t outputs = (box.row_end - row + kColumns - 1) / kColumns * kColumns;
  const int64_t columns = box.column_end - box.column_begin;
  const float* first = s.coefficients + box.column_begin * kBlock;
  if (s.output.data) {
    product<false>(first + row, offset(s.values, column + box.column_begin), columns, offset(s.output, row),
                   outputs, s.chunks);
  }
  if (s.column_output.data) {
    product<true>(first + box.row_begin, offset(s.row_values, box.row_begin), box.row_end - box.row_begin,
                  offset(s.column_output, column + box.column_begin), columns, s.chunks);
  }
}

// Streams the columns past the block; `tile` turns similarities into what it sums and what multiplies the
// values.
template <class Tile>
inline void sweep(const Sweep& s, Tile& tile) {
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
