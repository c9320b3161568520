// SPDX-License-Identifier: Apache-2.0
// What a block of Hopper's contrast kernel has in shared memory, the warp that fills it by bulk copies, and
// the one that clears what does not count.
#pragma once

#include "../settle.cuh"
#include "plan.h"
#include "spans.cuh"
#include "tma.cuh"

namespace secl::cuda::hopper {

template <Element kElementOf, int kWidthOf, Purpose kPurposeOf>
struct Shape {
  static constexpr Element kElement = kElementOf;
  static constexpr Purpose kPurpose = kPurposeOf;
  static constexpr Plan kPlan = plan(kWidthOf, kPurposeOf);
  static constexpr int kWidth = kWidthOf, kStrips = kPlan.strips, kRows = kPlan.rows(),
                       kColumns = kPlan.columns;
  static constexpr int kStages = kPlan.stages;
  static constexpr int kBoxes = kWidth / kBoxColumns;
  static constexpr int kRowBytes = kRows * kWidth * 2, kTileBytes = kColumns * kWidth * 2;
  static constexpr bool kValue = kPurpose != Purpose::kScan, kGradient = is_gradient(kPurpose);
  static constexpr bool kLevelled = kValue && kElement == Element::kHalf;
  static constexpr bool kAnchors = kPurpose != Purpose::kKeys;  // what the rows are
  static constexpr bool kKeys = kPurpose == Purpose::kKeys || kPurpose == Purpose::kBoth;
  static constexpr int kScoreTiles = kColumns / 8, kOutputTiles = kValue ? kWidth / 8 : 1;
};

// What lies behind the matrices in shared memory.
template <class S>
struct State {
  Strip<S::kRows> rows;
  Strip<S::kColumns> columns[S::kStages];
  Span row_span[S::kRows / 16];  // of each warp's share of a product
  Span column_span[S::kStages];
  uint64_t full[S::kStages], empty[S::kStages], landed[S::kStages], rows_ready;
};

template <class S>
struct Memory {
  unsigned char* rows;  // [boxes, kRows, 128 bytes], swizzled
  unsigned char* ring;  // [stages, boxes, kColumns, 128 bytes], swizzled
  State<S>* state;

  __device__ __forceinline__ explicit Memory(unsigned char* base)
      : rows(base),
        ring(base + S::kRowBytes),
        state(reinterpret_cast<State<S>*>(base + S::kRowBytes + S::kStages * S::kTileBytes)) {}
  __device__ __forceinline__ unsigned char* tile(int stage) const { return ring + stage * S::kTileBytes; }
  static constexpr size_t size() { return S::kRowBytes + S::kStages * S::kTileBytes + sizeof(State<S>); }
};

// The columns of one block: tiles from `first` on; columns from `stop` on do not count.
struct Run {
  int first, stop, tiles;
};

template <class S>
__device__ __forceinline__ Run run_of(const Job& job, int split) {
  int stop = job.columns.count;
  if (!S::kGradient && job.rules.negatives_only) stop = min(stop, job.rules.negative_stop);
  const int tiles = (stop + S::kColumns - 1) / S::kColumns;
  const int share = (tiles + job.splits - 1) / job.splits;
  const int first = min(split * share, tiles), last = min(first + share, tiles);
  return {first * S::kColumns, min(stop, last * S::kColumns), last - first};
}

// Fields of the side's rows from `first` on; from `stop` on they are ignored. A barrier must follow.
template <int kSize>
__device__ __forceinline__ void load_strip(Strip<kSize>& strip, const Side& side, int first, int stop,
                                           int thread, int threads) {
#pragma unroll 1
  for (int field = 0; field < kFields; ++field) {
    const uint32_t* from = side.field[field];
    if (from == nullptr) continue;
#pragma unroll 1
    for (int i = thread; i < kSize; i += threads) {
      if (first + i < stop) {
        copy_async_word(&strip.word[field][i], from + first + i);
      } else {
        strip.word[field][i] = field == kLabel ? ~0u : 0u;
      }
    }
  }
  commit_copies();
  wait_copies<0>();
}

// Starts the copies of one tile.
template <class S, int kTileRows>
__device__ __forceinline__ void copy_tile(const TensorMap* map, uint64_t* barrier, unsigned char* target,
                                          int first) {
  barrier_arrive_expect(barrier, kTileRows * S::kWidth * 2);
  for (int box = 0; box < S::kBoxes; ++box) {
    copy_box(map, barrier, target + box * kTileRows * 128, box * kBoxColumns, first);
  }
}

// An ignored column weighs 0, but may hold NaN: one warp overwrites those of a tile that has arrived.
template <class S>
__device__ __forceinline__ void clear_ignored(unsigned char* tile, const Strip<S::kColumns>& strip,
                                              int lane) {
#pragma unroll 1
  for (int first = 0; first < S::kColumns; first += kWarp) {
    const int own = first + lane;
    unsigned ignored = ballot(own < S::kColumns && strip.integer(kLabel, own) < 0);
#pragma unroll 1
    for (; ignored != 0; ignored &= ignored - 1) {
      const int column = first + std::countr_zero(ignored);
#pragma unroll 1
      for (int word = lane; word < S::kWidth / 2; word += kWarp) {  // a swizzle stays within 128 bytes
        const int box = word / 32;
        *reinterpret_cast<uint32_t*>(tile + (box * S::kColumns + column) * 128 + word % 32 * 4) = 0;
      }
    }
  }
  fence_async_shared();
}

// One warp: copies of every tile into the ring, and beside them what is known of its columns. It waits for
// room alone: a tile with ignored columns lands at the warp that clears them.
template <class S>
__device__ __forceinline__ void produce(const TensorMap* rows_map, const TensorMap* columns_map,
                                        const Job& job, const Memory<S>& memory, Run run, int first_row,
                                        int lane) {
  State<S>& state = *memory.state;
  if (lane == 0) copy_tile<S, S::kRows>(rows_map, &state.rows_ready, memory.rows, first_row);
  for (int tile = 0; tile < run.tiles; ++tile) {
    const int stage = tile % S::kStages, first = run.first + tile * S::kColumns;
    Strip<S::kColumns>& strip = state.columns[stage];
    barrier_wait(&state.empty[stage], (tile / S::kStages & 1) ^ 1);
    load_strip(strip, job.columns, first, run.stop, lane, kWarp);
    sync_warp();
    const Span span = span_of(job.columns, strip, 0, S::kColumns, lane);
    if (lane == 0) state.column_span[stage] = span;
    sync_warp();
    if (lane == 0) {
      const bool whole = span.ignored == 0;
      copy_tile<S, S::kColumns>(columns_map, whole ? &state.full[stage] : &state.landed[stage],
                                memory.tile(stage), first);
      if (whole) barrier_arrive(&state.landed[stage]);
    }
  }
}

// Another warp: clears the ignored columns of each tile that has any, and hands it on.
template <class S>
__device__ __forceinline__ void clear(const Memory<S>& memory, Run run, int lane) {
  State<S>& state = *memory.state;
  for (int tile = 0; tile < run.tiles; ++tile) {
    const int stage = tile % S::kStages;
    barrier_wait(&state.landed[stage], tile / S::kStages & 1);
    if (state.column_span[stage].ignored != 0) {
      clear_ignored<S>(memory.tile(stage), state.columns[stage], lane);
      sync_warp();
      if (lane == 0) barrier_arrive(&state.full[stage]);
    }
    sync_warp();
    if (lane == 0) barrier_arrive(&state.empty[stage]);
  }
}

}  // namespace secl::cuda::hopper
