// SPDX-License-Identifier: Apache-2.0
// Few rows: the products of kept coefficients with the rows of either side.

#include "lanes.h"
#include "small.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

// Outputs of a product: with two vectors each they leave registers free.
constexpr int kShare = kLanes > 4 ? kLanes / 2 : kLanes;

// Where the coefficients of a product lie: runs of values, `step` from one run to the next.
struct Runs {
  const float* first;
  int64_t runs, count, step;
};

// output += coefficients @ values for kShare outputs of V vectors. Output r of a run's value k has its
// coefficient at r * kNextOutput + k * kNextValue.
template <int V, int kNextOutput, int kNextValue>
SECL_OWN_REGISTERS void small_accumulate(const Runs& from, const float* values, int64_t width,
                                         float* output) {
  Float sum[kShare][V] = {};
  for (int64_t run = 0; run < from.runs; ++run) {
    const float* coefficients = from.first + run * from.step;
    int64_t k = 0;
    if (kByLane && kNextValue == 1) {
      for (; k + kLanes <= from.count; k += kLanes, values += kLanes * width, coefficients += kLanes)
        multiply_lanes(values, width, kLanes, coefficients, kNextOutput, sum);
    }
    for (; k < from.count; ++k, values += width, coefficients += kNextValue) {
      Float value[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) value[v] = load(values + v * kLanes);
      const Numbers<kShare, kNextOutput> row(coefficients);
#pragma GCC unroll 16
      for (int r = 0; r < kShare; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] += splat(row[r]) * value[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kShare; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* place = output + r * width + v * kLanes;
      store(place, load(place) + sum[r][v]);
    }
  }
}

// The same value by value; a coefficient of 0 leaves nothing of a NaN.
template <int kNextOutput, int kNextValue>
void small_accumulate_any(const Runs& from, const float* values, int64_t width, float* output) {
  for (int64_t k = 0; k < from.runs * from.count; ++k, values += width) {
    const float* coefficients = from.first + k / from.count * from.step + k % from.count * kNextValue;
    for (int r = 0; r < kShare; ++r) {
      const float factor = coefficients[r * kNextOutput];
      if (factor == 0) continue;
      for (int64_t d = 0; d < width; ++d) output[r * width + d] += factor * values[d];
    }
  }
}

template <int kNextOutput, int kNextValue>
SECL_INLINE void small_product(const Small& s, const Runs& from, const float* values, float* output) {
  if (!s.finite) return small_accumulate_any<kNextOutput, kNextValue>(from, values, s.width, output);
  int64_t d = 0;
  for (; d + 2 * kLanes <= s.width; d += 2 * kLanes)
    small_accumulate<2, kNextOutput, kNextValue>(from, values + d, s.width, output + d);
  if (d < s.width) small_accumulate<1, kNextOutput, kNextValue>(from, values + d, s.width, output + d);
}

// Adds the gradient of one vector of anchors to their rows, [kLanes, width].
void small_anchors(const Small& s, int64_t vector, float* output) {
  const float* coefficients = s.coefficients + vector * s.places * kLanes;
  for (int64_t j = 0; j < s.keys; j += kPanel) {
    const int64_t count = s.keys - j < kPanel ? s.keys - j : kPanel;
    for (int r = 0; r < kLanes && vector * kLanes + r < s.anchors; r += kShare) {
      const Runs runs{coefficients + j * kLanes + r, 1, count, 0};
      small_product<1, kLanes>(s, runs, s.key_rows + j * s.width, output + r * s.width);
    }
  }
}

// Adds the gradient of one vector of keys to their rows, [kLanes, width].
void small_keys(const Small& s, int64_t vector, float* output) {
  for (int64_t i = 0; i < s.anchors; i += kPanel) {
    const int64_t left = (s.anchors - i + kLanes - 1) / kLanes;
    const int64_t runs = left < kPanel / kLanes ? left : kPanel / kLanes;
    const float* coefficients = s.coefficients + i * s.places + vector * kLanes * kLanes;
    for (int r = 0; r < kLanes && vector * kLanes + r < s.keys; r += kShare) {
      const Runs from{coefficients + r * kLanes, runs, kLanes, s.places * kLanes};
      small_product<kLanes, 1>(s, from, s.anchor_rows + i * s.width, output + r * s.width);
    }
  }
}

// One tile of rows, transposed.
void small_pack(const float* rows /* [kTile, width] */, int64_t width, int64_t depth,
                float* to /* [depth, kTile] */) {
  for (int64_t d = 0; d < depth; d += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      Float square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = load(rows + (v * kLanes + r) * width + d);
      transpose_square(square);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) {
        if (d + k < depth) store(to + (d + k) * kTile + v * kLanes, square[k]);
      }
    }
  }
}

SECL_INLINE void load_square(const float* from, Float (&square)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) square[r] = load(from + r * kLanes);
}

// Writes a square, plus what stands there where `add`.
SECL_INLINE void store_square(bool add, const Float (&square)[kLanes], float* to) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    store(to + r * kLanes, add ? square[r] + load(to + r * kLanes) : square[r]);
}

// Where vector `row` of the anchors meets the keys of another one.
SECL_INLINE float* small_square(const Small& s, int64_t row, int64_t column) {
  return s.coefficients + (row * s.places + column * kLanes) * kLanes;
}

// Writes the similarities with all later vectors to their other places.
void small_flip(const Small& s, int64_t vector) {
  for (int64_t other = vector + 1; other * kLanes < s.places; ++other) {
    Float square[kLanes];
    load_square(small_square(s, vector, other), square);
    transpose_square(square);
    store_square(false, square, small_square(s, other, vector));
  }
}

// Coefficients + their transpose, for one vector against itself and all later ones: a row then has its
// gradient in both roles from one product.
void small_mirror(const Small& s, int64_t vector) {
  for (int64_t other = vector; other * kLanes < s.places; ++other) {
    float *upper = small_square(s, vector, other), *lower = small_square(s, other, vector);
    Float down[kLanes], up[kLanes];
    load_square(upper, down);
    load_square(lower, up);
    transpose_square(up);
    store_square(true, up, upper);
    if (other == vector) continue;
    transpose_square(down);
    store_square(true, down, lower);
  }
}

}  // namespace
}  // namespace secl::SECL_ISA
