// SPDX-License-Identifier: Apache-2.0
// The keys by which pixels are drawn, smallest first, and their levels.
#pragma once

#include "../device.cuh"
#include "plan.h"

namespace secl::cuda::sampling {

__device__ __forceinline__ uint64_t seed_of(const Sample& job) {
  return static_cast<uint64_t>(*job.seed ^ job.stream);
}

class ChanceKey {
 public:
  __device__ ChanceKey(const Sample& job, int64_t image)
      : mixed_seed_(mix(seed_of(job))), first_pixel_(static_cast<uint64_t>(image * job.pixels())) {}
  __device__ uint64_t operator()(int32_t pixel) const { return chance(mixed_seed_, first_pixel_ + pixel); }

 private:
  uint64_t mixed_seed_, first_pixel_;
};

// A key in the order of the scores, NaN last.
class ScoreKey {
 public:
  __device__ ScoreKey(const Sample& job, int64_t image)
      : scores_(job.scores == nullptr ? nullptr : job.scores + image * job.pixels()) {}
  __device__ uint32_t operator()(int32_t pixel) const {
    const float score = scores_[pixel] + 0.0f;  // -0 becomes 0
    if (score != score) return 0xFFFFFFFFu;
    const uint32_t bits = float_bits(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }

 private:
  const float* scores_;
};

// Leading zeros: each level halves the chance of the one before it; the last holds all that have more.
__device__ __forceinline__ int chance_level(uint64_t key, int levels) {
  return min(leading_zeros(static_cast<uint32_t>(key >> (kRandomBits - 32))), levels - 1);
}

__device__ __forceinline__ int score_level(uint32_t key, uint32_t aim) {
  return key < aim ? kBelowAim : key == aim ? kAtAim : kAll;
}

}  // namespace secl::cuda::sampling
