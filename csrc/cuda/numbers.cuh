// SPDX-License-Identifier: Apache-2.0
// From the number type of a job to the C++ type of its kernel, and how many of them one lane moves at once.
#pragma once

#include "device.cuh"
#include "kernels.h"

namespace secl::cuda {

// Calls body with a zero of the type.
template <class Body>
void with_number(Number type, const Body& body) {
  switch (type) {
    case Number::kHalf:
      return body(fp16());
    case Number::kBfloat16:
      return body(bf16());
    case Number::kFloat:
      return body(float());
  }
}

// Calls body with the number of values, as a constant, that lie together in 16 bytes: 16 / size of T where
// every row of `depth` values starts on such a boundary, else 1.
template <int value>
struct Constant {
  static constexpr int kValue = value;
};

inline bool on_boundary(const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

template <class T, class Body>
void with_vector(bool aligned, int64_t depth, const Body& body) {
  constexpr int kMost = 16 / sizeof(T);
  if (aligned && depth % kMost == 0) return body(Constant<kMost>());
  return body(Constant<1>());
}

inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace secl::cuda
