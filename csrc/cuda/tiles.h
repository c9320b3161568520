// SPDX-License-Identifier: Apache-2.0
// The table of tiles of the contrast kernels for mma.m16n8k16.
#pragma once

#include <cstdint>

namespace secl::cuda {

constexpr int kWidest = 512;  // a block's rows lie in shared memory: 64 of them take 64 KiB
constexpr int kChunk = 64;    // numbers of a row that lie together in shared memory: 128 bytes, one swizzle
constexpr int kLeastShared =
    99 << 10;  // bytes of shared memory that a block may have on the smallest GPUs served

// The shape of one block's work.
struct Tile {
  int strips;   // of 16 rows that each warp owns; two share what is read of the other side
  int columns;  // of the other side in flight, a multiple of 32
  int out;      // columns of the output that a block owns; 0: no value product
  int warps;
  int stages;  // tiles of columns in shared memory, fewer where they do not fit

  constexpr int rows() const { return 16 * strips * warps; }
  constexpr int threads() const { return 32 * warps; }
};

// A tile as a type: nvcc cannot name a kernel by a value of a class.
template <Tile kValue>
struct Fixed {
  static constexpr Tile kTile = kValue;
};

// Where a pass sums more than others: one strip a warp, so that nothing spills.
constexpr Tile pick_strip(int width, bool value) {
  if (!value) return {1, 32, 0, 4, 2};
  if (width <= 128) return {1, 64, 128, 4, 2};
  return {1, 32, 256, 4, 2};
}

constexpr Tile pick(int width, bool value) {
  if (!value) {
    if (width <= 64) return {2, 64, 0, 4, 3};  // 50 KiB: three blocks a multiprocessor of sm_80
    // A third stage would leave room for one block instead of two. The smallest GPUs have too little for a
    // width above 192, and take the next row there.
    if (width <= 256) return {2, 64, 0, 4, 2};
    return {1, 32, 0, 4, 2};  // 64 rows of 512 take 64 KiB, and 64 columns would as well
  }
  if (width <= 64) return {2, 64, 64, 4, 3};    // 64 registers of output and 64 of similarities a thread
  if (width <= 128) return {2, 32, 128, 4, 2};  // 128 registers of output leave 32 for the similarities
  return {1, 32, 256, 4, 2};  // one strip: the output's 128 registers; wider rows repeat the similarities
}

}  // namespace secl::cuda
