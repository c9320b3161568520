// SPDX-License-Identifier: Apache-2.0
// What surrounds the passes of the contrast: the anchors' fields before a gradient, and the sum of the parts
// where several blocks shared the columns of a row.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "contrast.h"
#include "hopper/contrast.h"
#include "numbers.cuh"
#include "settle.cuh"

namespace secl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;  // of a block that gives each a warp
constexpr int kLeastTiles = 4;           // of a run: below it the merge costs more than the run saves

__global__ void __launch_bounds__(kThreads)
    anchor_fields_kernel(const __grid_constant__ AnchorFields anchors) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= anchors.count) return;
  if (anchors.exclude != nullptr) {
    const int64_t exclude = anchors.exclude[row];
    anchors.field[kExclude][row] = exclude < 0 || exclude > INT_MAX ? ~0u : static_cast<uint32_t>(exclude);
  }
  if (anchors.push == nullptr) return;
  const float push = anchors.push[row], draw = anchors.draw[row];
  const bool counted = push != 0 || draw != 0;
  const float factor = counted ? anchors.scale * anchors.grad_loss[row * anchors.grad_loss_stride] : 0.0f;
  const float lse2 = counted ? anchors.lse[row] * kLog2E : 1.0f * kLargest;
  const float pushed = counted ? factor * push : 0.0f, drawn = counted ? factor * draw : 0.0f;
  const float weight = pushed == 0 ? 0.0f : pushed * exp2_approx(-lse2);
  anchors.field[kLse][row] = std::bit_cast<uint32_t>(lse2);
  anchors.field[kPush][row] = std::bit_cast<uint32_t>(pushed);
  anchors.field[kDraw][row] = std::bit_cast<uint32_t>(drawn);
  anchors.field[kWeight][row] = std::bit_cast<uint32_t>(weight);
  if (anchors.field[kLabel] != nullptr)
    anchors.field[kLabel][row] = counted ? static_cast<uint32_t>(anchors.label[row]) : ~0u;
}

__device__ __forceinline__ Numbers part_of(const Job& job, int split, int64_t row) {
  return reinterpret_cast<const Numbers*>(job.part_numbers)[split * int64_t{job.rows.count} + row];
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ Job job) {
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp;
  if (row >= job.rows.count) return;
  const int lane = threadIdx.x % kWarp;
  const bool live = static_cast<int>(job.rows.field[kLabel][row]) >= 0;
  const auto exp2 = [](float x) { return exp2_approx(x); };
  Running<float> running{-kLargest, 0};
  Attracted attracted{0, 0, 0};
  for (int split = 0; kPass != Pass::kGradient && split < job.splits; ++split) {
    const Numbers part = part_of(job, split, row);
    if (kPass == Pass::kDenominator) {
      running = merge(running, Running<float>{part.first, part.second}, exp2);
    } else {
      attracted.add(part.attracted(), job.rules.weighted);
    }
  }
  Blend blend{live ? 1.0f : 0.0f, 0};
  if (kPass == Pass::kDenominator) blend = settle_denominator(job, row, running, live, lane == 0);
  if (kPass == Pass::kPositive) blend = settle_positive(job, row, attracted, lane == 0);
  if (kPass == Pass::kSigmoid) blend = settle_sigmoid(job, row, attracted, live, lane == 0);
  for (int column = lane; job.grad != nullptr && column < job.width; column += kWarp) {
    float sum = 0;
    for (int split = 0; split < job.splits; ++split) {
      const float part = job.part_grad[(split * int64_t{job.rows.count} + row) * job.width + column];
      sum += kPass == Pass::kDenominator ? part * exp2(part_of(job, split, row).first - running.peak) : part;
    }
    float* grad = job.grad + row * job.width + column;
    *grad = settled(blend, sum, grad);
  }
}

}  // namespace

template <Pass kPass, bool kWeighted>
void run(Number type, const Job& job, Stream stream);
extern template void run<Pass::kDenominator, false>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kPositive, false>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kGradient, false>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kSigmoid, false>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kDenominator, true>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kPositive, true>(Number type, const Job& job, Stream stream);
extern template void run<Pass::kGradient, true>(Number type, const Job& job, Stream stream);

template <Pass kPass>
void merge_parts(const Job& job, Stream stream) {
  launch(merge_kernel<kPass>, Grid{dim3(blocks_for(job.rows.count, kRows)), dim3(kThreads)}, stream, job);
}

// Hopper's kernels have not run on a device yet, so that only who asks for them gets them: where they serve a
// job.
bool is_for_hopper(Pass pass, Number type, const Job& job) {
  const char* path = std::getenv("SECL_CUDA_PATH");
  const std::string_view asked = path == nullptr ? "" : path;
  if (asked.empty() || asked == "portable") return false;
  if (asked == "hopper") return hopper::objection(pass, type, job) == nullptr;
  throw std::runtime_error("SECL_CUDA_PATH must be portable or hopper; got " + std::string(asked) +
                           ": set one of them, or unset it");
}

Tile tile_of(Pass pass, const Job& job) {
  const bool value = job.grad != nullptr, strip = job.rules.weighted || (pass == Pass::kSigmoid && value);
  return strip ? pick_strip(job.width, value) : pick(job.width, value);
}

int32_t splits_of(Pass pass, Number type, const Job& job) {
  if (is_for_hopper(pass, type, job)) return hopper::splits_of(pass, job);
  const Tile tile = tile_of(pass, job);
  const int64_t blocks =
      int64_t{blocks_for(job.rows.count, tile.rows())} * (tile.out > 0 ? blocks_for(job.width, tile.out) : 1);
  const int64_t wanted =
      2 * multiprocessors() / std::max<int64_t>(blocks, 1);  // two blocks of a tile share a multiprocessor
  const int64_t most = blocks_for(job.columns.count, kLeastTiles * tile.columns);
  return static_cast<int32_t>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

// Of a sigmoid loss keys count once.
template <Pass kPass>
void run_portable(Number type, const Job& job, Stream stream) {
  if constexpr (kPass != Pass::kSigmoid) {
    if (job.rules.weighted) return run<kPass, true>(type, job, stream);
  }
  run<kPass, false>(type, job, stream);
}

template <Pass kPass>
void run_and_merge(Number type, const Job& job, Stream stream) {
  if (is_for_hopper(kPass, type, job)) {
    hopper::run(kPass, type, job, stream);
  } else {
    run_portable<kPass>(type, job, stream);
  }
  if (job.splits > 1) merge_parts<kPass>(job, stream);
}

void run_pass(Pass pass, Number type, const Job& job, Stream stream) {
  switch (pass) {
    case Pass::kDenominator:
      return run_and_merge<Pass::kDenominator>(type, job, stream);
    case Pass::kPositive:
      return run_and_merge<Pass::kPositive>(type, job, stream);
    case Pass::kGradient:
      return run_and_merge<Pass::kGradient>(type, job, stream);
    case Pass::kSigmoid:
      return run_and_merge<Pass::kSigmoid>(type, job, stream);
  }
}

void write_anchor_fields(const AnchorFields& anchors, Stream stream) {
  launch(anchor_fields_kernel, Grid{dim3(blocks_for(anchors.count, kThreads)), dim3(kThreads)}, stream,
         anchors);
}

}  // namespace secl::cuda
