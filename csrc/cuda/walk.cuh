// SPDX-License-Identifier: Apache-2.0
// Which tiles of the columns a block visits, and which of them need masks: read off the labels ahead of the
// features.
#pragma once

#include <climits>

#include "epilogue.cuh"
#include "tiles.h"

namespace secl::cuda {

// What is known of all rows of a block at once.
struct RowClasses {
  uint64_t set = 0;              // bit of each (label, group); classes beyond 64 share bits
  int low = INT_MAX, high = -1;  // labels; none: low > high
  int first = 0, last = 0;       // rows
  bool counted = false;          // an anchor among them counts
};

__device__ __forceinline__ uint64_t class_bit(int label, int group) {
  return uint64_t{1} << ((static_cast<unsigned>(label) + 29u * static_cast<unsigned>(group)) % 64);
}

// By one warp.
template <int kRows>
__device__ __forceinline__ RowClasses row_classes(const Side& side, const Strip<kRows>& rows, int first) {
  RowClasses found;
  for (int i = threadIdx.x % kWarp; i < kRows; i += kWarp) {
    const int label = rows.integer(kLabel, i);
    if (label < 0) continue;
    found.set |= class_bit(label, side.field[kGroup] ? rows.integer(kGroup, i) : 0);
    found.low = min(found.low, label);
    found.high = max(found.high, label);
    found.counted |= rows.number(kLse, i) != kLargest;
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    found.set |= shuffle_xor(found.set, lanes);
    found.low = min(found.low, shuffle_xor(found.low, lanes));
    found.high = max(found.high, shuffle_xor(found.high, lanes));
  }
  found.counted = ballot(found.counted) != 0;
  found.first = first;
  found.last = first + kRows - 1;
  return found;
}

struct Visit {
  bool wanted, masked;
};

// Whether a column may need its tile visited, or masked; true errs on the safe side.
__device__ __forceinline__ Visit visit(Pass pass, const Job& job, const RowClasses& rows, int column,
                                       int label, int group) {
  const Rules& rules = job.rules;
  if (label < 0 || rows.high < 0) return {false, true};
  const bool near = (rows.set & class_bit(label, group)) != 0;
  const bool alone = rows.low == rows.high && rows.low == label;
  bool attracts = false, repels = false, ragged = near;
  if (job.rows_are_anchors) {
    attracts = near && column >= rules.positive_start;
    repels = !alone && column < rules.negative_stop;
    ragged = ragged || column >= rules.negative_stop;
  }
  if (job.rows_are_keys) {
    attracts = attracts || (near && rows.last >= rules.positive_start);
    repels = repels || (!alone && rows.first < rules.negative_stop);
    ragged = ragged || rows.last >= rules.negative_stop;
  }
  const bool barred = job.columns.field[kGroup] || job.rows.field[kExclude] || job.columns.field[kExclude] ||
                      (rules.self && column >= rows.first && column <= rows.last);
  switch (pass) {
    case Pass::kPositive:
      return {attracts, true};
    case Pass::kGradient:
    case Pass::kSigmoid:
      return {attracts || repels, ragged || barred};
    default:  // under "all" a positive pair is one of the denominator's
      if (rules.negatives_only) return {repels, ragged || barred};
      return {attracts || repels, (near && !attracts) || column >= rules.negative_stop || barred};
  }
}

// Walks over the wanted tiles of a run, 32 of them looked at ahead. All threads of the block call each
// function.
template <int kColumns, int kThreads>
class Walk {
 public:
  static constexpr int kTiles = 32;
  static constexpr int kWords = kTiles * kColumns / 32;
  static constexpr uint32_t kWanted = 1, kMasked = 2;
  struct Shared {
    uint32_t valid[kWords];  // one bit a column
    uint32_t state[kWords];
  };

  __device__ __forceinline__ Walk(Shared& shared, int tile, int stop)
      : shared_(shared), base_(tile - kTiles), stop_(stop) {}

  // The next wanted tile, or -1.
  __device__ __forceinline__ int next(Pass pass, const Job& job, const RowClasses& rows, bool& masked) {
    while (wanted_ == 0) {
      if (base_ + kTiles >= stop_) return -1;
      base_ += kTiles;
      look_ahead(pass, job, rows);
    }
    const int bit = std::countr_zero(wanted_);
    wanted_ &= wanted_ - 1;
    masked = (state(bit) & kMasked) != 0;
    return base_ + bit;
  }

  // Whether a column of the tile that `next` gave last is read.
  __device__ __forceinline__ bool valid(int tile, int column) const {
    const int at = (tile - base_) * kColumns + column;
    return (shared_.valid[at / 32] >> (at % 32) & 1) != 0;
  }

 private:
  __device__ __forceinline__ void look_ahead(Pass pass, const Job& job, const RowClasses& rows) {
    const Side& side = job.columns;
    const int lane = threadIdx.x % kWarp;
    sync_block();
    for (int word = threadIdx.x / kWarp; word < kWords; word += kThreads / kWarp) {
      const int64_t column = int64_t{base_} * kColumns + word * 32 + lane;
      const bool inside = column < side.count;
      const int label = inside ? static_cast<int>(side.field[kLabel][column]) : -1;
      const int group = inside && side.field[kGroup] ? static_cast<int>(side.field[kGroup][column]) : 0;
      Visit found = visit(pass, job, rows, static_cast<int>(column), label, group);
      if (pass == Pass::kGradient && job.rows_are_keys && !rows.counted && found.wanted)
        found.wanted = std::bit_cast<float>(side.field[kLse][column]) != kLargest;
      const uint32_t valid = ballot(label >= 0), wanted = ballot(found.wanted), masked = ballot(found.masked);
      if (lane == 0) {
        shared_.valid[word] = valid;
        shared_.state[word] = (wanted != 0 ? kWanted : 0) | (masked != 0 ? kMasked : 0);
      }
    }
    sync_block();
    wanted_ = ballot((state(lane) & kWanted) != 0 && base_ + lane < stop_);
  }

  // Of a tile looked at, what its columns want together.
  __device__ __forceinline__ uint32_t state(int tile) const {
    uint32_t found = 0;
#pragma unroll
    for (int word = 0; word < kColumns / 32; ++word) found |= shared_.state[tile * (kColumns / 32) + word];
    return found;
  }

  Shared& shared_;
  int base_, stop_;
  uint32_t wanted_ = 0;  // of the tiles from base_ on, those still to come
};

}  // namespace secl::cuda
