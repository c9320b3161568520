// SPDX-License-Identifier: Apache-2.0
// The products of bf16 rows on AArch64 with BF16: an instruction multiplies two rows of four halves with two
// others, 16 products, accumulated in float32.
//
// A slab holds its rows twice: [chunks, capacity, 8 halves] as they lie, and [chunks, capacity / 4, 8, 4
// halves], where each number of four rows lies together. A chunk is 8 halves, as many bytes as a vector of 4
// floats, so that offsets count as in a slab of floats.

#include <arm_neon.h>

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

constexpr int64_t kHalves = 8;  // of a row in one vector
constexpr int kPairs = 4;       // of rows or columns in a tile, each in one register
static_assert(kLanes == 4 && kColumns == 2 * kPairs && kTile == 2 * kPairs && kBlockVectors % 2 == 0);

// What a sweep holds while it multiplies.
struct Registers {};

SECL_INLINE bfloat16x8_t to_halves(Float low, Float high) {
  return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)low), (float32x4_t)high);
}

SECL_INLINE Float low_sides(Float a, Float b) { return (Float)vzip1q_f64((float64x2_t)a, (float64x2_t)b); }

SECL_INLINE Float high_sides(Float a, Float b) { return (Float)vzip2q_f64((float64x2_t)a, (float64x2_t)b); }

// sum [2, 2] += a [2, 4 halves] @ b [2, 4 halves]^T
SECL_INLINE void multiply_halves(Float a, Float b, Float& sum) {
  sum = (Float)vbfmmlaq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}

// One row times a factor, as halves; numbers past the width are zeros.
inline void spread_halves(const float* row /* [depth] */, float factor, int64_t depth, Slab to) {
  for (; depth > 0; depth -= kHalves, row += kHalves, to.data += to.step) {
    Float part[2] = {};
    depth < kHalves ? __builtin_memcpy(part, row, static_cast<size_t>(depth) * sizeof(float))
                    : __builtin_memcpy(part, row, sizeof part);
    store(to.data, (Float)to_halves(part[0] * factor, part[1] * factor));
  }
}

SECL_INLINE Float zip(bool high, Float a, Float b) {
  const uint16x8_t x = (uint16x8_t)a, y = (uint16x8_t)b;
  return (Float)(high ? vzip2q_u16(x, y) : vzip1q_u16(x, y));
}

// Writes the rows by fours behind the rows themselves.
inline void pair_rows(Slab slab, int64_t rows, int64_t chunks) {
  for (int64_t c = 0; c < chunks; ++c) {
    const float* from = slab.data + c * slab.step;
    float* to = slab.data + (chunks + c) * slab.step;
    for (const float* end = from + rows * kLanes; from < end; from += 4 * kLanes) {
      const Float first = load(from), second = load(from + kLanes), third = load(from + 2 * kLanes),
                  fourth = load(from + 3 * kLanes);
      for (const bool high : {false, true}) {
        const Float odd = zip(high, first, third), even = zip(high, second, fourth);
        for (const bool last : {false, true}) {
          store(to, zip(last, odd, even));
          to += kLanes;
        }
      }
    }
  }
}

// Similarity tile of kTile rows, along the vectors, and kColumns columns.
SECL_OWN_REGISTERS void dot(const float* rows,   // [pairs of halves, kTile]
                            const Slab columns,  // [chunks, .., 8 halves]
                            int64_t depth, float* tile /* [kColumns, kBlock] */) {
  Float sum[kPairs][kPairs] = {};  // of two columns with two rows each
  const float* chunk = columns.data;
  for (; depth > 0; depth -= kHalves, chunk += columns.step) {
#pragma GCC unroll 2
    for (int side = 0; side < 2; ++side, rows += 2 * kTile) {  // four halves of each
      Float row[kPairs];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const float32x4_t upper = (float32x4_t)load(rows + v * kLanes),
                          lower = (float32x4_t)load(rows + kTile + v * kLanes);
        row[2 * v] = (Float)vzip1q_f32(upper, lower);
        row[2 * v + 1] = (Float)vzip2q_f32(upper, lower);
      }
#pragma GCC unroll 4
      for (int c = 0; c < kPairs; ++c) {
        const Float first = load(chunk + 2 * c * kLanes), second = load(chunk + (2 * c + 1) * kLanes);
        const Float column = side == 0 ? low_sides(first, second) : high_sides(first, second);
#pragma GCC unroll 4
        for (int r = 0; r < kPairs; ++r) multiply_halves(column, row[r], sum[c][r]);
      }
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kPairs; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* place = tile + 2 * c * kBlock + v * kLanes;
      store(place, low_sides(sum[c][2 * v], sum[c][2 * v + 1]));
      store(place + kBlock, high_sides(sum[c][2 * v], sum[c][2 * v + 1]));
    }
  }
}

// Coefficients of 8 outputs as halves: of each four values those of two outputs in one vector.
struct Factors {
  Float halves[kBlock / 4][kPairs];
};

// Of 8 rows, over `count` columns of the panel.
inline void take_rows(const float* coefficients /* [panel, kBlock] */, int64_t count, Factors& to) {
  for (int64_t j = 0; j < count; j += 4) {
    for (int v = 0; v < kVectors; ++v) {
      Float square[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) square[k] = load(coefficients + (j + k) * kBlock + v * kLanes);
      transpose_square(square);
      to.halves[j / 4][2 * v] = (Float)to_halves(square[0], square[1]);
      to.halves[j / 4][2 * v + 1] = (Float)to_halves(square[2], square[3]);
    }
  }
}

// Of 8 columns, over `count` rows of the block.
inline void take_columns(const float* coefficients /* [panel, kBlock] */, int64_t count, Factors& to) {
  for (int64_t i = 0; i < count; i += 4) {
    for (int p = 0; p < kPairs; ++p) {
      const float* from = coefficients + 2 * p * kBlock + i;
      to.halves[i / 4][p] = (Float)to_halves(load(from), load(from + kBlock));
    }
  }
}

SECL_INLINE void add_to(float* place, Float sum) { store(place, load(place) + sum); }

// output += factors @ values for 8 outputs; the values are the fours of a slab.
SECL_OWN_REGISTERS void accumulate(const Factors& factors, const Slab fours, int64_t count, const Slab output,
                                   int64_t chunks) {
  for (int64_t c = 0; c < chunks; ++c) {
    Float sum[kPairs][kPairs] = {};  // of two outputs with two numbers each
    const float* values = fours.data + c * fours.step;
    for (int64_t k = 0; k < count / 4; ++k, values += 4 * kLanes) {
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
        for (int d = 0; d < kPairs; ++d)
          multiply_halves(factors.halves[k][p], load(values + d * kLanes), sum[p][d]);
      }
    }
    float *first = output.data + 2 * c * output.step, *last = first + output.step;
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p, first += 2 * kLanes, last += 2 * kLanes) {
      add_to(first, low_sides(sum[p][0], sum[p][1]));
      add_to(last, low_sides(sum[p][2], sum[p][3]));
      add_to(first + kLanes, high_sides(sum[p][0], sum[p][1]));
      add_to(last + kLanes, high_sides(sum[p][2], sum[p][3]));
    }
  }
}

SECL_INLINE Slab fours_of(Slab rows, int64_t chunks, int64_t first) {
  return {rows.data + chunks * rows.step + first * kLanes, rows.step};
}

// The value products of one panel: of its columns for the rows, and of the rows for its columns.
inline void multiply(const Sweep& s, const Box& box, int64_t column) {
  const int64_t chunks = s.chunks / 2;
  Factors factors;
  if (s.output.data) {
    const int64_t first = box.column_begin, count = box.column_end - first;
    for (int64_t row = box.row_begin; row < box.row_end; row += kTile) {
      take_rows(s.coefficients + first * kBlock + row, count, factors);
      accumulate(factors, fours_of(s.values, chunks, column + first), count, offset(s.output, row), chunks);
    }
  }
  if (s.column_output.data) {
    const int64_t count = box.row_end - box.row_begin;
    for (int64_t c = box.column_begin; c < box.column_end; c += kColumns) {
      take_columns(s.coefficients + c * kBlock + box.row_begin, count, factors);
      accumulate(factors, fours_of(s.row_values, chunks, box.row_begin), count,
                 offset(s.column_output, column + c), chunks);
    }
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
