// SPDX-License-Identifier: Apache-2.0
// What a tile goes through while it lies in registers. Tiles that need no masks take as few instructions as
// it takes; for the others the pairs' parts are found first, as bits, so that no label occupies a register
// meanwhile.
#pragma once

#include <type_traits>

#include "spans.cuh"

namespace secl::cuda::hopper {

// 2^x by fused multiply-adds, for |x| < 126: the rounded part of x goes into the exponent, the rest, at most
// a half, through a polynomial of relative error 3e-6. NaN stays NaN.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the lowest bits
  const float shifted = x + kRounder;
  const float rest = x - (shifted - kRounder);
  float power = 0.00957007f;
  power = power * rest + 0.05591781f;
  power = power * rest + 0.24024745f;
  power = power * rest + 0.69312182f;
  power = power * rest + 0.99999926f;
  return power * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
}

// Whether the i-th exponential of a thread is one of the `share` of 16 that fused multiply-adds compute.
constexpr bool on_multipliers(int i, int share) { return i * share % 16 < share; }

// Terms of the denominator, and their sums over this thread's columns.
template <int kPolynomial, int kTiles>
__device__ __forceinline__ void plain_terms(float (&tile)[kTiles][4], float (&sum)[2], float scale2) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float logit = tile[n][e] * scale2;
      tile[n][e] = on_multipliers(4 * n + e, kPolynomial) ? exp2_polynomial(logit) : exp2_approx(logit);
      sum[e / 2] += tile[n][e];
    }
  }
}

// Coefficients of a gradient where all pairs are negatives: one exponential serves both roles of a row.
template <int kPolynomial, bool kAnchors, bool kKeys, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void plain_coefficients(float (&tile)[kTiles][4], float scale2,
                                                   const Strips<kRows, kColumns>& strips,
                                                   const Position& position, float lift) {
  float row[2] = {0, 0};
  if constexpr (kAnchors) {
    row[0] = strips.rows.number(kWeight, position.row),
    row[1] = strips.rows.number(kWeight, position.row + 8);
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    float column[2] = {0, 0};
    if constexpr (kKeys) {
      column[0] = strips.columns.number(kWeight, position.column + 8 * n);
      column[1] = strips.columns.number(kWeight, position.column + 8 * n + 1);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float logit = tile[n][e] * scale2;
      tile[n][e] = lift * (row[e / 2] + column[e % 2]) *
                   (on_multipliers(4 * n + e, kPolynomial) ? exp2_polynomial(logit) : exp2_approx(logit));
    }
  }
}

// The parts that a thread's pairs play: bit 4 n + e is that of tile[n][e].
template <int kTiles>
struct Parts {
  using Bits = std::conditional_t<(kTiles > 8), uint64_t, uint32_t>;
  Bits positive = 0, negative = 0;

  __device__ __forceinline__ PairMask<int> of(int i) const {
    return {-static_cast<int>(positive >> i & 1), -static_cast<int>(negative >> i & 1)};
  }
};

template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ Parts<kTiles> parts_of(const Rules& rules, const Strips<kRows, kColumns>& strips,
                                                  const Position& position, bool row_is_anchor) {
  using Bits = typename Parts<kTiles>::Bits;
  const Member row[2] = {strips.row(position, 0), strips.row(position, 8)};
  Parts<kTiles> parts;
#pragma unroll 1
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Member column = strips.column(position, 8 * n + c);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const PairMask<int> pair = row_is_anchor ? meet(rules, row[r], column) : meet(rules, column, row[r]);
        parts.positive |= static_cast<Bits>(pair.positive & 1) << (4 * n + 2 * r + c);
        parts.negative |= static_cast<Bits>(pair.negative & 1) << (4 * n + 2 * r + c);
      }
    }
  }
  return parts;
}

template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void masked_terms(float (&tile)[kTiles][4], float (&sum)[2], const Rules& rules,
                                             const Strips<kRows, kColumns>& strips,
                                             const Position& position) {
  const Parts<kTiles> parts = parts_of<kTiles>(rules, strips, position, true);
  const auto inside = rules.negatives_only ? parts.negative : parts.negative | parts.positive;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float term = exp2_approx(tile[n][e] * rules.scale2);
      tile[n][e] = (inside >> (4 * n + e) & 1) != 0 ? term : 0.0f;
      sum[e / 2] += tile[n][e];
    }
  }
}

// What keeps the weights of two rows within fp16, whose smallest numbers are 2^-24: a power of two that they
// are taken relative to, which rises with them. What was summed before is multiplied by `shrink`: exactly,
// since both are powers of two.
struct Level {
  float at[2];  // of a denominator, the exponent; of a gradient, the power
  float shrink[2] = {1, 1};

  __device__ __forceinline__ bool rose() const { return shrink[0] != 1 || shrink[1] != 1; }
};

constexpr float kRoom = 14;  // a weight may reach 2^14; fp16 ends below 2^16
constexpr float kFreshRoom =
    8;  // where the largest weight lies after the level rose: it need not rise again soon
constexpr float kCoefficients = 4096;

// Terms of the denominator for an fp16 product; levels start at -kLargest.
template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void level_terms(float (&tile)[kTiles][4], float (&sum)[2], Level& level,
                                            const Rules& rules, const Strips<kRows, kColumns>& strips,
                                            const Position& position, bool masked) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) tile[n][e] *= rules.scale2;
  }
  if (masked) {
    const Parts<kTiles> parts = parts_of<kTiles>(rules, strips, position, true);
    const auto inside = rules.negatives_only ? parts.negative : parts.negative | parts.positive;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if ((inside >> (4 * n + e) & 1) == 0) tile[n][e] = -HUGE_VALF;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = -HUGE_VALF;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) top = fmaxf(top, fmaxf(tile[n][2 * r], tile[n][2 * r + 1]));
    top = quad_largest(top);
    const float before = level.at[r];
    if (top - before > kRoom) level.at[r] = ceilf(top) - kFreshRoom;
    level.shrink[r] = exp2_approx(before - level.at[r]);
    sum[r] *= level.shrink[r];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& term = tile[n][2 * r + c];
        term = exp2_approx(term - level.at[r]);
        sum[r] += term;
      }
    }
  }
}

// Raises the level of a gradient's coefficients, none of which is above `top`; levels start at 0. Returns
// what brings coefficients to the level.
__device__ __forceinline__ float raise(Level& level, float top) {
  const float power =
      std::bit_cast<float>((std::bit_cast<uint32_t>(fmaxf(top, 0x1p-90f)) & 0x7f800000u) + 0x800000u);
  const float before = level.at[0];
  if (top > 0 && power > before) level.at[0] = level.at[1] = power;
  level.shrink[0] = level.shrink[1] = before == level.at[0] ? 1.0f : before / level.at[0];
  return level.at[0] == 0 ? 0.0f : kCoefficients / level.at[0];
}

// Of one role of the row.
template <bool kAnchors, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ float masked_coefficient(const Parts<kTiles>& parts, float logit, int n, int e,
                                                    const Rules& rules, const Strips<kRows, kColumns>& strips,
                                                    const Position& position) {
  const int i = position.row + 8 * (e / 2), j = position.column + 8 * n + e % 2;
  const auto of_anchor = [&](Field field) {
    return kAnchors ? strips.rows.number(field, i) : strips.columns.number(field, j);
  };
  return coefficient<float>(parts.of(4 * n + e), exp2_approx(logit - of_anchor(kLse)), of_anchor(kPush),
                            of_anchor(kDraw), rules.negatives_only);
}

template <bool kAnchors, bool kKeys, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void masked_coefficients(float (&tile)[kTiles][4], const Rules& rules,
                                                    const Strips<kRows, kColumns>& strips,
                                                    const Position& position, float lift) {
  Parts<kTiles> as_anchor, as_key;
  if constexpr (kAnchors) as_anchor = parts_of<kTiles>(rules, strips, position, true);
  if constexpr (kKeys) as_key = parts_of<kTiles>(rules, strips, position, false);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float logit = tile[n][e] * rules.scale2;
      float found = 0;
      if constexpr (kAnchors)
        found = masked_coefficient<true>(as_anchor, logit, n, e, rules, strips, position);
      if constexpr (kKeys) found += masked_coefficient<false>(as_key, logit, n, e, rules, strips, position);
      tile[n][e] = lift * found;
    }
  }
}

}  // namespace secl::cuda::hopper
