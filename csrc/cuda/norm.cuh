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

// 1 / |x| of the row of which each lane can read its share as often as it likes: read(body) calls body with
// every number of the lane. 0 for a zero row; the inverse of a subnormal norm, no fp32 number, becomes the
// largest.
template <class Read>
__device__ __forceinline__ float inverse_norm(const Read& read) {
  float top = 0.0f;
  read([&](float x) { top = fmaxf(top, fabsf(x)); });
  top = warp_max(top);
  // Of the row over its largest number no square overflows or vanishes; an infinite one would make NaN of it.
  const float unit = top > 0.0f && top <= kLargest ? top : 1.0f;
  float square = 0.0f;
  read([&](float x) { square += (x / unit) * (x / unit); });
  square = warp_sum(square);
  if (square == 0.0f) return 0.0f;
  const float inverse = 1.0f / (sqrtf(square) * unit);
  return inverse > kLargest ? kLargest : inverse;
}

// What the gradient of a unit row loses along the row: <u, g>, and whether any of g is not 0.
struct Radial {
  float part;
  bool live;
};

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
