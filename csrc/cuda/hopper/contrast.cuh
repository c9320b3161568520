// SPDX-License-Identifier: Apache-2.0
// Hopper's contrast kernel: rows stay in shared memory, columns stream through a ring that one warp fills by
// bulk copies, and two warpgroups multiply. Exponentials of one tile are computed while the tensor cores work
// on another: the same warpgroup's, and the other's.
#pragma once

#include "ring.cuh"
#include "weigh.cuh"
#include "wgmma.cuh"

namespace secl::cuda::hopper {

// Starts scores [64, columns] = rows [64, D] columns [columns, D]^T.
template <class S>
__device__ __forceinline__ void start_scores(float (&score)[S::kScoreTiles][4], uint32_t rows,
                                             uint32_t columns) {
  product_fence();
  multiply_rows<S::kElement, 0>(score, row_operand(rows), row_operand(columns));
#pragma unroll
  for (int step = 1; step < 4; ++step) {
    multiply_rows<S::kElement, 1>(score, row_operand(rows + 32 * step), row_operand(columns + 32 * step));
  }
  // Unrolled, the operands of four boxes and both roles' fields, or the levels, overflow the uniform
  // registers.
  constexpr bool kRolled = S::kBoxes > 2 && S::kKeys && (S::kAnchors || S::kLevelled);
#pragma unroll(kRolled ? 1 : S::kBoxes)
  for (int box = 1; box < S::kBoxes; ++box) {
    if (kRolled) product_fence();
    rows += S::kRows * 128, columns += S::kColumns * 128;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      multiply_rows<S::kElement, 1>(score, row_operand(rows + 32 * step), row_operand(columns + 32 * step));
    }
  }
  product_commit();
}

// Starts output [64, D] += weight [64, columns] columns [columns, D].
template <class S>
__device__ __forceinline__ void start_output(float (&output)[S::kOutputTiles][4],
                                             uint32_t (&weight)[S::kColumns / 16][4], uint32_t columns) {
  product_fence();
#pragma unroll
  for (int step = 0; step < S::kColumns / 16; ++step) {
    multiply_columns<S::kElement>(output, weight[step],
                                  column_operand(columns + step * 2048, S::kColumns * 128));
  }
  product_commit();
}

template <class S>
__device__ __forceinline__ void round_weights(uint32_t (&weight)[S::kColumns / 16][4],
                                              const float (&tile)[S::kScoreTiles][4]) {
#pragma unroll
  for (int i = 0; i < S::kColumns / 4; ++i) {
    using Number = std::conditional_t<S::kElement == Element::kHalf, fp16, bf16>;
    weight[i / 4][i % 4] = pack<Number>(tile[i / 2][i % 2 * 2], tile[i / 2][i % 2 * 2 + 1]);
  }
}

// One consumer warp's position in the block, and what it works on.
template <class S>
struct Consumer {
  const Job& job;
  const Memory<S>& memory;
  Run run;
  int group, warp, lane, first_row;  // warpgroup, warp within it, lane; the block's first row

  __device__ __forceinline__ int strip_row(int strip) const { return (group * S::kStrips + strip) * kStrip; }
  __device__ __forceinline__ uint32_t rows_at(int strip) const {
    return shared_address(memory.rows) + strip_row(strip) * 128;
  }
  __device__ __forceinline__ uint32_t tile_at(int tile) const {
    return shared_address(memory.ring) + tile % S::kStages * S::kTileBytes;
  }
  __device__ __forceinline__ void await(int tile) const {
    barrier_wait(&memory.state->full[tile % S::kStages], tile / S::kStages & 1);
  }
  __device__ __forceinline__ void release(int tile) const {
    sync_warp();
    if (lane == 0) barrier_arrive(&memory.state->empty[tile % S::kStages]);
  }

  // Scores become terms of the denominator or coefficients of the gradient.
  __device__ __forceinline__ void weigh(float (&score)[S::kScoreTiles][4], float (&sum)[2], Level& level,
                                        int tile, int strip) const {
    constexpr int kPolynomial = S::kPlan.polynomial;
    State<S>& state = *memory.state;
    const int stage = tile % S::kStages, row = strip_row(strip) + warp * 16;
    const Extent rows{first_row + row, 16}, columns{run.first + tile * S::kColumns, S::kColumns};
    const Strips<S::kRows, S::kColumns> strips{job.rows, job.columns, state.rows, state.columns[stage]};
    const Position position = Position::of_lane(lane, row, first_row, columns.first);
    const Span &row_span = state.row_span[row / 16], &column_span = state.column_span[stage];
    const bool masked = needs_masks<S::kPurpose>(job, row_span, rows, column_span, columns);
    if constexpr (S::kGradient) {
      float lift = 1;
      if constexpr (S::kLevelled) {
        lift = raise(level, (S::kAnchors ? row_span.top : 0) + (S::kKeys ? column_span.top : 0));
      }
      if (masked) {
        masked_coefficients<S::kAnchors, S::kKeys>(score, job.rules, strips, position, lift);
      } else {
        plain_coefficients<kPolynomial, S::kAnchors, S::kKeys>(score, job.rules.scale2, strips, position,
                                                               lift);
      }
    } else if constexpr (S::kLevelled) {
      level_terms(score, sum, level, job.rules, strips, position, masked);
    } else {
      const bool factors = job.columns.field[kFactor] != nullptr;
      if (factors) secl::cuda::multiply_columns(score, strips.columns, kFactor, position.column);
      if (masked) {
        masked_terms(score, sum, job.rules, strips, position);
      } else {
        plain_terms<kPolynomial>(score, sum, job.rules.scale2);
      }
      if (factors && S::kValue) secl::cuda::multiply_columns(score, strips.columns, kFactor, position.column);
    }
  }

  // Products of the consumers take turns, so that one multiplies while the other computes exponentials.
  __device__ __forceinline__ void take_turn() const { sync_some(1 + group, kConsumers * kWarpgroup); }
  __device__ __forceinline__ void pass_turn() const { arrive_some(2 - group, kConsumers * kWarpgroup); }
};

// Without a value product: scores of `now` are summed while those of `then` are multiplied.
template <class S>
__device__ __forceinline__ void scan_step(const Consumer<S>& consumer, float (&now)[S::kScoreTiles][4],
                                          float (&then)[S::kScoreTiles][4], float (&sum)[2], int tile,
                                          int strip, int next_tile, int next_strip) {
  start_scores<S>(then, consumer.rows_at(next_strip), consumer.tile_at(next_tile));
  Level unused;
  consumer.weigh(now, sum, unused, tile, strip);
  product_wait<0>();
  pin(then);
}

// The scores are weighed while the tensor cores are at the value product of the step before; then they get
// the scores of the next step and the value product of this one.
template <class S>
__device__ __forceinline__ void value_step(const Consumer<S>& consumer, float (&score)[S::kScoreTiles][4],
                                           uint32_t (&weight)[S::kColumns / 16][4],
                                           float (&output)[S::kOutputTiles][4], float (&sum)[2], Level& level,
                                           int tile, int strip, int next_tile, int next_strip, bool last) {
  consumer.weigh(score, sum, level, tile, strip);
  product_wait<0>();
  if (S::kLevelled && ballot(level.rose()) != 0) {
#pragma unroll
    for (int n = 0; n < S::kOutputTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[n][e] *= level.shrink[e / 2];
    }
  }
  if (strip == 0 && tile > 0) consumer.release(tile - 1);
  round_weights<S>(weight, score);
  consumer.take_turn();
  start_scores<S>(score, consumer.rows_at(next_strip), consumer.tile_at(next_tile));
  start_output<S>(output, weight, consumer.tile_at(tile));
  if (!last) consumer.pass_turn();
  product_wait<1>();
  pin(score);
}

template <class S>
__device__ __forceinline__ void finish_strip(const Consumer<S>& consumer, float (&output)[S::kOutputTiles][4],
                                             const float (&sum)[2], const Level& level, bool seen, int strip,
                                             int split) {
  const Job& job = consumer.job;
  const bool writes = consumer.lane % 4 == 0, parted = job.splits > 1;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int local = consumer.strip_row(strip) + consumer.warp * 16 + consumer.lane / 4 + 8 * r;
    const int64_t row = int64_t{consumer.first_row} + local, part = split * int64_t{job.rows.count} + row;
    const bool live = seen && consumer.memory.state->rows.integer(kLabel, local) >= 0;
    const float total = quad_sum(sum[r]);
    if (row >= job.rows.count) continue;
    const float peak = S::kLevelled ? level.at[r] : 0.0f;
    Blend blend{live ? 1.0f : 0.0f, 0};
    if (S::kGradient && S::kLevelled && live) blend.fresh = peak / kCoefficients;
    if constexpr (!S::kGradient) {
      if (!parted) {
        blend = settle_denominator(job, row, {peak, total}, live, writes);
      } else if (writes) {
        *reinterpret_cast<Numbers*>(job.part_numbers + 3 * part) = Numbers{peak, live ? total : 0.0f, 0};
      }
    }
    if constexpr (S::kValue) {
      float* target =
          (parted ? job.part_grad + part * S::kWidth : job.grad + row * S::kWidth) + consumer.lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < S::kOutputTiles; ++n) {
        *reinterpret_cast<Vector<float, 2>*>(target + 8 * n) = {
            {settled(blend, output[n][2 * r], nullptr), settled(blend, output[n][2 * r + 1], nullptr)}};
      }
    }
  }
}

// All products of a consumer; past the last tile its scores are computed once more, and dropped: no branch
// parts a product from its wait.
template <class S>
__device__ __forceinline__ void scan(const Consumer<S>& consumer, float (&sum)[S::kStrips][2]) {
  static_assert(S::kStrips == 2);
  float score[2][S::kScoreTiles][4];
  const int tiles = consumer.run.tiles;
  start_scores<S>(score[0], consumer.rows_at(0), consumer.tile_at(0));
  product_wait<0>();
  pin(score[0]);
  for (int tile = 0; tile < tiles; ++tile) {
    const int next = min(tile + 1, tiles - 1);
    scan_step(consumer, score[0], score[1], sum[0], tile, 0, tile, 1);
    consumer.await(next);
    scan_step(consumer, score[1], score[0], sum[1], tile, 1, next, 0);
    consumer.release(tile);
  }
}

template <class S>
__device__ __forceinline__ void accumulate(const Consumer<S>& consumer, float (&sum)[S::kStrips][2],
                                           float (&output)[S::kStrips][S::kOutputTiles][4],
                                           Level (&level)[S::kStrips], bool& seen) {
  float score[S::kScoreTiles][4];
  uint32_t weight[S::kColumns / 16][4];
  const int tiles = consumer.run.tiles;
  if (consumer.group == 1) consumer.pass_turn();
  start_scores<S>(score, consumer.rows_at(0), consumer.tile_at(0));
  product_wait<0>();
  pin(score);
  for (int tile = 0; tile < tiles; ++tile) {
    const int next = min(tile + 1, tiles - 1);
    const bool last = consumer.group == 1 && tile + 1 == tiles;  // nobody waits for that turn
    if constexpr (S::kPurpose == Purpose::kBoth) {
      seen = seen || consumer.memory.state->column_span[tile % S::kStages].counted > 0;
    }
    if constexpr (S::kStrips == 2) {
      value_step(consumer, score, weight, output[0], sum[0], level[0], tile, 0, tile, 1, false);
    }
    consumer.await(next);
    constexpr int kLast = S::kStrips - 1;
    value_step(consumer, score, weight, output[kLast], sum[kLast], level[kLast], tile, kLast, next, 0, last);
  }
  product_wait<0>();
#pragma unroll
  for (int strip = 0; strip < S::kStrips; ++strip) pin(output[strip]);
}

template <class S>
__device__ __forceinline__ void consume(const Consumer<S>& consumer, int split) {
  float output[S::kStrips][S::kOutputTiles][4] = {};
  float sum[S::kStrips][2] = {};
  Level level[S::kStrips];
#pragma unroll
  for (Level& each : level) each.at[0] = each.at[1] = S::kGradient ? 0.0f : -kLargest;
  // Without an anchor that counts the gradient of both roles is 0, also where a row is NaN.
  bool seen = S::kPurpose != Purpose::kBoth;
  barrier_wait(&consumer.memory.state->rows_ready, 0);
  if (consumer.run.tiles > 0) {
    consumer.await(0);
    if constexpr (S::kValue) {
      accumulate(consumer, sum, output, level, seen);
    } else {
      scan(consumer, sum);
    }
  }
#pragma unroll
  for (int strip = 0; strip < S::kStrips; ++strip)
    finish_strip(consumer, output[strip], sum[strip], level[strip], seen, strip, split);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    contrast_kernel(const __grid_constant__ TensorMap rows_map, const __grid_constant__ TensorMap columns_map,
                    const __grid_constant__ Job job) {
  const Memory<S> memory(shared_memory());
  State<S>& state = *memory.state;
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int warp = shuffle(thread / kWarp, 0);  // so that the compiler knows it uniform over the warp
  const int first_row = blockIdx.x * S::kRows;
  const Run run = run_of<S>(job, blockIdx.y);
  if (thread == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barrier_init(&state.full[stage], 1);
      barrier_init(&state.empty[stage], kConsumers * kWarpgroup / kWarp + 1);  // and the clearing warp
      barrier_init(&state.landed[stage], 1);
    }
    barrier_init(&state.rows_ready, 1);
    barrier_init_fence();
  }
  load_strip(state.rows, job.rows, first_row, job.rows.count, thread, kThreads);
  sync_block();
  for (int share = warp; share < S::kRows / 16; share += kThreads / kWarp) {
    const Span span = span_of(job.rows, state.rows, 16 * share, 16, lane);
    if (lane == 0) state.row_span[share] = span;
  }
  sync_block();
  const int group = warp / 4;
  if (group == 0) {
    give_registers<kProducerRegisters>();
    if (warp == 0)
      produce<S>(&rows_map, &columns_map, job, memory, run, first_row, lane);
    else if (warp == 1)
      clear<S>(memory, run, lane);
  } else {
    take_registers<kConsumerRegisters>();
    const Consumer<S> consumer{job, memory, run, group - 1, warp % 4, lane, first_row};
    consume(consumer, blockIdx.y);
  }
}

}  // namespace secl::cuda::hopper
