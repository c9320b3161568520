// SPDX-License-Identifier: Apache-2.0
// What is known of several neighbouring rows at once, so that only tiles that need masks pay for them.
#pragma once

#include "../epilogue.cuh"
#include "plan.h"

namespace secl::cuda::hopper {

// Ranges over the rows that are not ignored; low > high where there is none.
struct Span {
  int label_low, label_high, group_low, group_high, exclude_low, exclude_high;
  int ignored, counted;  // how many rows are ignored, and how many are anchors that count
  float top;             // the largest |push| + |draw| of the latter
};

__device__ __forceinline__ int warp_least(int x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = min(x, shuffle_xor(x, lanes));
  return x;
}
__device__ __forceinline__ int warp_largest(int x) { return -warp_least(-x); }
__device__ __forceinline__ float warp_largest(float x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
  return x;
}

// Of rows first .. first + count of a strip, by one warp.
template <int kSize>
__device__ __forceinline__ Span span_of(const Side& side, const Strip<kSize>& strip, int first, int count,
                                        int lane) {
  constexpr int kMost = 2147483647;
  Span found{kMost, -kMost, kMost, -kMost, kMost, -kMost, 0, 0, 0};
#pragma unroll 1
  for (int i = first + lane; i < first + count; i += kWarp) {
    const int label = strip.integer(kLabel, i);
    if (label < 0) {
      ++found.ignored;
      continue;
    }
    if (side.field[kPush] && strip.number(kLse, i) != kLargest) {
      ++found.counted;
      found.top = fmaxf(found.top, fabsf(strip.number(kPush, i)) + fabsf(strip.number(kDraw, i)));
    }
    const int group = side.field[kGroup] ? strip.integer(kGroup, i) : 0;
    const int exclude = side.field[kExclude] ? strip.integer(kExclude, i) : -1;
    found.label_low = min(found.label_low, label), found.label_high = max(found.label_high, label);
    found.group_low = min(found.group_low, group), found.group_high = max(found.group_high, group);
    found.exclude_low = min(found.exclude_low, exclude),
    found.exclude_high = max(found.exclude_high, exclude);
  }
  return {warp_least(found.label_low),    warp_largest(found.label_high), warp_least(found.group_low),
          warp_largest(found.group_high), warp_least(found.exclude_low),  warp_largest(found.exclude_high),
          warp_sum(found.ignored),        warp_sum(found.counted),        warp_largest(found.top)};
}

struct Extent {
  int first, count;

  __device__ __forceinline__ bool meets(Extent other) const {
    return first < other.first + other.count && other.first < first + count;
  }
  __device__ __forceinline__ bool meets(int low, int high) const {
    return low < first + count && first <= high;
  }
};

// Whether all pairs of these anchors and keys play one part: negatives in a gradient, the denominator in a
// sum.
__device__ __forceinline__ bool uniform(const Rules& rules, bool gradient, bool apart, const Span& anchors,
                                        Extent keys) {
  if (anchors.exclude_low <= anchors.exclude_high && keys.meets(anchors.exclude_low, anchors.exclude_high))
    return false;
  if (keys.first + keys.count > rules.negative_stop) return false;
  return apart || (!gradient && !rules.negatives_only && keys.first >= rules.positive_start);
}

// Whether a tile has pairs that differ in the part they play. Ignored rows, not columns, may be treated like
// others: what they sum is dropped.
template <Purpose kPurpose>
__device__ __forceinline__ bool needs_masks(const Job& job, const Span& row, Extent rows, const Span& column,
                                            Extent columns) {
  if (column.ignored > 0) return true;
  if (job.rules.self && rows.meets(columns)) return true;
  if (row.group_low != row.group_high || column.group_low != column.group_high ||
      row.group_low != column.group_low) {
    return true;
  }
  constexpr bool kGradient = is_gradient(kPurpose);
  const bool apart = row.label_high < column.label_low || column.label_high < row.label_low;
  if (kPurpose != Purpose::kKeys && !uniform(job.rules, kGradient, apart, row, columns)) return true;
  if (kPurpose == Purpose::kKeys || kPurpose == Purpose::kBoth)
    return !uniform(job.rules, kGradient, apart, column, rows);
  return false;
}

}  // namespace secl::cuda::hopper
