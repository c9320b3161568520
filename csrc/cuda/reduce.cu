// SPDX-License-Identifier: Apache-2.0
// The reduced loss, and what it makes of each anchor. Every sum has one order, that of the anchors' blocks.
#include "kernels.h"
#include "norm.cuh"

namespace secl::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int64_t kRows = 8192;  // of one block, so that the usual loss is one launch

struct Sums {
  float loss, weight;
};

// The same in every thread; the whole block must call.
__device__ __forceinline__ Sums sum_block(Sums mine) {
  Sums* of_warp = reinterpret_cast<Sums*>(shared_memory());  // [warps]
  mine = {warp_sum(mine.loss), warp_sum(mine.weight)};
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
  sync_block();
  Sums all = {};
  for (int warp = 0; warp < kWarps; ++warp) {
    all.loss += of_warp[warp].loss;
    all.weight += of_warp[warp].weight;
  }
  sync_block();  // the next sums may be written
  return all;
}

__device__ __forceinline__ float positives_of(const Reduce& job, int64_t row) {
  return job.mass != nullptr ? job.mass[row] : static_cast<float>(job.positives[row]);
}

// The weight of an anchor that has a positive.
__device__ __forceinline__ float weight_of(const Reduce& job, int64_t row) {
  if (!(positives_of(job, row) > 0)) return 0.0f;
  return job.weights == nullptr ? 1.0f : job.weights[row];
}

__device__ __forceinline__ Sums sum_rows(const Reduce& job, int64_t block) {
  const int64_t end = min((block + 1) * kRows, job.count);
  Sums sums = {};
  for (int64_t row = block * kRows + threadIdx.x; row < end; row += kThreads) {
    const float weight = weight_of(job, row);
    sums.loss += job.loss[row] * weight;
    sums.weight += weight;
  }
  return sum_block(sums);
}

__global__ void __launch_bounds__(kThreads) partial_kernel(Reduce job) {
  const Sums sums = sum_rows(job, blockIdx.x);
  if (threadIdx.x != 0) return;
  job.partial[2 * blockIdx.x] = sums.loss;
  job.partial[2 * blockIdx.x + 1] = sums.weight;
}

__global__ void __launch_bounds__(kThreads) reduce_kernel(Reduce job) {
  Sums all = {};
  if (job.partial == nullptr) {
    all = sum_rows(job, 0);
  } else {
    for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
      all.loss += job.partial[2 * block];
      all.weight += job.partial[2 * block + 1];
    }
    all = sum_block(all);
  }
  const float total = job.mean && all.weight > 0.0f ? all.weight : 1.0f;
  if (!job.none && blockIdx.x == 0 && threadIdx.x == 0) job.value[0] = all.loss / total;
  const int64_t end = min((int64_t{blockIdx.x} + 1) * kRows, job.count);
#pragma unroll 1  // unrolled by four it spills on sm_90a
  for (int64_t row = blockIdx.x * kRows + threadIdx.x; row < end; row += kThreads) {
    const float weight = weight_of(job, row), factor = weight / total;
    const float positives = positives_of(job, row);
    if (job.none) job.value[row] = job.loss[row] * weight;
    job.factor[row] = factor;
    job.push[row] = job.pull[row] * factor;
    job.draw[row] = positives > 0 ? factor / positives : 0.0f;
  }
}

}  // namespace

int64_t reduce_partials(int64_t count) { return count <= kRows ? 0 : 2 * ((count + kRows - 1) / kRows); }

void launch_reduce(const Reduce& job, Stream stream) {
  const unsigned blocks = static_cast<unsigned>(job.partial == nullptr ? 1 : reduce_partials(job.count) / 2);
  const Grid grid{dim3(blocks), dim3(kThreads), kWarps * sizeof(Sums)};
  if (blocks > 1) launch(partial_kernel, grid, stream, job);
  launch(reduce_kernel, grid, stream, job);
}

}  // namespace secl::cuda
