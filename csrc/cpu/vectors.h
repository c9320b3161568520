// SPDX-License-Identifier: Apache-2.0
// Vectors of SECL_LANES floats and their elementary functions, in the namespace of one instruction set.

#pragma once

#include "../contrast_math.h"

namespace secl::SECL_ISA {
namespace {

// Kept out of line: inlined into a large caller, its sums no longer stay in registers.
#define SECL_OWN_REGISTERS __attribute__((noinline))

constexpr int kLanes = SECL_LANES;
constexpr int kColumns = SECL_COLUMNS;
constexpr int kVectors = 2;  // of a register tile's height: as many as leave registers for all sums
constexpr int kTile = kLanes * kVectors;
constexpr int kBlockVectors = kBlock / kLanes;
static_assert(kPanel % kTile == 0 && kPanel % kColumns == 0 && kBlock % kPanel == 0);

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));

SECL_INLINE Float load(const float* from) {
  Float value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

SECL_INLINE Int load(const int32_t* from) {
  Int value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

SECL_INLINE void store(float* to, Float value) { __builtin_memcpy(to, &value, sizeof value); }

SECL_INLINE Float splat(float value) { return value - Float{}; }

SECL_INLINE Int splat(int32_t value) { return value - Int{}; }

SECL_INLINE Int iota() {
  Int value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = lane;
  return value;
}

// 2^x for |x| < 126, or NaN: 2^n times a minimax polynomial on [-1/2, 1/2], relative error 2e-9 before
// rounding.
SECL_INLINE Float exp2_bounded(Float x) {
  const Float shifted = x + 12582912.0f;  // 1.5 * 2^23: the low bits now hold round(x)
  const Float f = x - (shifted - 12582912.0f);
  const Float power = (Float)(((Int)shifted + 127) << 23);
  Float p = f * 1.5345810970757157e-4f + 1.3399930903688073e-3f;
  p = p * f + 9.618489071726799e-3f;
  p = p * f + 5.550328642129898e-2f;
  p = p * f + 0.24022646248340607f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  return p * power;
}

// 2^x for any x: 0 below -127, infinity above 127.5, NaN for NaN.
SECL_INLINE Float exp2_any(Float x) {
  x = x < -127.0f ? splat(-127.0f) : x;
  x = x > 128.0f ? splat(128.0f) : x;
  return exp2_bounded(x);
}

struct Exp2 {
  SECL_INLINE Float operator()(Float x) const { return exp2_any(x); }
};

// Lanes of the two vectors, those of the second counted on from kLanes.
SECL_INLINE Float shuffle(Float a, Float b, Int index) {
#if defined(__clang__)
  Float found;
  for (int lane = 0; lane < kLanes; ++lane)
    found[lane] = index[lane] < kLanes ? a[index[lane]] : b[index[lane] - kLanes];
  return found;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

SECL_INLINE Float minus_magnitude(Float x) { return x < 0.0f ? x : -x; }

// Softplus and sigmoid of lse - s of one anchor, base 2 in, where the pair is positive.
SECL_INLINE Attraction<Float> positive_terms(Int positive, Float gap) {
  const Attraction<Float> found = attraction(gap * kLn2, exp2_any(minus_magnitude(gap)));
  return {positive ? found.softplus : Float{}, positive ? found.sigmoid : Float{}};
}

// The sum of all lanes, in double precision and always in the same order.
SECL_INLINE double lane_sum(Float value) {
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
}

SECL_INLINE void add_lanes(Float value, double* to /* [kLanes] */) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] += value[lane];
}

}  // namespace
}  // namespace secl::SECL_ISA
