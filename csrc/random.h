// SPDX-License-Identifier: Apache-2.0
// The random numbers of sampling, the same on every device: a counter, mixed.
#pragma once

#include <cstdint>

#include "contrast_math.h"

namespace secl {

constexpr int kIndexBits = 28;  // an image has fewer than 2^28 pixels
constexpr int kRandomBits = 63 - kIndexBits;
constexpr int64_t kCellsPerAxis = 4;  // of the grid of a stratified draw
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

// The splitmix64 finaliser: a counter becomes 64 random bits.
SECL_INLINE uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

// The chance of a pixel, 35 bits, given the mixed seed and the pixel's number in the batch.
SECL_INLINE uint64_t chance(uint64_t mixed_seed, uint64_t position) {
  return mix(mixed_seed + position * kGolden) >> (kIndexBits + 1);
}

}  // namespace secl
