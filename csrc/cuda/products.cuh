// SPDX-License-Identifier: Apache-2.0
// The two matrix products of a tile by mma.sync, and how rows lie in shared memory for both: chunks of 64
// numbers one after another, [chunk][row][64], the 16-byte units of a row exchanged by its number so that
// eight rows read at one place meet eight different banks.
#pragma once

#include <bit>

#include "device.cuh"
#include "tiles.h"

namespace secl::cuda {

constexpr int kUnit = 8;                // numbers that move together
constexpr int kUnits = kChunk / kUnit;  // of a row in one chunk
constexpr int kRowBytes = kChunk * 2;

__host__ __device__ __forceinline__ constexpr int chunks_of(int width) {
  return (width + kChunk - 1) / kChunk;
}
// Both products are 16 numbers deep or wide at least.
__host__ __device__ __forceinline__ constexpr int units_of(int width) { return (width + 15) / 16 * 2; }

template <int kRows>
__device__ __forceinline__ unsigned char* unit_at(unsigned char* slab, int chunk, int row, int unit) {
  return slab + (chunk * kRows + row) * kRowBytes + ((unit ^ (row % kUnits)) * 16);
}

// One unit of a row where rows do not start on a boundary, or end inside the unit.
template <class T>
__device__ __forceinline__ void copy_unit(unsigned char* to, const T* row /* [width] */, int at, int width,
                                          bool valid) {
  Vector<T, kUnit> unit;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) unit.at[i] = valid && at + i < width ? row[at + i] : from_float<T>(0.0f);
  *reinterpret_cast<Vector<T, kUnit>*>(to) = unit;
}

// Starts to copy kRows rows from `first` on; rows that are not valid come as zeros and are not read.
template <int kRows, int kThreads, class T, class Valid>
__device__ __forceinline__ void load_rows(unsigned char* slab, const T* rows /* [n, width] */, int64_t first,
                                          int width, const Valid& valid) {
  const bool whole = width % kUnit == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
  const int unit = threadIdx.x % kUnits, padded = units_of(width) * kUnit;
  for (int row = threadIdx.x / kUnits; row < kRows; row += kThreads / kUnits) {
    const bool reads = valid(row);
    const T* from = rows + (reads ? (first + row) * width : 0);
    unsigned char* to = unit_at<kRows>(slab, 0, row, unit);
    for (int at = unit * kUnit; at < padded; at += kChunk, to += kRows * kRowBytes) {
      if (whole) {
        const bool inside = reads && at < width;
        copy_async(to, from + (inside ? at : 0), inside);
      } else {
        copy_unit(to, from, at, width, reads);
      }
    }
  }
}

// tile [16 strips, columns] = rows @ columns^T over the whole width, of the warp's strips from row `row` on.
template <class T, int kStrips, int kTiles, int kRows>
__device__ __forceinline__ void similarities(float (&tile)[kStrips][kTiles][4], unsigned char* rows,
                                             unsigned char* columns, int row, int width) {
#pragma unroll
  for (int m = 0; m < kStrips; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tile[m][n][e] = 0;
    }
  }
  const int lane = threadIdx.x % kWarp;
  const int row_of_lane = row + lane % 16, row_unit = lane / 16;
  const int column_of_lane = lane % 8 + lane / 16 * 8, column_unit = lane / 8 % 2;
  for (int chunk = 0; chunk * kChunk < width; ++chunk) {
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      if (chunk * kChunk + step * 16 >= width) break;
      uint32_t left[kStrips][4];
#pragma unroll
      for (int m = 0; m < kStrips; ++m)
        load_matrices(left[m], unit_at<kRows>(rows, chunk, row_of_lane + 16 * m, 2 * step + row_unit));
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t right[4];
        load_matrices(right,
                      unit_at<kTiles * 8>(columns, chunk, column_of_lane + 8 * n, 2 * step + column_unit));
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
        for (int m = 0; m < kStrips; ++m) {
          multiply_add<T>(tile[m][n], left[m], first);       // [16, 16] @ [16, 8]
          multiply_add<T>(tile[m][n + 1], left[m], second);  // [16, 16] @ [16, 8]
        }
      }
    }
  }
}

__device__ __forceinline__ uint32_t widened(uint32_t pair, int which) {
  const auto bits = static_cast<unsigned short>(pair >> (16 * which));
  return std::bit_cast<uint32_t>(to_float(std::bit_cast<fp16>(bits)));
}

// The weights of 16 columns as the left factor of a product, rounded as far as the rows are. fp16 cannot hold
// probabilities (they underflow at temperatures below 0.1): tf32 holds fp16 rows exactly and the weights with
// fp16's precision and fp32's range. Its k runs over 0 2 4 6 1 3 5 7, as the accumulator of the similarities
// lies.
template <class T>
struct Weights;

template <>
struct Weights<bf16> {
  uint32_t left[4];
  __device__ __forceinline__ Weights(const float (&a)[4], const float (&b)[4])
      : left{pack<bf16>(a[0], a[1]), pack<bf16>(a[2], a[3]), pack<bf16>(b[0], b[1]), pack<bf16>(b[2], b[3])} {
  }
  __device__ __forceinline__ void multiply(float (&out)[4], uint32_t first, uint32_t second) const {
    const uint32_t right[2] = {first, second};
    multiply_add<bf16>(out, left, right);  // [16, 16] @ [16, 8]
  }
};

template <>
struct Weights<fp16> {
  uint32_t left[2][4];
  __device__ __forceinline__ Weights(const float (&a)[4], const float (&b)[4])
      : left{{to_tf32(a[0]), to_tf32(a[2]), to_tf32(a[1]), to_tf32(a[3])},
             {to_tf32(b[0]), to_tf32(b[2]), to_tf32(b[1]), to_tf32(b[3])}} {}
  __device__ __forceinline__ void multiply(float (&out)[4], uint32_t first, uint32_t second) const {
    const uint32_t low[2] = {widened(first, 0), widened(first, 1)};
    const uint32_t high[2] = {widened(second, 0), widened(second, 1)};
    multiply_add_tf32(out, left[0], low);   // [16, 8] @ [8, 8]
    multiply_add_tf32(out, left[1], high);  // [16, 8] @ [8, 8]
  }
};

// out [16 strips, kOut] += tile [16 strips, columns] @ columns [columns, kOut], of the output columns from
// `first` on.
template <class T, int kStrips, int kTiles, int kOutTiles>
__device__ __forceinline__ void value_product(float (&out)[kStrips][kOutTiles][4],
                                              const float (&tile)[kStrips][kTiles][4], unsigned char* columns,
                                              int first, int width) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    const Weights<T> low(tile[0][n], tile[0][n + 1]);
    const Weights<T> high(tile[kStrips - 1][n], tile[kStrips - 1][n + 1]);
#pragma unroll
    for (int d = 0; d < kOutTiles; d += 2) {
      if (first + 8 * d >= width) break;
      const int at = first / kUnit + d + lane / 16;
      uint32_t right[4];
      load_matrices_transposed(right,
                               unit_at<kTiles * 8>(columns, at / kUnits, 8 * n + lane % 16, at % kUnits));
      low.multiply(out[0][d], right[0], right[1]);
      low.multiply(out[0][d + 1], right[2], right[3]);
      if constexpr (kStrips == 2) {
        high.multiply(out[1][d], right[0], right[1]);
        high.multiply(out[1][d + 1], right[2], right[3]);
      }
    }
  }
}

}  // namespace secl::cuda
