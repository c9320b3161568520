// SPDX-License-Identifier: Apache-2.0
// What a sigmoid loss makes of a tile of similarities while it lies in registers: each pair judged on its
// own.
#pragma once

#include "epilogue.cuh"

namespace secl::cuda {

// The two numbers that make a logit in base 2 of a similarity.
struct Line {
  float scale2, bias2;

  static __device__ __forceinline__ Line of(const Logit& logit) {
    const float scale = logit.learned_scale == nullptr ? logit.scale : *logit.learned_scale;
    const float bias = logit.learned_bias == nullptr ? logit.bias : *logit.learned_bias;
    return {scale * kLog2E, bias * kLog2E};
  }
};

// The pairs of a sigmoid loss: their losses and slopes, summed; the tile becomes the slopes. In a tile that
// is not masked every pair is a negative one.
template <bool kMasked, int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void judge_pairs(float (&tile)[kTiles][4], Attracted (&sums)[2], const Job& job,
                                            const Line& line, const Strips<kRows, kColumns>& strips,
                                            const Position& position) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Member row = strips.row(position, 8 * r);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& element = tile[n][2 * r + c];
        PairMask<int> pair{0, -1};
        if constexpr (kMasked) {
          const Member column = strips.column(position, 8 * n + c);
          pair = job.rows_are_anchors ? meet(job.rules, row, column) : meet(job.rules, column, row);
        }
        const bool counted = (pair.positive | pair.negative) != 0;
        const float logit2 = element * line.scale2 + line.bias2, gap2 = pair.positive ? -logit2 : logit2;
        const Attraction<float> found = attraction<float>(gap2 * kLn2, exp2_approx(-fabsf(gap2)));
        element = counted ? (pair.positive ? -found.sigmoid : found.sigmoid) : 0.0f;
        sums[r].loss += counted ? found.softplus : 0.0f;
        sums[r].pull += element;
        sums[r].count += counted;
      }
    }
  }
}

// One tile of a sigmoid loss; of rows that are keys each slope is times the weight of its anchor.
template <int kTiles, int kRows, int kColumns>
__device__ __forceinline__ void sigmoid_tile(float (&tile)[kTiles][4], Attracted (&sums)[2], const Job& job,
                                             const Line& line, const Strips<kRows, kColumns>& strips,
                                             const Position& position, bool masked) {
  const bool factors = strips.column_side.field[kFactor] != nullptr;
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
  if (masked) {
    judge_pairs<true>(tile, sums, job, line, strips, position);
  } else {
    judge_pairs<false>(tile, sums, job, line, strips, position);
  }
  if (factors) multiply_columns(tile, strips.columns, kFactor, position.column);
  if (!job.rows_are_anchors) multiply_columns(tile, strips.columns, kUpstream, position.column);
}

}  // namespace secl::cuda
