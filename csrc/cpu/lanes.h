// SPDX-License-Identifier: Apache-2.0
// Products of a vector with single numbers, which NEON takes from the lanes of another one: a load brings
// four.

#pragma once

#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

#ifdef SECL_BY_LANE
constexpr bool kByLane = true;  // an instruction multiplies a vector with one lane of another
#else
constexpr bool kByLane = false;
#endif

// kCount neighbouring numbers in registers, each of which is a lane.
template <int kCount>
class Lanes {
 public:
  SECL_INLINE explicit Lanes(const float* from) {
    // A copy, as load makes it, would pass each lane through an integer register.
    typedef float Place __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
#pragma GCC unroll 16
    for (int i = 0; i < kCount / kLanes; ++i) vector_[i] = reinterpret_cast<const Place*>(from)[i];
  }
  SECL_INLINE float operator[](int i) const { return vector_[i / kLanes][i % kLanes]; }

 private:
  static_assert(kCount % kLanes == 0);
  Float vector_[kCount / kLanes];
};

// kCount numbers, `next` apart: lanes where they are neighbours, else read when asked for.
template <int kCount, int next>
class Numbers {
 public:
  SECL_INLINE explicit Numbers(const float* from) : from_(from) {}
  SECL_INLINE float operator[](int i) const { return from_[i * next]; }

 private:
  const float* from_;
};

template <int kCount>
  requires kByLane
class Numbers<kCount, 1> : public Lanes<kCount> {
  using Lanes<kCount>::Lanes;
};

// sum[c][v] += vector [k][v] * number [c][k], for kLanes numbers k; the arguments say how far it is to the
// next.
template <int kCount, int V>
SECL_INLINE void multiply_lanes(const float* vectors, int64_t next_k, int64_t next_v, const float* numbers,
                                int64_t next_c, Float (&sum)[kCount][V]) {
#pragma GCC unroll 16
  for (int k = 0; k < kLanes; ++k) {
    Float vector[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) vector[v] = load(vectors + k * next_k + v * next_v);
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      const Lanes<kLanes> lanes(numbers + c * next_c);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[c][v] += vector[v] * lanes[k];
    }
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
