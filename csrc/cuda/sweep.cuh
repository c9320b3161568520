// SPDX-License-Identifier: Apache-2.0
// The contrast kernel: a block's rows stay in shared memory, the columns stream past through a ring of tiles,
// and every output row is written once, by the warp that owns it.
#pragma once

#include "judge.cuh"
#include "products.cuh"
#include "settle.cuh"

namespace secl::cuda {

template <Tile kTile>
struct Layout {
  using Walker = Walk<kTile.columns, kTile.threads()>;
  struct Stage {
    Strip<kTile.columns> strip;
    int first;  // column, or -1: no tile is left
    bool masked;
  };
  struct Books {
    Strip<kTile.rows()> rows;
    RowClasses classes;
    typename Walker::Shared walk;
    Stage stage[1];  // as many as there are
  };

  int row_bytes, tile_bytes;
  __host__ __device__ constexpr explicit Layout(int width)
      : row_bytes(chunks_of(width) * kTile.rows() * kRowBytes),
        tile_bytes(chunks_of(width) * kTile.columns * kRowBytes) {}
  __host__ __device__ constexpr int bytes(int stages) const {
    return row_bytes + stages * (tile_bytes + static_cast<int>(sizeof(Stage))) +
           static_cast<int>(sizeof(Books) - sizeof(Stage));
  }
  __device__ __forceinline__ unsigned char* rows() const { return shared_memory(); }
  __device__ __forceinline__ unsigned char* tile(int stage) const {
    return rows() + row_bytes + stage * tile_bytes;
  }
  __device__ __forceinline__ Books& books(int stages) const {
    return *reinterpret_cast<Books*>(tile(stages));
  }
};

// Fields of `count` rows from `first` on; those past the end are ignored.
template <int kSize, int kThreads>
__device__ __forceinline__ void load_strip(Strip<kSize>& strip, const Side& side, int64_t first) {
  for (int i = threadIdx.x; i < kSize * kFields; i += kThreads) {
    const int field = i / kSize, at = i % kSize;
    const uint32_t* from = side.field[field];
    if (from != nullptr && first + at < side.count) {
      copy_async_word(&strip.word[field][at], from + first + at);
    } else {
      strip.word[field][at] = field == kLabel ? ~0u : 0u;
    }
  }
}

template <Tile kTile, Pass kPass, bool kWeighted>
struct Sums {
  static constexpr int kOutTiles = kTile.out > 0 ? kTile.out / 8 : 2;
  Running<float> running[kTile.strips][2];
  Attracted attracted[kTile.strips][2];
  Remainder remainder[kTile.strips][2];
  float out[kTile.strips][kOutTiles][4];
  Line line;

  __device__ __forceinline__ void clear(const Job& job) {
    if constexpr (kPass == Pass::kSigmoid) line = Line::of(job.logit);
#pragma unroll
    for (int m = 0; m < kTile.strips; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        running[m][r] = {job.rules.bounded ? 0.0f : -kLargest, 0};
        attracted[m][r] = {0, 0, 0};
        remainder[m][r] = {};
      }
#pragma unroll
      for (int d = 0; d < kOutTiles; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[m][d][e] = 0;
      }
    }
  }

  __device__ __forceinline__ void collect(int m, const Attracted (&tile)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) remainder[m][r].add(attracted[m][r], tile[r], kWeighted);
  }

  // Turns a tile of similarities into weights, and adds what the pass sums.
  template <int kRows, int kColumns>
  __device__ __forceinline__ void add(float (&tile)[kTile.strips][kTile.columns / 8][4], const Job& job,
                                      const Strips<kRows, kColumns>& strips, Position position, bool masked) {
#pragma unroll
    for (int m = 0; m < kTile.strips; ++m, position.row += 16) {
      if constexpr (kPass == Pass::kGradient) {
        gradient_tile<kWeighted>(tile[m], job, strips, position, masked);
      } else if constexpr (kPass == Pass::kPositive) {
        Attracted fresh[2] = {};
        positive_tile<kWeighted>(tile[m], kWeighted ? fresh : attracted[m], job.rules, strips, position);
        if constexpr (kWeighted) collect(m, fresh);
      } else if constexpr (kPass == Pass::kSigmoid) {
        Attracted fresh[2] = {};
        sigmoid_tile(tile[m], fresh, job, line, strips, position, masked);
        collect(m, fresh);
      } else {
        float shrink[2] = {1, 1};
        denominator_tile<kWeighted>(tile[m], running[m], shrink, job.rules, strips, position, masked);
        if (kTile.out > 0 && !job.rules.bounded) {
#pragma unroll
          for (int d = 0; d < kOutTiles; ++d) {
#pragma unroll
            for (int e = 0; e < 4; ++e) out[m][d][e] *= shrink[e / 2];
          }
        }
      }
    }
  }

  // The sums of the row that the four lanes of a quad share.
  __device__ __forceinline__ Numbers numbers(int m, int r) {
    if constexpr (kPass == Pass::kDenominator) return {running[m][r].peak, quad_sum(running[m][r].sum), 0};
    const Attracted& own = attracted[m][r];
    if constexpr (kWeighted) return {quad_sum(own.loss), quad_sum(own.pull), quad_sum(own.mass())};
    int count = own.count + shuffle_xor(own.count, 1);
    count += shuffle_xor(count, 2);
    return {quad_sum(own.loss), quad_sum(own.pull), std::bit_cast<float>(count)};
  }
};

template <Pass kPass>
__device__ __forceinline__ Blend settle(const Job& job, int64_t row, const Numbers& sums, bool live,
                                        bool writes) {
  if constexpr (kPass == Pass::kDenominator)
    return settle_denominator(job, row, {sums.first, sums.second}, live, writes);
  if constexpr (kPass == Pass::kPositive) return settle_positive(job, row, sums.attracted(), writes);
  if constexpr (kPass == Pass::kSigmoid) return settle_sigmoid(job, row, sums.attracted(), live, writes);
  return {live ? 1.0f : 0.0f, 0};
}

template <Tile kTile, Pass kPass, bool kWeighted>
__device__ __forceinline__ void write_rows(const Job& job, Sums<kTile, kPass, kWeighted>& sums,
                                           const Strip<kTile.rows()>& rows, const Position& position,
                                           int first_out) {
  const bool writes = position.column == 0 && first_out == 0, shared = job.splits > 1;
#pragma unroll
  for (int m = 0; m < kTile.strips; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Numbers numbers;
      if constexpr (kPass != Pass::kGradient) numbers = sums.numbers(m, r);
      const int at = position.row + 16 * m + 8 * r;
      const int64_t row = int64_t{position.first_row} + at;
      if (row >= job.rows.count) continue;
      Blend blend{1, 0};
      float* grad = job.grad;
      if (shared) {
        const int64_t part = blockIdx.z * int64_t{job.rows.count} + row;
        if (kPass != Pass::kGradient && writes)
          *reinterpret_cast<Numbers*>(job.part_numbers + 3 * part) = numbers;
        grad = job.part_grad + part * job.width;
      } else {
        blend = settle<kPass>(job, row, numbers, rows.integer(kLabel, at) >= 0, writes);
        grad += row * job.width;
      }
      if constexpr (kTile.out > 0) {
#pragma unroll
        for (int d = 0; d < kTile.out / 8; ++d) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = first_out + 8 * d + position.column + c;
            if (column < job.width) grad[column] = settled(blend, sums.out[m][d][2 * r + c], grad + column);
          }
        }
      }
    }
  }
}

template <class T, class Shape /* Fixed<tile> */, Pass kPass, bool kWeighted>
__global__ void __launch_bounds__(Shape::kTile.threads(), 2) sweep_kernel(const __grid_constant__ Job job) {
  constexpr Tile kTile = Shape::kTile;
  const Layout<kTile> layout(job.width);
  auto& books = layout.books(job.stages);
  const int first_row = static_cast<int>(blockIdx.x) * kTile.rows(),
            first_out = static_cast<int>(blockIdx.y) * kTile.out;
  const int tiles = (job.columns.count + kTile.columns - 1) / kTile.columns;
  const int run = (tiles + job.splits - 1) / job.splits,
            first_tile = min(tiles, run * static_cast<int>(blockIdx.z));
  load_strip<kTile.rows(), kTile.threads()>(books.rows, job.rows, first_row);
  commit_copies();
  wait_copies<0>();
  sync_block();
  load_rows<kTile.rows(), kTile.threads()>(layout.rows(), static_cast<const T*>(job.rows.rows), first_row,
                                           job.width,
                                           [&](int row) { return books.rows.integer(kLabel, row) >= 0; });
  if (threadIdx.x < kWarp) {
    const RowClasses classes = row_classes(job.rows, books.rows, first_row);
    if (threadIdx.x == 0) books.classes = classes;
  }
  typename Layout<kTile>::Walker walk(books.walk, first_tile, min(tiles, first_tile + run));
  const auto fetch = [&](int stage) {
    bool masked = false;
    const int tile = walk.next(kPass, job, books.classes, masked);
    auto& to = books.stage[stage];
    if (threadIdx.x == 0) {
      to.first = tile < 0 ? -1 : tile * kTile.columns;
      to.masked = masked;
    }
    if (tile >= 0) {
      const int64_t first = int64_t{tile} * kTile.columns;
      load_strip<kTile.columns, kTile.threads()>(to.strip, job.columns, first);
      load_rows<kTile.columns, kTile.threads()>(layout.tile(stage), static_cast<const T*>(job.columns.rows),
                                                first, job.width,
                                                [&](int column) { return walk.valid(tile, column); });
    }
    commit_copies();
  };
  Sums<kTile, kPass, kWeighted> sums;
  sums.clear(job);
  const int strip = static_cast<int>(threadIdx.x) / kWarp * 16 * kTile.strips, lane = threadIdx.x % kWarp;
  for (int stage = 0; stage < job.stages - 1; ++stage) fetch(stage);
  for (int stage = 0;; stage = stage + 1 < job.stages ? stage + 1 : 0) {
    if (job.stages == 1) {
      sync_block();
      fetch(0);
    }
    if (job.stages == 3) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    sync_block();
    if (job.stages > 1) fetch((stage + job.stages - 1) % job.stages);
    const auto& now = books.stage[stage];
    if (now.first < 0) break;
    float tile[kTile.strips][kTile.columns / 8][4];
    similarities<T, kTile.strips, kTile.columns / 8, kTile.rows()>(tile, layout.rows(), layout.tile(stage),
                                                                   strip, job.width);
    const Strips<kTile.rows(), kTile.columns> strips{job.rows, job.columns, books.rows, now.strip};
    sums.add(tile, job, strips, Position::of_lane(lane, strip, first_row, now.first), now.masked);
    if constexpr (kTile.out > 0) value_product<T>(sums.out, tile, layout.tile(stage), first_out, job.width);
  }
  wait_copies<0>();
  write_rows(job, sums, books.rows, Position::of_lane(lane, strip, first_row, 0), first_out);
}

}  // namespace secl::cuda
