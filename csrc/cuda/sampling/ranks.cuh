// SPDX-License-Identifier: Apache-2.0
// Sums over the threads of a block, and the ranks of what they keep.
#pragma once

#include "pixels.cuh"

namespace secl::cuda::sampling {

constexpr int kWarps = kThreads / kWarp;

// Sums over the threads before this one and over all.
struct Scan {
  uint32_t before, total;
};

// Of one number a warp, the same in each of its lanes; the whole block must call.
__device__ __forceinline__ Scan scan_warps(uint32_t value, uint32_t* sums /* [warps] */) {
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) sums[warp] = value;
  sync_block();
  Scan scan{0, 0};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) scan.before += sums[w];
    scan.total += sums[w];
  }
  sync_block();  // the sums may be written again
  return scan;
}

// Of one number a thread; the whole block must call.
__device__ __forceinline__ Scan scan_block(uint32_t value, uint32_t* sums /* [warps] */) {
  const int lane = threadIdx.x % kWarp;
  uint32_t inclusive = value;
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const uint32_t other = shuffle_up(inclusive, lanes);
    if (lane >= lanes) inclusive += other;
  }
  const Scan scan = scan_warps(shuffle(inclusive, kWarp - 1), sums);
  return {scan.before + inclusive - value, scan.total};
}

// What a pixel is to a selection: one of those below the last key, or one at it, of which the first few are
// taken. Counts of a tile in one number: of those below, and kTie times those at it.
constexpr uint32_t kOutside = 0, kBelow = 1, kTie = 1 << 16;
static_assert(kTile < kTie, "both counts of a tile fit into one word");

// Calls put(kind, counts, pixel) for the pixels of a tile that kind(pixel, label) keeps, with the counts of
// those before it in the order of the source; the counts of the tile. The whole block must call.
template <class Source, class Kind, class Put>
__device__ __forceinline__ uint32_t rank_tile(const Source& source, int start, const Kind& kind,
                                              uint32_t* sums /* [warps] */, const Put& put) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Items items(source, start + warp * kItems * kWarp + lane, kWarp);
  uint32_t kinds[kItems], before[kItems], sum = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    kinds[i] = items.taken[i] ? kind(items.pixel[i], items.label[i]) : kOutside;
  }
  const unsigned lower = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const unsigned below = ballot(kinds[i] == kBelow), tied = ballot(kinds[i] == kTie);
    before[i] = sum + population(below & lower) + kTie * population(tied & lower);
    sum += population(below) + kTie * population(tied);
  }
  const Scan scan = scan_warps(sum, sums);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (kinds[i] != kOutside) put(kinds[i], scan.before + before[i], items.pixel[i]);
  }
  return scan.total;
}

}  // namespace secl::cuda::sampling
