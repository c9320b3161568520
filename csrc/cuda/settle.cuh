// SPDX-License-Identifier: Apache-2.0
// From the sums of one row to its outputs: the end of a pass, whether one block had all of the columns or
// several shared them.
#pragma once

#include "epilogue.cuh"
#include "walk.cuh"

namespace secl::cuda {

// The sums of a row: peak and sum of the denominator; loss, pull and count (its bits) of what it met.
struct Numbers {
  float first = 0, second = 0, third = 0;

  __device__ __forceinline__ Attracted attracted() const {
    return {first, second, std::bit_cast<int>(third)};
  }
};

// What the value product and the gradient of an earlier pass are multiplied by.
struct Blend {
  float fresh = 0, old = 0;
};

__device__ __forceinline__ Blend settle_denominator(const Job& job, int64_t row,
                                                    const Running<float>& running, bool live, bool writes) {
  const bool some = live && running.sum != 0;
  if (writes) job.lse[row] = some ? (running.peak + log2f(running.sum)) * kLn2 : -HUGE_VALF;
  return {some ? job.mean_scale / running.sum : 0, 0};
}

__device__ __forceinline__ Blend settle_positive(const Job& job, int64_t row, const Attracted& sums,
                                                 bool writes) {
  const float total = job.rules.weighted ? sums.mass() : static_cast<float>(sums.count);
  const float share = total > 0 ? 1.0f / total : 0.0f;
  if (writes) {
    job.loss[row] = sums.loss * share;
    job.pull[row] = sums.pull * share;
    if (job.rules.weighted) {
      job.mass[row] = total;
    } else {
      job.count[row] = sums.count;
    }
  }
  if (share == 0) return {};
  return {-job.rules.scale * share, job.known ? 0 : job.rules.scale * sums.pull * share};
}

// A row that meets nothing has no loss, whatever its tiles without masks have summed.
__device__ __forceinline__ Blend settle_sigmoid(const Job& job, int64_t row, const Attracted& sums, bool live,
                                                bool writes) {
  const bool meets = live && sums.count != 0;
  if (writes && job.loss != nullptr) {
    job.loss[row] = meets ? sums.loss : 0.0f;
    job.pull[row] = meets ? sums.pull : 0.0f;
    job.count[row] = meets ? sums.count : 0;
  }
  return {meets ? 1.0f : 0.0f, 0};
}

// One number of the gradient; where its factor is 0 a sum, or an old number, may be a NaN or never written.
__device__ __forceinline__ float settled(const Blend& blend, float sum, const float* old) {
  float found = blend.fresh == 0 ? 0 : blend.fresh * sum;
  if (blend.old != 0) found += blend.old * *old;
  return found;
}

}  // namespace secl::cuda
