// SPDX-License-Identifier: Apache-2.0
// How rows are laid out for the products: spread over a slab, and transposed into register tiles.

#include "kernels.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

inline void spread(const float* row /* [depth] */, float factor, int64_t depth, Slab to) {
  for (; depth >= kLanes; depth -= kLanes, row += kLanes, to.data += to.step)
    store(to.data, load(row) * factor);
  if (depth == 0) return;
  Float rest{};
  __builtin_memcpy(&rest, row, static_cast<size_t>(depth) * sizeof(float));
  store(to.data, rest * factor);
}

// Swaps the blocks beside the diagonal, of one size after the other: a square matrix, transposed in
// registers.
SECL_INLINE void transpose_square(Float (&x)[kLanes]) {
#pragma GCC unroll 4
  for (int size = 1; size < kLanes; size *= 2) {
    Int low = iota(), high = iota();
    low = (low & size) != 0 ? low - size + kLanes : low;
    high = (high & size) != 0 ? high + kLanes : high + size;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & size) continue;
      const Float upper = x[i], lower = x[i + size];
      x[i] = shuffle(upper, lower, low);
      x[i + size] = shuffle(upper, lower, high);
    }
  }
}

inline void transpose(Slab from, int64_t depth, float* to /* [depth, kTile] */) {
  for (; depth > 0; depth -= kLanes, from.data += from.step, to += kLanes * kTile) {
    const int64_t size = depth < kLanes ? depth : kLanes;
    for (int v = 0; v < kVectors; ++v) {
      Float square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = load(from.data + (v * kLanes + r) * kLanes);
      transpose_square(square);
#pragma GCC unroll 16
      for (int d = 0; d < kLanes; ++d) {
        if (d < size) store(to + d * kTile + v * kLanes, square[d]);
      }
    }
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
