// SPDX-License-Identifier: Apache-2.0
// The register-blocked products of float rows: similarities of a tile, and coefficients with values.

#include "kernels.h"
#include "lanes.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

// What a sweep holds while it multiplies.
struct Registers {};

// Similarity tile of kTile rows, along the vectors, and kColumns columns.
SECL_OWN_REGISTERS void dot(const float* rows,   // [depth, kTile]
                            const Slab columns,  // [chunks, .., kLanes]
                            int64_t depth, float* tile /* [kColumns, kBlock] */) {
  Float sum[kColumns][kVectors] = {};
  const float* chunk = columns.data;
  for (int64_t left = depth; left > 0; left -= kLanes, chunk += columns.step) {
    const int64_t size = left < kLanes ? left : kLanes;
    if (kByLane && size == kLanes) {
      multiply_lanes(rows, kTile, kLanes, chunk, kLanes, sum);
      rows += kLanes * kTile;
      continue;
    }
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
  int64_t j = 0;
  if (kByLane && kAcross) {
    for (; j + kLanes <= count; j += kLanes, value += kLanes * kLanes, coefficients += kLanes)
      multiply_lanes(value, kLanes, values.step, coefficients, kBlock, sum);
  }
  for (; j < count; ++j, value += kLanes, coefficients += kNextValue) {
    Float column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(value + v * values.step);
    const Numbers<kColumns, kNextOutput> row(coefficients);
#pragma GCC unroll 16
    for (int r = 0; r < kColumns; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += splat(row[r]) * column[v];
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

}  // namespace
}  // namespace secl::SECL_ISA
