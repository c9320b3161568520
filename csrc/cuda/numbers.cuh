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

inline bool on_boundary(const void* place, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(place) % bytes == 0;
}

template <class T, class Body>
void with_vector(bool aligned, int64_t depth, const Body& body) {
  constexpr int kMost = 16 / sizeof(T);
  if (aligned && depth % kMost == 0) return body(Constant<kMost>());
  return body(Constant<1>());
}

// Neighbouring numbers of a type that is known when the kernel runs; the branch is the same for a whole grid.
template <int width>
__device__ __forceinline__ void load_numbers(const void* from, Number type, int64_t first,
                                             float (&to)[width]) {
  const auto load = [&](auto zero) {
    using T = decltype(zero);
    const auto values = *reinterpret_cast<const Vector<T, width>*>(static_cast<const T*>(from) + first);
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = to_float(values.at[i]);
  };
  if (type == Number::kFloat) {
    load(float());
  } else if (type == Number::kHalf) {
    load(fp16());
  } else {
    load(bf16());
  }
}

template <int width>
__device__ __forceinline__ void store_numbers(void* to, Number type, int64_t first, const float* from) {
  const auto store = [&](auto zero) {
    using T = decltype(zero);
    Vector<T, width> values;
#pragma unroll
    for (int i = 0; i < width; ++i) values.at[i] = from_float<T>(from[i]);
    *reinterpret_cast<Vector<T, width>*>(static_cast<T*>(to) + first) = values;
  };
  if (type == Number::kFloat) {
    store(float());
  } else if (type == Number::kHalf) {
    store(fp16());
  } else {
    store(bf16());
  }
}

inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace secl::cuda
