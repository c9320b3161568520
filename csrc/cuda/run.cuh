// SPDX-License-Identifier: Apache-2.0
// Launches one pass: picks its tile, and as many stages as the device has shared memory for.
#pragma once

#include "contrast.h"
#include "numbers.cuh"
#include "sweep.cuh"

namespace secl::cuda {

template <Tile kTile>
constexpr int bytes_of(int width) {
  return Layout<kTile>(width).bytes(1);
}

template <class T, Pass kPass, Tile kTile, bool kWeighted = false>
void run_tile(Job job, Stream stream) {
  const Layout<kTile> layout(job.width);
  job.stages = kTile.stages;
  while (job.stages > 1 && layout.bytes(job.stages) > shared_memory_limit()) --job.stages;
  const unsigned outs = job.grad != nullptr ? blocks_for(job.width, kTile.out) : 1;
  const Grid grid{dim3(blocks_for(job.rows.count, kTile.rows()), outs, static_cast<unsigned>(job.splits)),
                  dim3(kTile.threads()), static_cast<size_t>(layout.bytes(job.stages))};
  launch(sweep_kernel<T, Fixed<kTile>, kPass, kWeighted>, grid, stream, job);
}

// Every other tile fits everywhere.
static_assert(bytes_of<pick(64, false)>(64) <= kLeastShared && bytes_of<pick(64, true)>(64) <= kLeastShared);
static_assert(bytes_of<pick(128, true)>(128) <= kLeastShared);
static_assert(bytes_of<pick(kWidest, false)>(kWidest) <= kLeastShared);
static_assert(bytes_of<pick(kWidest, true)>(kWidest) <= kLeastShared);
static_assert(bytes_of<pick_strip(128, true)>(128) <= kLeastShared);

// `tile_of` in contrast.cu is the same choice where the tile need not be known to the compiler.
template <class T, Pass kPass, bool kWeighted>
void run_type(const Job& job, Stream stream) {
  if (job.grad == nullptr) {
    if constexpr (kWeighted && kPass != Pass::kGradient) {
      return run_tile<T, kPass, pick_strip(kWidest, false), true>(job, stream);
    } else if constexpr (kPass != Pass::kGradient) {
      if (job.width <= 64) return run_tile<T, kPass, pick(64, false)>(job, stream);
      const bool fits = bytes_of<pick(256, false)>(job.width) <= shared_memory_limit();
      if (job.width <= 256 && fits) return run_tile<T, kPass, pick(256, false)>(job, stream);
      return run_tile<T, kPass, pick(kWidest, false)>(job, stream);
    }
  }
  if constexpr (kWeighted || kPass == Pass::kSigmoid) {
    if (job.width <= 128) return run_tile<T, kPass, pick_strip(128, true), kWeighted>(job, stream);
    return run_tile<T, kPass, pick_strip(kWidest, true), kWeighted>(job, stream);
  } else {
    if (job.width <= 64) return run_tile<T, kPass, pick(64, true)>(job, stream);
    if (job.width <= 128) return run_tile<T, kPass, pick(128, true)>(job, stream);
    return run_tile<T, kPass, pick(kWidest, true)>(job, stream);
  }
}

template <Pass kPass, bool kWeighted>
void run(Number type, const Job& job, Stream stream) {
  if (type == Number::kHalf) {
    run_type<fp16, kPass, kWeighted>(job, stream);
  } else {
    run_type<bf16, kPass, kWeighted>(job, stream);
  }
}

}  // namespace secl::cuda
