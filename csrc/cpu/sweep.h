// SPDX-License-Identifier: Apache-2.0
// The register-blocked products, the pairs of a tile, and the sweep of all columns past a block of rows.

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

// Kept out of line: inlined into a large caller, its sums no longer stay in registers.
#define SECL_OWN_REGISTERS __attribute__((noinline))

// Similarity tile of kRows rows and kStrip columns.
SECL_OWN_REGISTERS void dot(const float* a,  // [depth, kRows]
                            const float* b,  // [depth, kStrip]
                            int64_t depth, float* tile /* [kRows, kPanel] */) {
  Float sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += kRows, b += kStrip) {
    Float column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Float row = splat(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(tile + r * kPanel + v * kLanes, sum[r][v]);
  }
}

// output += coefficients @ values, kRows rows and V vectors wide.
template <int V>
SECL_OWN_REGISTERS void accumulate(const float* coefficients,  // [kRows, kPanel]
                                   const float* values,        // [columns, V * kLanes]
                                   int64_t columns, int64_t stride, float* output /* [kRows, stride] */) {
  Float sum[kRows][V];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = load(output + r * stride + v * kLanes);
  }
  for (int64_t j = 0; j < columns; ++j, values += V * kLanes, ++coefficients) {
    Float column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(values + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Float row = splat(coefficients[r * kPanel]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(output + r * stride + v * kLanes, sum[r][v]);
  }
}

// Pairs of an anchor row with the keys in the columns from j on.
SECL_INLINE PairMask<Int> anchor_mask(const Sweep& s, int64_t row, int64_t j) {
  const Int position = iota() + static_cast<int32_t>(j);
  const Int comparable = (load(s.columns.group + j) == s.rows.group[row]) & (position != s.rows.skip_a[row]) &
                         (position != s.rows.skip_b[row]);
  const Int same = load(s.columns.label + j) == s.rows.label[row];
  return pair_mask(comparable, same, load(s.columns.attract + j), load(s.columns.repel + j));
}

// Pairs of a key row with the anchors in the columns from j on.
SECL_INLINE PairMask<Int> key_mask(const Sweep& s, int64_t row, int64_t j) {
  const int32_t position = static_cast<int32_t>(row);
  const Int comparable = (load(s.columns.group + j) == s.rows.group[row]) &
                         (load(s.columns.skip_a + j) != position) & (load(s.columns.skip_b + j) != position);
  const Int same = load(s.columns.label + j) == s.rows.label[row];
  return pair_mask(comparable, same, splat(s.rows.attract[row]), splat(s.rows.repel[row]));
}

enum class Visit { kNone, kMasked, kOpen };

// How the label ranges of a row tile and a strip meet.
struct Meeting {
  bool groups, one_group, labels, one_label, skips;
  Meeting(const Span& rows, const Span& columns, int64_t row, int64_t column) {
    const int64_t row_low = rows.low >> 32, row_high = rows.high >> 32;
    const int64_t column_low = columns.low >> 32, column_high = columns.high >> 32;
    groups = row_low <= column_high && column_low <= row_high;
    one_group = row_low == row_high && column_low == column_high && row_low == column_low;
    labels = rows.low <= columns.high && columns.low <= rows.high;
    one_label = rows.low == rows.high && columns.low == columns.high && rows.low == columns.low;
    skips = (rows.skip_low < column + kStrip && rows.skip_high >= column) ||
            (columns.skip_low < row + kRows && columns.skip_high >= row);
  }
};

// Streams every column past the block; `tile` turns similarities into what it sums and what multiplies the
// values.
template <class Tile>
inline void sweep(const Sweep& s, Tile& tile) {
  const int64_t strips = (s.columns.count + kStrip - 1) / kStrip;
  for (int64_t begin = 0; begin < strips; begin += SECL_PANEL_STRIPS) {
    const int64_t end = begin + SECL_PANEL_STRIPS < strips ? begin + SECL_PANEL_STRIPS : strips;
    int64_t from[kMaxTiles], to[kMaxTiles];
    for (int t = 0; t < kMaxTiles; ++t) from[t] = to[t] = end;
    for (int64_t strip = begin; strip < end; ++strip) {
      for (int64_t t = 0; t < s.tiles; ++t) {
        const int64_t row = s.first + t * kRows, column = strip * kStrip;
        const Span& row_span = s.row_spans[row / kRows];
        const Span& column_span = s.column_spans[strip];
        const Visit visit = tile.visit(Meeting(row_span, column_span, row, column), row_span, column_span);
        float* coefficients = s.panel + t * kRows * kPanel + (strip - begin) * kStrip;
        if (visit == Visit::kNone) {
          for (int r = 0; r < kRows; ++r)
            __builtin_memset(coefficients + r * kPanel, 0, kStrip * sizeof(float));
          continue;
        }
        if (from[t] == end) from[t] = strip;
        to[t] = strip + 1;
        dot(s.block + t * s.depth * kRows, s.strips + strip * s.depth * kStrip, s.depth, coefficients);
        tile(visit == Visit::kOpen, coefficients, t * kRows, column);
      }
    }
    tile.flush();
    if (s.output == nullptr) continue;
    for (int64_t t = 0; t < s.tiles; ++t) {
      if (from[t] == end) continue;
      const float* coefficients = s.panel + t * kRows * kPanel + (from[t] - begin) * kStrip;
      const float* values = s.values + from[t] * kStrip * kStrip;
      const int64_t columns = (to[t] - from[t]) * kStrip;
      float* output = s.output + t * kRows * s.stride;
      int64_t d = 0;
      for (; d + kStrip <= s.stride; d += kStrip, values += s.values_rows * kStrip) {
        accumulate<kVectors>(coefficients, values, columns, s.stride, output + d);
      }
      if (d < s.stride) {
        values = s.values + d * s.values_rows + from[t] * kStrip * kLanes;
        accumulate<1>(coefficients, values, columns, s.stride, output + d);
      }
    }
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
