// SPDX-License-Identifier: Apache-2.0
// What is done with one row of numbers: its norm, the way of a gradient through it, and a sum of two rows. In
// double precision, half a vector of floats at a time.

#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

constexpr int kHalf = kLanes / 2;
typedef float HalfFloat __attribute__((vector_size(4 * kHalf)));
typedef double Double __attribute__((vector_size(8 * kHalf)));

// Up to kHalf numbers of a row; those past its end are zeros, and are not written.
struct Piece {
  int64_t size;
  explicit Piece(int64_t left) : size(left < kHalf ? left : kHalf) {}

  SECL_INLINE Double read(const float* from) const {
    HalfFloat value{};
    size == kHalf ? __builtin_memcpy(&value, from, sizeof value)
                  : __builtin_memcpy(&value, from, static_cast<size_t>(size) * sizeof(float));
    return __builtin_convertvector(value, Double);
  }

  SECL_INLINE void write(float* to, Double value) const {
    const HalfFloat narrow = __builtin_convertvector(value, HalfFloat);
    size == kHalf ? __builtin_memcpy(to, &narrow, sizeof narrow)
                  : __builtin_memcpy(to, &narrow, static_cast<size_t>(size) * sizeof(float));
  }
};

SECL_INLINE double dot_product(const float* a, const float* b, int64_t depth) {
  Double sums[2] = {};
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    const Piece whole(kHalf);
    sums[0] += whole.read(a + d) * whole.read(b + d);
    sums[1] += whole.read(a + d + kHalf) * whole.read(b + d + kHalf);
  }
  for (; d < depth; d += kHalf) sums[0] += Piece(depth - d).read(a + d) * Piece(depth - d).read(b + d);
  sums[0] += sums[1];
  double sum = 0;
  for (int lane = 0; lane < kHalf; ++lane) sum += sums[0][lane];
  return sum;
}

inline double square(const float* row, int64_t depth) { return dot_product(row, row, depth); }

inline float to_unit(float* row, int64_t depth) {
  const double square = dot_product(row, row, depth);
  const double factor = square == 0 ? 0.0 : 1.0 / __builtin_sqrt(square);
  for (int64_t d = 0; d < depth; d += kHalf) {
    const Piece piece(depth - d);
    piece.write(row + d, piece.read(row + d) * factor);
  }
  // The inverse of a subnormal norm is no float; the comparison in this order lets a NaN through.
  constexpr double kMost = kLargest;
  return static_cast<float>(kMost < factor ? kMost : factor);
}

inline void through_norm(float* grad, const float* unit, float inverse, int64_t depth) {
  bool is_zero = true;
  for (int64_t d = 0; d < depth; ++d) is_zero &= grad[d] == 0;
  if (is_zero) return;
  const double radial = dot_product(unit, grad, depth);
  for (int64_t d = 0; d < depth; d += kHalf) {
    const Piece piece(depth - d);
    piece.write(grad + d, (piece.read(grad + d) - piece.read(unit + d) * radial) * inverse);
  }
}

inline void weighted_sum(const float* a, double a_weight, const float* b, double b_weight, int64_t depth,
                         float* to) {
  for (int64_t d = 0; d < depth; d += kHalf) {
    const Piece piece(depth - d);
    piece.write(to + d, piece.read(a + d) * a_weight + piece.read(b + d) * b_weight);
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
