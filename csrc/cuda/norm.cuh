// SPDX-License-Identifier: Apache-2.0
// The norm of one row by one warp, and the gradient through it: what rows and gathered pixels have in common.
#pragma once

#include "../contrast_math.h"
#include "device.cuh"

namespace secl::cuda {

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = fmaxf(value, shuffle_xor(value, lanes));
  return value;
}

// 1 / |x|, as a power of two that brings the row near 1 and the rest: their product may be no fp32 number,
// each is.
struct Norm {
  float scale, factor;
  // A zero row gives 0, the inverse of a subnormal norm becomes the largest number.
  __device__ float inverse() const {
    const float product = scale * factor;
    return product > kLargest ? kLargest : product;
  }
  __device__ float unit(float x) const { return x * scale * factor; }
};

// Of a row of which each lane can read its share as often as it likes: read(body) calls body with every
// number of the lane.
template <class Read>
__device__ __forceinline__ Norm norm_of(const Read& read) {
  float top = 0.0f;
  read([&](float x) { top = fmaxf(top, fabsf(x)); });
  const int exponent = static_cast<int>(float_bits(warp_max(top)) >> 23);
  const float scale = float_from_bits(static_cast<uint32_t>(max(1, min(253, 253 - exponent))) << 23);
  float square = 0.0f;
  read([&](float x) { square += (x * scale) * (x * scale); });
  square = warp_sum(square);
  return {scale, square == 0.0f ? 0.0f : 1.0f / sqrtf(square)};
}

// What the gradient of a unit row loses along the row: <u, g>, and whether any of g is not 0.
struct Radial {
  float part;
  bool live;
};

// A zero stays zero, whatever it is multiplied with.
__device__ __forceinline__ float scaled(float grad, float scale) {
  return grad == 0.0f ? 0.0f : grad * scale;
}

// read(body) calls body with each of the lane's numbers of the gradient and the unit row.
template <class Read>
__device__ __forceinline__ Radial radial(const Read& read) {
  float part = 0.0f;
  bool live = false;
  read([&](float grad, float unit) {
    part += unit * grad;
    live |= grad != 0.0f;
  });
  return {warp_sum(part), ballot(live) != 0};
}

__device__ __forceinline__ float through_norm(float grad, float unit, Radial radial, float inverse) {
  return radial.live ? (grad - unit * radial.part) * inverse : 0.0f;
}

}  // namespace secl::cuda
