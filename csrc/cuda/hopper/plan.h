// SPDX-License-Identifier: Apache-2.0
// How Hopper's contrast kernels are cut: the one table of their tiles, with the reason beside each row.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secl::cuda::hopper {

constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = 2;    // warpgroups that multiply; one more feeds them
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStrip = 64;       // rows of one product of a warpgroup
constexpr int kBoxColumns = 64;  // of a matrix, moved at once: 128 bytes, one swizzled row

// 65,536 registers are 168 for each of 384 threads; what the producer gives up, the consumers take.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 504);

enum class Element { kBfloat16, kHalf };
// Sums alone; with the value product; gradients of rows that are anchors, keys, or both.
enum class Purpose { kScan, kValue, kAnchors, kKeys, kBoth };

constexpr bool is_gradient(Purpose purpose) {
  return purpose != Purpose::kScan && purpose != Purpose::kValue;
}

struct Plan {
  int strips;      // of 64 rows that stay with each consumer
  int columns;     // in flight at once
  int stages;      // of the ring of columns
  int polynomial;  // of 16 exponentials, those computed by fused multiply-adds; the rest by the special unit

  constexpr int rows() const { return kConsumers * strips * kStrip; }
};

// Every block reads every column once, from L2: at the 790 TFLOP/s that an H200 was seen to reach, 128 rows a
// block would read 6.2 TB/s in a scan (2 N M D FLOP) and 3.1 in the other passes (4 N M D), 256 rows half of
// that; L2 gives 5 to 6. 256 rows in one block need no cluster, hence no barrier between blocks, and halve
// the tail of small problems' launches less than a cluster of two blocks would; they cost two strips of
// registers a consumer.
//
// A product of 64 rows and n columns takes n / 2 clocks and reads (n + 64) / 4 clocks' worth of shared
// memory, without the 64 where its rows are in registers: 64 columns saturate it in a scan, 96 and more leave
// room.
constexpr Plan plan(int width, Purpose purpose) {
  if (purpose == Purpose::kScan) {
    if (width == 64) return {2, 128, 4, 5};   // exponentials bind, two to one: 5 of 16 even out both units
    if (width == 128) return {2, 128, 4, 4};  // exponentials and products tie
    return {2, 80, 2, 0};                     // 128 KiB of rows leave 2 x 40 KiB for the ring
  }
  if (purpose == Purpose::kValue) {
    if (width == 64)
      return {2, 96, 4, 4};  // 64 registers of output, 48 of scores, 24 of weights; a tie as above
    if (width == 128) return {2, 64, 6, 0};  // 128 of output, 32, 16
    return {1, 64, 4, 0};                    // 128 of output for one strip: 128 rows a block
  }
  if (width == 64) return {2, 64, 6, 4};
  if (width == 128) return {2, 64, 6, 0};
  return {1, 64, 4, 0};
}

constexpr bool serves(int width) { return width == 64 || width == 128 || width == 256; }

}  // namespace secl::cuda::hopper
