// SPDX-License-Identifier: Apache-2.0
// What happens to a tile of similarities while it lies in registers: exponentials, masks and sums, and what
// is left is the weight of every column in the value product.
//
// A thread holds tile[n][2 r + c]: row `position.row + 8 r`, column `8 n + position.column + c` of a strip of
// 16 rows. That is the accumulator of mma.m16n8 repeated along n, and one warp's share of a wgmma.m64
// accumulator.
#pragma once

#include <bit>
#include <cmath>

#include "../contrast_math.h"
#include "device.cuh"
#include "job.h"

namespace secl::cuda {

// The fields of the rows or columns of one tile, in shared memory.
template <int kSize>
struct Strip {
  uint32_t word[kFields][kSize];

  __device__ __forceinline__ int integer(Field field, int i) const {
    return static_cast<int>(word[field][i]);
  }
  __device__ __forceinline__ float number(Field field, int i) const {
    return std::bit_cast<float>(word[field][i]);
  }
};

// Where a thread's first element lies in the strips, and what the strips begin with.
struct Position {
  int row, column;              // in the strips
  int first_row, first_column;  // of the strips, in their sides

  // `row` is the strip's row where the warp's 16 begin.
  static __device__ __forceinline__ Position of_lane(int lane, int row, int first_row, int first_column) {
    return {row + lane / 4, 2 * (lane % 4), first_row, first_column};
  }
};

// A row or a column in one pair.
struct Member {
  int index, label, group, exclude;
};

// Every condition is taken: a branch would cost more than all of them.
__device__ __forceinline__ PairMask<int> meet(const Rules& rules, const Member& anchor, const Member& key) {
  const int comparable = (anchor.label >= 0) & (key.label >= 0) & (anchor.group == key.group) &
                         (anchor.exclude != key.index) & !(rules.self & (anchor.index == key.index));
  return pair_mask<int>(-comparable, -(anchor.label == key.label), -(key.index >= rules.positive_start),
                        -(key.index < rules.negative_stop));
}

// Sum, or largest, of the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
__device__ __forceinline__ float quad_largest(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

template <int kTiles, int kSize>
__device__ __forceinline__ void multiply_columns(float (&tile)[kTiles][4], const Strip<kSize>& columns,
                                                 Field field, int column) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) tile[n][e] *= columns.number(field, 8 * n + column + e % 2);
  }
}

// Logits in base 2 of similarities, each larger by the logarithm of its key's mass: exp2 gives it so often.
template <int kTiles, int kSize>
__device__ __forceinline__ void weigh_logits(float (&tile)[kTiles][4], const Strip<kSize>& keys, float scale2,
                                             int column) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float mass2 = log2f(keys.number(kMass, 8 * n + column + c));
#pragma unroll
      for (int e = c; e < 4; e += 2) tile[n][e] = tile[n][e] * scale2 + mass2;
    }
  }
}

// The strips of one tile, and the sides that they were cut from.
template <int kRows, int kColumns>
struct Strips {
  const Side &row_side, &column_side;
  const Strip<kRows>& rows;
  const Strip<kColumns>& columns;

  __device__ __forceinline__ Member row(const Position& position, int i) const {
    return member(row_side, rows, position.first_row, position.row + i);
  }
  __device__ __forceinline__ Member column(const Position& position, int i) const {
    return member(column_side, columns, position.first_column, position.column + i);
  }

 private:
  template <int kSize>
  static __device__ __forceinline__ Member member(const Side& side, const Strip<kSize>& strip, int first,
                                                  int i) {
    return {first + i, strip.integer(kLabel, i), side.field[kGroup] ? strip.integer(kGroup, i) : 0,
            side.field[kExclude] ? strip.integer(kExclude, i) : -1};
  }
};

// The tile becomes exp2(scale2 tile - peak), added to the running sums of two rows.
template <int kTiles>
__device__ __forceinline__ void sum_terms(float (&tile)[kTiles][4], Running<float> (&running)[2],
                                          float (&shrink)[2], float scale2, bool bounded) {
  float shift[2] = {0, 0};
  if (!bounded) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -kLargest;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) top = fmaxf(top, fmaxf(tile[n][2 * r], tile[n][2 * r + 1]));
      // A finite peak: an infinite logit makes the sum infinite and not NaN.
      shift[r] = fminf(fmaxf(running[r].peak, quad_largest(top) * scale2), kLargest);
      shrink[r] = exp2_approx(running[r].peak - shift[r]);
      running[r] = {shift[r], running[r].sum * shrink[r]};
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      tile[n][e] = exp2_approx(tile[n][e] * scale2 - shift[e / 2]);
      running[e / 2].sum += tile[n][e];
    }
  }
}

// First pass over the denominator: a running sum of exp2(logit - peak) of two rows; the tile becomes the
// terms, times the factors of the columns where they have some. `shrink` is what sums over earlier tiles are
// multiplied by.
template <bool kWeighted, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void denominator_tile(float (&tile)[kTiles][4], Running<float> (&running)[2],
                                                 float (&shrink)[2], const Rules& rules,
                                                 const Strips<kRows, kColumns>& strips,
                                                 const Position& position, bool masked) {
  const bool factors = strips.column_side.field[kFactor] != nullptr;
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
  if (masked) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Member anchor = strips.row(position, 8 * r);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const PairMask<int> pair = meet(rules, anchor, strips.column(position, 8 * n + c));
          if (!denominator(pair, rules.negatives_only)) tile[n][2 * r + c] = -HUGE_VALF;
        }
      }
    }
  }
  if constexpr (kWeighted) {
    weigh_logits(tile, strips.columns, rules.scale2, position.column);
    sum_terms(tile, running, shrink, 1.0f, false);
  } else {
    sum_terms(tile, running, shrink, rules.scale2, rules.bounded);
  }
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
}

// Sums over the positives of a row, or over all pairs of a sigmoid's: there `pull` is that of the slopes.
struct Attracted {
  float loss, pull;
  int count;  // of weighted keys the bits of the sum of their weights: one register serves both

  __device__ __forceinline__ float mass() const { return std::bit_cast<float>(count); }
  __device__ __forceinline__ void add_mass(float more) { count = std::bit_cast<int>(mass() + more); }
  // Of another part of the columns.
  __device__ __forceinline__ void add(const Attracted& other, bool weighted) {
    loss += other.loss;
    pull += other.pull;
    if (weighted) {
      add_mass(other.mass());
    } else {
      count += other.count;
    }
  }
};

// A sum to which its rounding is given back (Kahan). Tiles add nearly equal numbers, in thousands: rounded
// each the same way, they would be lost digit by digit.
struct Remainder {
  float loss = 0, pull = 0, mass = 0;  // what the sums of the tiles so far are too large by

  static __device__ __forceinline__ float exactly(float sum, float more, float& excess) {
    const float wanted = more - excess, found = sum + wanted;
    excess = fabsf(found) <= kLargest ? (found - sum) - wanted : 0.0f;
    return found;
  }
  __device__ __forceinline__ void add(Attracted& sums, const Attracted& tile, bool weighted) {
    sums.loss = exactly(sums.loss, tile.loss, loss);
    sums.pull = exactly(sums.pull, tile.pull, pull);
    if (weighted) {
      sums.count = std::bit_cast<int>(exactly(sums.mass(), tile.mass(), mass));
    } else {
      sums.count += tile.count;
    }
  }
};

// Second pass over the positives: their losses and attraction, summed; the tile becomes the attraction.
template <bool kWeighted, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void positive_tile(float (&tile)[kTiles][4], Attracted (&sums)[2],
                                              const Rules& rules, const Strips<kRows, kColumns>& strips,
                                              const Position& position) {
  const bool factors = strips.column_side.field[kFactor] != nullptr;
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Member anchor = strips.row(position, 8 * r);
    const float lse2 = strips.rows.number(kLse, position.row + 8 * r) * kLog2E;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& element = tile[n][2 * r + c];
        const bool positive = meet(rules, anchor, strips.column(position, 8 * n + c)).positive != 0;
        const float gap2 = lse2 - element * rules.scale2, gap = gap2 * kLn2;
        element = 0;
        if (positive) {  // a branch, or all attractions at once would need more registers than there are
          Attraction<float> found{gap, 1};
          if (rules.negatives_only) found = attraction<float>(gap, exp2_approx(-fabsf(gap2)));
          if constexpr (kWeighted) {
            const float mass = strips.columns.number(kMass, position.column + 8 * n + c);
            found = {found.softplus * mass, found.sigmoid * mass};
            sums[r].add_mass(mass);
          } else {
            sums[r].count += 1;
          }
          element = found.sigmoid;
          sums[r].loss += found.softplus;
          sums[r].pull += found.sigmoid;
        }
      }
    }
  }
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
}

// What is known of an anchor in a gradient; nothing of one that does not count.
struct AnchorState {
  Member member;
  float lse2, push, draw;

  template <int kSize>
  __device__ __forceinline__ AnchorState(const Member& member, const Strip<kSize>& strip, int i)
      : member(member),
        lse2(strip.number(kLse, i)),
        push(strip.number(kPush, i)),
        draw(strip.number(kDraw, i)) {
    if (lse2 == kLargest) this->member.label = -1;
  }
  __device__ __forceinline__ float with_key(const Rules& rules, const Member& key, float logit) const {
    return coefficient<float>(meet(rules, member, key), exp2_approx(logit - lse2), push, draw,
                              rules.negatives_only);
  }
};

template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void masked_gradient_tile(float (&tile)[kTiles][4], const Job& job,
                                                     const Strips<kRows, kColumns>& strips,
                                                     const Position& position) {
  const Rules& rules = job.rules;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Member row = strips.row(position, 8 * r);
    const AnchorState anchor(row, strips.rows, position.row + 8 * r);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& element = tile[n][2 * r + c];
        const Member column = strips.column(position, 8 * n + c);
        const float logit = element * rules.scale2;
        element = job.rows_are_anchors ? anchor.with_key(rules, column, logit) : 0.0f;
        if (job.rows_are_keys)
          element +=
              AnchorState(column, strips.columns, position.column + 8 * n + c).with_key(rules, row, logit);
      }
    }
  }
}

template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void negative_gradient_tile(float (&tile)[kTiles][4], const Job& job,
                                                       const Strips<kRows, kColumns>& strips,
                                                       const Position& position) {
  const float scale2 = job.rules.scale2;
  const bool one_exponential = job.rows_are_anchors && job.rows_are_keys && job.rules.bounded;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = position.row + 8 * r;
    if (one_exponential) {
      const float weight = strips.rows.number(kWeight, i);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e)
          tile[n][e] = exp2_approx(tile[n][e] * scale2) *
                       (weight + strips.columns.number(kWeight, position.column + 8 * n + e % 2));
      }
      continue;
    }
    const bool anchors = job.rows_are_anchors, keys = job.rows_are_keys;
    const float lse2 = anchors ? strips.rows.number(kLse, i) : 0;
    const float push = anchors ? strips.rows.number(kPush, i) : 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        const int j = position.column + 8 * n + e % 2;
        const float logit = tile[n][e] * scale2;
        float found = 0;
        if (anchors) found = push * exp2_approx(logit - lse2);
        if (keys)
          found += strips.columns.number(kPush, j) * exp2_approx(logit - strips.columns.number(kLse, j));
        tile[n][e] = found;
      }
    }
  }
}

// A gradient from the saved state: the tile becomes d loss / d s, summed over the roles of the rows. In a
// tile that is not masked every pair is a negative one.
template <bool kWeighted, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void gradient_tile(float (&tile)[kTiles][4], const Job& job,
                                              const Strips<kRows, kColumns>& strips, const Position& position,
                                              bool masked) {
  if (masked) {
    masked_gradient_tile(tile, job, strips, position);
  } else {
    negative_gradient_tile(tile, job, strips, position);
  }
  if constexpr (!kWeighted) return;
  if (job.rows_are_anchors) return multiply_columns(tile, strips.columns, kMass, position.column);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float mass = strips.rows.number(kMass, position.row + 8 * r);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) tile[n][e] *= mass;
    }
  }
}

}  // namespace secl::cuda
